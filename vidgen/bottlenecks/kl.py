"""KL: a diagonal Gaussian per token, pulled lightly towards the unit normal (Kingma & Welling 2014; LDM)."""

import torch
from torch import Tensor

from vidgen.bottlenecks.base import Bottleneck, Bottlenecked
from vidgen.nn.random import Generators, randn


class KL(Bottleneck):
    """Continuous tokens.

    Args:
        channels: length of a token.
        weight: of the KL term, which is summed over channels and averaged over tokens.
    """

    def __init__(self, *, channels: int = 8, weight: float = 1e-4) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"KL needs at least 1 channel, got {channels}")
        self.channels = channels
        self.in_channels = 2 * channels
        self.weight = weight

    def forward(self, features: Tensor, *, sample: bool = False, generators: Generators | None = None) -> Bottlenecked:
        mean, log_variance = features.chunk(2, dim=-1)
        if not sample:
            return Bottlenecked(mean, None)
        if generators is None:
            raise ValueError("sampling a posterior needs generators, one per sample")
        log_variance = log_variance.clamp(-30.0, 20.0)
        noise = randn(mean.shape, generators, like=mean)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).float().sum(dim=-1).mean()
        vectors = mean + torch.exp(0.5 * log_variance) * noise
        return Bottlenecked(vectors, None, {"kl": self.weight * divergence})
