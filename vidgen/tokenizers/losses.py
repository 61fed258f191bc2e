"""The terms that tokenizers are trained with: pixels, adversarial games and their regularisers, teachers."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# pixels


def absolute_error(fake: Tensor, real: Tensor) -> Tensor:
    return (fake - real).float().abs().mean()


def squared_error(fake: Tensor, real: Tensor) -> Tensor:
    return (fake - real).float().square().mean()


def charbonnier_error(fake: Tensor, real: Tensor, *, epsilon: float = 1e-3) -> Tensor:
    """sqrt(error² + ε²) - ε: absolute for large errors, squared for those below ε (Charbonnier et al. 1994)."""
    return ((fake - real).float().square() + epsilon**2).sqrt().mean() - epsilon


PIXEL_ERRORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": absolute_error,
    "l2": squared_error,
    "charbonnier": charbonnier_error,
}


class LearnedVariance(nn.Module):
    """Terms of a reconstruction, divided by a learned variance: e / exp(s) + s (LDM's and VidTok's log-variance).

    The minimum over s makes the terms as heavy as they are small, beside those that are not divided (KL, adversary).
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(()))

    def forward(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """The divided terms, and s itself as `log_variance`."""
        divided = {name: term * torch.exp(-self.log_variance) for name, term in terms.items()}
        return {**divided, "log_variance": self.log_variance}


# adversarial games: what the discriminator and the tokenizer want of logits, positive for real


@dataclass(frozen=True)
class AdversarialGame:
    """Two losses that belong together.

    Args:
        discriminator: logits of real and of fake patches -> its loss.
        generator: logits of fake patches -> the tokenizer's loss.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    return 0.5 * (F.relu(1.0 - real.float()).mean() + F.relu(1.0 + fake.float()).mean())


def hinge_generator(fake: Tensor) -> Tensor:
    return -fake.float().mean()


def non_saturating_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    return 0.5 * (F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean())


def non_saturating_generator(fake: Tensor) -> Tensor:
    return F.softplus(-fake.float()).mean()


def smoothed_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """As `non_saturating_discriminator`, but no verdict should be sure: targets are |N(0, 0.15)|, at most 0.3, off.

    LARP's code; less the entropy of the targets, so that a discriminator that has won still has a loss near 0. The
    noise comes from torch's global generator, which the trainer seeds for each step.
    """

    def divergence(rightly: Tensor) -> Tensor:
        off = (0.15 * torch.randn_like(rightly).abs()).clamp(max=0.3)
        entropy = -torch.xlogy(off, off) - torch.xlogy(1 - off, 1 - off)
        return (F.softplus(-rightly) + off * rightly - entropy).mean()

    return 0.5 * (divergence(real.float()) + divergence(-fake.float()))


GAMES: dict[str, AdversarialGame] = {
    "hinge": AdversarialGame(hinge_discriminator, hinge_generator),  # Lim & Ye 2017, arXiv 1705.02894
    "non-saturating": AdversarialGame(non_saturating_discriminator, non_saturating_generator),  # Goodfellow et al. 2014
    "hinge-non-saturating": AdversarialGame(hinge_discriminator, non_saturating_generator),  # VidTok's code
    "non-saturating-smooth": AdversarialGame(smoothed_discriminator, non_saturating_generator),
}


def gradient_penalty(logits: Tensor, real: Tensor) -> Tensor:
    """R1: half the squared gradient of the verdict on real videos, per video (Mescheder et al. 2018, arXiv 1801.04406).

    `logits` come from `real`, which must require a gradient; the result has one to the discriminator.
    """
    (slope,) = torch.autograd.grad(logits.float().sum(), real, create_graph=True)
    return 0.5 * slope.float().flatten(1).square().sum(dim=1).mean()


class LeCam(nn.Module):
    """Verdicts may not run away from the moving average of the other side's (Tseng et al. 2021, arXiv 2104.03310).

    The one-sided form of MAGVIT's and LARP's code: relu(D(real) - average of D(fake))² and the other way round.
    """

    real: Tensor
    fake: Tensor

    def __init__(self, *, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """Logits of real and fake patches -> the term; the averages move along."""
        real, fake = real.float().mean(), fake.float().mean()
        term = F.relu(real - self.fake).square() + F.relu(self.real - fake).square()
        verdicts = torch.stack([real.detach(), fake.detach()])
        if torch.distributed.is_available() and torch.distributed.is_initialized():  # all processes judge equal shares
            torch.distributed.all_reduce(verdicts)
            verdicts /= torch.distributed.get_world_size()
        self.real.lerp_(verdicts[0], 1 - self.decay)
        self.fake.lerp_(verdicts[1], 1 - self.decay)
        return term


def feature_matching(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Mean absolute difference of a discriminator's features, summed over its layers (pix2pixHD, arXiv 1711.11585,
    equation 4)."""
    return torch.stack([(one.detach() - other).float().abs().mean() for one, other in zip(real, fake)]).sum()


# teachers


def distillation(predicted: Tensor, features: Tensor) -> Tensor:
    """1 - cosine between predicted and a teacher's features, `… d` each (VQ-KD; BEiT v2, arXiv 2208.06366)."""
    return 1 - F.cosine_similarity(predicted.float(), features.detach().float(), dim=-1).mean()
