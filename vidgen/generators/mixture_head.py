"""Reals as a mixture of Gaussians given the hidden state (Divot, arXiv 2412.04432; GIVT, arXiv 2312.02116)."""

import math

import torch
from torch import Tensor, nn

from vidgen.generators.heads import Head
from vidgen.latents import LatentSpec
from vidgen.nn.random import Generators, randn
from vidgen.schedulers.sampling import SamplingRule

QUIETEST, LOUDEST = -5.0, 3.0  # log deviations; without a floor a repeated token's likelihood grows without bound


class MixtureHead(Head):
    """One mixture of Gaussians with diagonal covariances for each token.

    Args:
        components: Gaussians in the mixture (Divot: 16).
    """

    confident = False

    def __init__(self, spec: LatentSpec, width: int, *, components: int = 16) -> None:
        super().__init__()
        self.channels, self.components = spec.channels, components
        self.to_parameters = nn.Linear(width, components * (1 + 2 * spec.channels))
        nn.init.normal_(self.to_parameters.weight, std=0.02)
        nn.init.zeros_(self.to_parameters.bias)
        with torch.no_grad():  # the components start apart from each other, as far as tokens of unit variance lie
            means = self.to_parameters.bias[components : components * (1 + spec.channels)]
            means.copy_(torch.randn(means.shape))

    def parameters_of(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits `b n k`, means and log deviations `b n k c`."""
        sizes = [self.components, self.components * self.channels, self.components * self.channels]
        logits, means, deviations = self.to_parameters(hidden).float().split(sizes, dim=-1)
        shape = (self.components, self.channels)
        return logits, means.unflatten(-1, shape), deviations.unflatten(-1, shape).clamp(QUIETEST, LOUDEST)

    def loss(self, hidden: Tensor, target: Tensor, *, generators: Generators) -> Tensor:
        """Negative log-likelihood in nats, per channel."""
        logits, means, deviations = self.parameters_of(hidden)
        distance = (target.float().unsqueeze(2) - means) * torch.exp(-deviations)
        log_density = -0.5 * distance.square() - deviations - 0.5 * math.log(2 * math.pi)
        return -torch.logsumexp(logits.log_softmax(dim=-1) + log_density.sum(dim=-1), dim=-1) / self.channels

    def sample(
        self,
        hidden: Tensor,
        uncond_hidden: Tensor | None,
        guidance: float,
        *,
        generators: Generators,
        rule: SamplingRule,
        limits: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """A component by `rule`, then a draw from it; temperature also scales its deviation.

        Guidance acts on the logits and the means; the deviations are those of the condition.
        """
        logits, means, deviations = self.parameters_of(hidden)
        if uncond_hidden is not None:
            other_logits, other_means, _ = self.parameters_of(uncond_hidden)
            logits = other_logits + guidance * (logits - other_logits)
            means = other_means + guidance * (means - other_means)
        logits = rule.filter(logits)
        chosen = rule.draw(logits, generators)[..., None, None].expand(-1, -1, 1, self.channels)
        mean, deviation = (values.gather(2, chosen).squeeze(2) for values in (means, deviations))
        return mean + rule.temperature * deviation.exp() * randn(mean.shape, generators, like=mean), None
