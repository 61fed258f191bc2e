"""Parallel decoding of masked tokens: which predictions to keep at each step (MaskGIT, arXiv 2202.04200)."""

import math
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor

from vidgen.nn.random import Generators, gumbel, rand

SCHEDULES = ("cosine", "linear", "square", "sqrt")
ORDERS = ("confidence", "random")


@dataclass
class MaskedTokenSchedulerOutput(BaseOutput):
    """`prev_sample`: ids `b n q` or reals `b n c`; `masked`: `b n` bool, the tokens still to be decided."""

    prev_sample: Tensor
    masked: Tensor


class MaskedTokenScheduler(SchedulerMixin, ConfigMixin):
    """Keeps the most confident predictions and masks the rest again.

    Args:
        schedule: share of tokens masked after progress r: cosine cos(πr/2), linear 1 - r, square 1 - r², sqrt 1 - √r.
        choice_order: "confidence" (with Gumbel noise) or "random", as always without a confidence.
        choice_temperature: of the Gumbel noise on the log-confidence, falling linearly to 0 (MAGVIT: 4.5).
    """

    order = 1  # diffusers: one model call a step

    @register_to_config
    def __init__(
        self, schedule: str = "cosine", choice_order: str = "confidence", choice_temperature: float = 4.5
    ) -> None:
        if schedule not in SCHEDULES:
            raise ValueError(f"unknown schedule {schedule!r}; one of {', '.join(SCHEDULES)}")
        if choice_order not in ORDERS:
            raise ValueError(f"unknown choice_order {choice_order!r}; one of {', '.join(ORDERS)}")
        if choice_temperature < 0:
            raise ValueError(f"choice_temperature must be at least 0, got {choice_temperature}")
        self.timesteps = torch.arange(0)
        self.num_inference_steps = 0

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Steps are numbered downwards, so that the last one is 0."""
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.arange(num_inference_steps - 1, -1, -1, device=device)

    def masked_share(self, progress: float) -> float:
        """Share of the unknown tokens that stays masked after `progress` in [0, 1]."""
        match self.config.schedule:
            case "cosine":
                return math.cos(math.pi / 2 * progress)
            case "linear":
                return 1 - progress
            case "square":
                return 1 - progress**2
            case _:
                return 1 - progress**0.5

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        *,
        masked: Tensor,
        confidence: Tensor | None,
        unknown: Tensor,
        generators: Generators,
    ) -> MaskedTokenSchedulerOutput:
        """One step.

        Args:
            model_output: predicted tokens at all positions, `b n q` or `b n c`.
            timestep: from `timesteps`.
            sample: tokens so far.
            masked: `b n` bool, positions of `sample` not decided yet.
            confidence: log-probability of each prediction, `b n`, or `None`.
            unknown: `b n` bool, all positions that were not given at the beginning.
            generators: one per sample.
        """
        prediction = torch.where(masked.unsqueeze(-1), model_output.to(sample.dtype), sample)
        left = int(timestep)
        if left == 0:
            return MaskedTokenSchedulerOutput(prev_sample=prediction, masked=torch.zeros_like(masked))
        progress = 1 - left / self.num_inference_steps
        total = unknown.sum(dim=1)
        stay = (total * self.masked_share(progress)).floor().long()
        # each step decides at least one token
        stay = torch.minimum(stay, masked.sum(dim=1) - 1).clamp(min=0)
        if confidence is None or self.config.choice_order == "random":
            score = rand(masked.shape, generators, like=total.float())
        else:
            noise = gumbel(masked.shape, generators, like=confidence)
            score = confidence + self.config.choice_temperature * (1 - progress) * noise
        score = score.masked_fill(~masked, float("inf"))
        rank = score.argsort(dim=1).argsort(dim=1)
        return MaskedTokenSchedulerOutput(prev_sample=prediction, masked=masked & (rank < stay[:, None]))
