"""Layers in the place of plain self-attention: two attentions in one block, heads that are shared out, linear cost."""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

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
    """A scan of the whole grid in the order of a layer, and windows of attention beside it."""

    grid: tuple[int, int, int]
    layer: int
    window: AttentionSpec


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
    """A bidirectional state-space scan plus attention in windows (MATE, LinGen, arXiv 2412.09856, without its review
    tokens): the scan carries what is far, the windows what is near in space and time.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.scan = BidirectionalStateSpace(width, heads)
        self.window = Attention(width, heads)

    def forward(self, x: Tensor, pattern: ScanAndWindow, turns: Rotary, cache: Remembers | None = None) -> Tensor:
        assert cache is None
        order = scan_order(pattern.grid, pattern.layer, device=x.device)
        return self.scan(x, order) + self.window(x, pattern.window, turns)
