"""Token mixers of linear cost, in the place of self-attention: gated linear attention, bidirectional state space."""

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vidgen.kernels.ops.linear_attention import bidirectional_linear_attention, gated_linear_attention
from vidgen.nn.norms import RMSNorm

# Axes from the slowest to the fastest, one order a layer in turn: every axis gets to be the one whose neighbours are
# close (the rotary-major scan of LinGen, arXiv 2412.09856).
SCANS = ((0, 1, 2), (0, 2, 1), (1, 2, 0), (2, 1, 0))


def scan_order(grid: tuple[int, int, int], layer: int, *, device: torch.device | str = "cpu") -> Tensor:
    """`n` long: the tokens of a raster-ordered (time, height, width) grid in the order in which `layer` scans them."""
    raster = torch.arange(math.prod(grid), device=device).view(grid)
    return raster.permute(SCANS[layer % len(SCANS)]).flatten()


class GatedLinearAttention(nn.Module):
    """Causal attention with a decay of each channel that the token chooses (GLA, arXiv 2312.06635).

    Args:
        gate_rank: of the map to the decays.
        slowness: the decay is a sigmoid to the power of 1/slowness, near 1 at the start of training.
    """

    def __init__(self, width: int, heads: int, *, gate_rank: int = 16, slowness: float = 16.0) -> None:
        super().__init__()
        if width % (2 * heads):
            raise ValueError(f"width {width} must divide by twice the {heads} heads: keys have half of the channels")
        self.heads, self.slowness = heads, slowness
        self.to_qk = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)
        self.to_decay = nn.Sequential(nn.Linear(width, gate_rank, bias=False), nn.Linear(gate_rank, width // 2))
        self.to_gate = nn.Linear(width, width)
        self.norm = RMSNorm(width // heads)
        self.to_out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`b n d -> b n d` and the state `b h d/2h d/h` after the last token, for the tokens that follow."""
        q, k = rearrange(self.to_qk(x), "b n (two h d) -> two b h n d", two=2, h=self.heads)
        v = rearrange(self.to_v(x), "b n (h d) -> b h n d", h=self.heads)
        log_decay = F.logsigmoid(rearrange(self.to_decay(x), "b n (h d) -> b h n d", h=self.heads).float())
        mixed, state = gated_linear_attention(q * q.shape[-1] ** -0.5, k, v, log_decay / self.slowness, state=state)
        mixed = rearrange(self.norm(mixed).to(v.dtype), "b h n d -> b n (h d)")
        return self.to_out(mixed * F.silu(self.to_gate(x))), state


class BidirectionalStateSpace(nn.Module):
    """A state-space scan in both directions at once (Mamba-2's block, arXiv 2405.21060, section 7; LinGen).

    Both directions share keys, queries and values and have step sizes of their own. Mamba-2's short convolution is left
    out: it runs along one line of the grid, and local mixing in 3D belongs to a window attention beside this layer.

    Args:
        expansion: inner channels per channel.
        state_channels: rows of a head's state.
    """

    def __init__(self, width: int, heads: int, *, expansion: int = 2, state_channels: int = 64) -> None:
        super().__init__()
        inner = expansion * width
        if inner % heads:
            raise ValueError(f"{expansion} x width {width} must divide by {heads} heads")
        self.heads = heads
        self.sizes = [inner, inner, state_channels, state_channels, 2 * heads]
        self.to_hidden = nn.Linear(width, sum(self.sizes), bias=False)
        # step sizes from 0.001 to 0.1 and rates from 1 to 16, as Mamba starts them
        step = torch.logspace(-3, -1, heads).repeat(2)
        self.step_bias = nn.Parameter(step.expm1().log())
        self.log_rate = nn.Parameter(torch.linspace(1, 16, heads).log().repeat(2))
        self.skip = nn.Parameter(torch.ones(heads))
        self.norm = RMSNorm(inner)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, order: Tensor | None = None) -> Tensor:
        """`b n d -> b n d`; `order`, `n` long, is a permutation in which to scan the tokens (`scan_order`)."""
        if order is not None:
            return self(x[:, order])[:, order.argsort()]
        values, gate, k, q, step = self.to_hidden(x).split(self.sizes, dim=-1)
        values = rearrange(values, "b n (h e) -> b h n e", h=self.heads)
        q, k = (F.silu(shared).unsqueeze(1).expand(-1, self.heads, -1, -1) for shared in (q, k))
        step = F.softplus(step.float() + self.step_bias)
        log_decay = -self.log_rate.exp() * step
        steps, log_decays = (rearrange(both, "b n (two h) -> two b h n", two=2) for both in (step, log_decay))
        forwards, backwards = (values * step.unsqueeze(-1) for step in steps)
        mixed = bidirectional_linear_attention(q, k, (forwards, backwards), (log_decays[0], log_decays[1]))
        mixed = rearrange(mixed + self.skip[:, None, None] * values, "b h n e -> b n (h e)")
        return self.to_out(self.norm(mixed.to(gate.dtype) * F.silu(gate)))
