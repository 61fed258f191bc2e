"""Normalisation that never mixes positions, so that streams and tiles stay exact."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ChannelRMSNorm(nn.Module):
    """Root-mean-square norm over the channels of each position of `b c …` (Zhang & Sennrich 2019)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.float().square().mean(dim=1, keepdim=True) + 1e-6).to(x.dtype)
        return x * scale * self.weight.to(x.dtype).view(-1, *[1] * (x.ndim - 2))


class RMSNorm(nn.RMSNorm):
    """`torch.nn.RMSNorm` over the last axis whose weight follows the input's dtype, so that bf16 stays fused."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)
