"""Normalisation that never mixes positions, so that streams and tiles stay exact."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidgen.kernels import norm_rope, norm_silu_cache
from vidgen.kernels.ops.norm_silu import channel_rms_norm


class ChannelRMSNorm(nn.Module):
    """Root-mean-square norm over the channels of each position of `b c …` (Zhang & Sennrich 2019)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return channel_rms_norm(x, self.weight, eps=1e-6)


class ActivatedChannelNorm(ChannelRMSNorm):
    """`ChannelRMSNorm` and SiLU of video, in the buffer that a causal convolution reads (`norm_silu_cache`)."""

    def forward(self, x: Tensor, before: Tensor | None = None, *, at_start: int = 0) -> Tensor:
        return norm_silu_cache(x, self.weight, before=before, at_start=at_start)


class RMSNorm(nn.RMSNorm):
    """`torch.nn.RMSNorm` over the last axis whose weight follows the input's dtype, so that bf16 stays fused."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class RotaryRMSNorm(RMSNorm):
    """`RMSNorm` of the heads of queries or keys `b h n d`, then their rotation to their places (`norm_rope`)."""

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        return norm_rope(x, self.weight, cosines=cosines, sines=sines)
