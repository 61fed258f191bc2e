"""KL: a diagonal Gaussian per token, pulled lightly towards the unit normal (Kingma & Welling 2014; LDM)."""

import math

import torch
from torch import Tensor

from vidgen.bottlenecks.base import Bottleneck, Bottlenecked
from vidgen.nn.random import Generators, randn


class KL(Bottleneck):
    """Continuous tokens.

    Args:
        channels: length of a token.
        weight: of the KL term, which is summed over channels and averaged over tokens.
        deviation: fixed standard deviation of the posterior; None lets the encoder say one for each channel.
    """

    def __init__(self, *, channels: int = 8, weight: float = 1e-4, deviation: float | None = None) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"KL needs at least 1 channel, got {channels}")
        if not weight >= 0 or (deviation is not None and not deviation > 0):  # NaN is neither
            raise ValueError(
                f"KL needs a weight of at least 0 and a deviation above 0, got {weight} and {deviation}; the "
                "bottleneck without noise is 'ae'"
            )
        self.channels = channels
        self.in_channels = 2 * channels if deviation is None else channels
        self.weight, self.deviation = weight, deviation

    def forward(self, features: Tensor, *, sample: bool = False, generators: Generators | None = None) -> Bottlenecked:
        mean, log_variance = self._posterior(features)
        if not sample:
            return Bottlenecked(mean, None)
        if generators is None:
            raise ValueError("sampling a posterior needs generators, one per sample")
        noise = randn(mean.shape, generators, like=mean)
        vectors = mean + torch.exp(0.5 * log_variance) * noise
        mean, log_variance = mean.float(), log_variance.float()  # near the prior the terms cancel
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(dim=-1).mean()
        return Bottlenecked(vectors, None, {"kl": self.weight * divergence})

    def _posterior(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, `b n c` each."""
        if self.deviation is not None:
            return features, torch.full_like(features, 2 * math.log(self.deviation))
        mean, log_variance = features.chunk(2, dim=-1)
        return mean, log_variance.clamp(-30.0, 20.0)
