"""Layers in the place of plain self-attention: two attentions in one block, heads that are shared out, linear cost."""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vidgen.kernels import AttentionSpec, attention3d
from vidgen.nn.linear_mixers import BidirectionalStateSpace, scan_order
from vidgen.nn.transformer import Attention, Remembers, Rotary


@dataclass(frozen=True)
class TwoPatterns:
    """What the layers below attend to: within frames and along time, say."""

    first: AttentionSpec
    second: AttentionSpec


@dataclass(frozen=True)
class ScanAndWindow:
    """A scan of the whole grid in the order of a layer, and windows of attention beside it.

    Args:
        review: (t, h, w) of the coarse picture of the whole grid that the scan reads first; `None` = none.
    """

    grid: tuple[int, int, int]
    layer: int
    window: AttentionSpec
    review: tuple[int, int, int] | None = None


class SequentialAttention(nn.Module):
    """One attention after the other in the same block (Latte's variant 3, arXiv 2401.03048; VDT)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.first = Attention(width, heads)
        self.second = Attention(width, heads)

    def forward(self, x: Tensor, pattern: TwoPatterns, turns: Rotary, cache: Remembers | None = None) -> Tensor:
        assert cache is None
        first = self.first(x, pattern.first, turns)
        return first + self.second(x + first, pattern.second, turns)


class SharedOutHeads(Attention):
    """Half of the heads attend to one pattern, the other half to the other (Latte's variant 4)."""

    def forward(self, x: Tensor, pattern: TwoPatterns, turns: Rotary, cache: Remembers | None = None) -> Tensor:
        assert cache is None
        (q_1, q_2), (k_1, k_2), (v_1, v_2) = (tensor.chunk(2, dim=1) for tensor in self.project(x, turns))
        attended = torch.cat(
            [attention3d(q_1, k_1, v_1, pattern.first), attention3d(q_2, k_2, v_2, pattern.second)], dim=1
        )
        return self.to_out(rearrange(attended, "b h n d -> b n (h d)"))


class LinearCostMixer(nn.Module):
    """A bidirectional state-space scan plus attention in windows (MATE, LinGen, arXiv 2412.09856).

    The scan carries what is far, the windows what is near in space and time. Review tokens, means over coarse cells of
    the grid, stand at both ends of the line, so that the scan in either direction begins with a look at everything.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.scan = BidirectionalStateSpace(width, heads)
        self.window = Attention(width, heads)

    def forward(self, x: Tensor, pattern: ScanAndWindow, turns: Rotary, cache: Remembers | None = None) -> Tensor:
        assert cache is None
        order = scan_order(pattern.grid, pattern.layer, device=x.device)
        if pattern.review is None:
            scanned = self.scan(x, order)
        else:
            review = review_tokens(x, pattern.grid, pattern.review)
            scanned = self.scan(torch.cat([review, x[:, order], review], dim=1))
            scanned = scanned[:, review.shape[1] : -review.shape[1]][:, order.argsort()]
        return scanned + self.window(x, pattern.window, turns)


def review_tokens(x: Tensor, grid: tuple[int, int, int], cells: tuple[int, int, int]) -> Tensor:
    """`b n d -> b m d`: means over `cells` equal parts of the grid along each axis, at most one for each token."""
    t, h, w = grid
    volume = rearrange(x, "b (t h w) d -> b d t h w", t=t, h=h, w=w)
    means = F.adaptive_avg_pool3d(volume, (min(t, cells[0]), min(h, cells[1]), min(w, cells[2])))
    return rearrange(means, "b d t h w -> b (t h w) d")
