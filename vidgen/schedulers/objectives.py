"""What a diffusion transformer learns to predict, and how noisy its inputs are: rectified flow, or DDPM's ε and v."""

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

LEVELS = 1000.0  # diffusers counts noise levels in thousandths


class Objective(ABC):
    """Timesteps are diffusers': 0 is clean, 1000 is noise. They come as `b 1` or `b n` beside tokens `b n c`.

    Attributes:
        prediction_type: what diffusers' schedulers call the target.
    """

    prediction_type: str

    @abstractmethod
    def timesteps(self, draws: Tensor, *, tokens: int) -> Tensor:
        """Timesteps to train on, from standard normal draws of any shape, for videos of that many tokens."""

    @abstractmethod
    def noisy(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """The tokens at that noise level."""

    @abstractmethod
    def target(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """What the network should say of them."""


class FlowObjective(Objective):
    """x_σ = (1 - σ) x + σ ε and the velocity ε - x, with logit-normal σ (SD3, arXiv 2403.03206, section 3.1).

    Args:
        mean, std: of the logit of σ.
        shift_base_tokens: levels are shifted by √(tokens / this) (section 5.3.2): a larger video needs more noise to
            hide as much of it. 0 = no shift.
    """

    prediction_type: ClassVar[str] = "flow_prediction"

    def __init__(self, *, mean: float = 0.0, std: float = 1.0, shift_base_tokens: int = 0) -> None:
        self.mean, self.std, self.shift_base_tokens = mean, std, shift_base_tokens

    def shift(self, tokens: int) -> float:
        """α of `shifted` for a video of that many tokens."""
        return math.sqrt(tokens / self.shift_base_tokens) if self.shift_base_tokens else 1.0

    def timesteps(self, draws: Tensor, *, tokens: int) -> Tensor:
        return LEVELS * shifted(torch.sigmoid(self.mean + self.std * draws), self.shift(tokens))

    def noisy(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        level = timestep.unsqueeze(-1) / LEVELS
        return (1 - level) * clean + level * noise

    def target(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        return noise - clean


class DenoisingObjective(Objective):
    """x_t = √ᾱ x + √(1 - ᾱ) ε and one of ε (DDPM, arXiv 2006.11239) or v = √ᾱ ε - √(1 - ᾱ) x (arXiv 2202.00512).

    Args:
        prediction_type: "epsilon" or "v_prediction".
        schedule: arguments of diffusers' `DDPMScheduler`, which knows ᾱ; give the sampler's scheduler the same.
    """

    def __init__(self, prediction_type: str, schedule: dict[str, Any]) -> None:
        self.prediction_type = prediction_type
        self.kept = DDPMScheduler(**schedule).alphas_cumprod

    def timesteps(self, draws: Tensor, *, tokens: int) -> Tensor:
        uniform = 0.5 * (1 + torch.erf(draws / math.sqrt(2)))
        return (uniform * len(self.kept)).long().clamp(max=len(self.kept) - 1)

    def amplitudes(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Of tokens and noise, each with an axis for channels."""
        kept = self.kept.to(timestep.device)[timestep.long()].unsqueeze(-1)
        return kept.sqrt(), (1 - kept).sqrt()

    def noisy(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        of_clean, of_noise = self.amplitudes(timestep)
        return of_clean * clean + of_noise * noise

    def target(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        if self.prediction_type == "epsilon":
            return noise
        of_clean, of_noise = self.amplitudes(timestep)
        return of_clean * noise - of_noise * clean


def shifted(level: Tensor, shift: float) -> Tensor:
    """α σ / (1 + (α - 1) σ): more noise for α > 1, with 0 and 1 in place (SD3, equation 23)."""
    return level if shift == 1.0 else shift * level / (1 + (shift - 1) * level)


def objective_named(
    name: str, *, mean: float, std: float, shift_base_tokens: int, schedule: dict[str, Any] | None
) -> Objective:
    """The objective of a configuration: "flow", "epsilon" or "v_prediction"."""
    if name == "flow":
        return FlowObjective(mean=mean, std=std, shift_base_tokens=shift_base_tokens)
    if name in ("epsilon", "v_prediction"):
        return DenoisingObjective(name, schedule or {})
    raise ValueError(f"objective must be flow, epsilon or v_prediction, got {name!r}")
