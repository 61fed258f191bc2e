"""Parallel decoding of masked tokens: which predictions to keep at each step (MaskGIT, arXiv 2202.04200)."""

from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor

from vidgen.nn.random import Generators, gumbel, rand
from vidgen.schedulers.mask_schedule import RAMPS, check_schedule, guidance_at, masked_share

ORDERS = ("confidence", "random", "time", "frame")


@dataclass
class MaskedTokenSchedulerOutput(BaseOutput):
    """`prev_sample`: ids `b n q` or reals `b n c`; `masked`: `b n` bool, the tokens still to be decided."""

    prev_sample: Tensor
    masked: Tensor


class MaskScheduler(SchedulerMixin, ConfigMixin):
    """Numbered steps, shares of masked tokens and guidance: what the samplers of masked tokens have in common."""

    order = 1  # diffusers: one model call a step
    num_inference_steps: int

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Steps are numbered downwards, so that the last one is 0."""
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.arange(num_inference_steps - 1, -1, -1, device=device)

    def masked_share(self, progress: float, total: int) -> float:
        """Share of `total` unknown tokens that stays masked after `progress` in [0, 1]."""
        return masked_share(self.config.schedule, progress, total)

    def guidance_at(self, timestep: int | Tensor, guidance_scale: float) -> float:
        """Guidance scale of a step."""
        return guidance_at(self.config.guidance_ramp, guidance_scale, 1 - int(timestep) / self.num_inference_steps)

    def places(
        self,
        timestep: int | Tensor,
        *,
        masked: Tensor,
        unknown: Tensor,
        generators: Generators,
        confident: bool = True,
        times: Tensor | None = None,
    ) -> Tensor | None:
        """`b n` bool: the tokens that a step is going to decide; `None` where that depends on what is drawn for them.

        A sampler that knows them draws them alone. Arguments as of `step`; `confident`: predictions will have a
        log-probability.
        """
        return None


class MaskedTokenScheduler(MaskScheduler, ConfigMixin):
    """Keeps the most confident predictions and masks the rest again.

    Args:
        schedule: share of tokens masked after each step, see `masked_share`.
        choice_order: "confidence" (with Gumbel noise), "random", as always without a confidence, or "time": early
            tokens before late ones, those of one time at random (frame after frame: Genie, arXiv 2402.15391); "frame"
            is that order where no step decides tokens of two frames, but the last if the steps are too few.
        choice_temperature: of the Gumbel noise on the log-confidence, falling linearly to 0 (MAGVIT: 4.5).
        guidance_ramp: guidance is "constant", or grows with the steps ("linear").
    """

    @register_to_config
    def __init__(
        self,
        schedule: str = "cosine",
        choice_order: str = "confidence",
        choice_temperature: float = 4.5,
        guidance_ramp: str = "constant",
    ) -> None:
        check_schedule(schedule)
        if guidance_ramp not in RAMPS:
            raise ValueError(f"unknown guidance_ramp {guidance_ramp!r}; one of {', '.join(RAMPS)}")
        if choice_order not in ORDERS:
            raise ValueError(f"unknown choice_order {choice_order!r}; one of {', '.join(ORDERS)}")
        if choice_temperature < 0:
            raise ValueError(f"choice_temperature must be at least 0, got {choice_temperature}")
        self.timesteps = torch.arange(0)
        self.num_inference_steps = 0

    def places(
        self,
        timestep: int | Tensor,
        *,
        masked: Tensor,
        unknown: Tensor,
        generators: Generators,
        confident: bool = True,
        times: Tensor | None = None,
    ) -> Tensor | None:
        order = self.config.choice_order
        if confident and order == "confidence":
            return None
        if int(timestep) == 0:
            return masked
        score, allowed = rand(masked.shape, generators).to(masked.device), masked
        if order in ("time", "frame"):
            if times is None:
                raise ValueError(f"choice_order {order!r} needs the times of the tokens, as the pipelines give them")
            score = score - times
            if order == "frame":
                allowed = masked & (times == torch.where(masked, times, times.max()).amin(dim=1, keepdim=True))
        return allowed & ~lowest(score, masked, self.staying(timestep, masked, unknown))

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
        realness: Tensor | None = None,
        times: Tensor | None = None,
        places: Tensor | None = None,
    ) -> MaskedTokenSchedulerOutput:
        """One step.

        Args:
            model_output: predicted tokens at all positions, `b n q` or `b n c`; with `places`, at those alone.
            timestep: from `timesteps`.
            sample: tokens so far.
            masked: `b n` bool, positions of `sample` not decided yet.
            confidence: log-probability of each prediction, `b n`, or `None`.
            unknown: `b n` bool, all positions that were not given at the beginning.
            generators: one per sample.
            realness: `b n`, a critic's verdict on the prediction in place of the confidence; then tokens that were
                decided earlier may be masked again (Token-Critic, arXiv 2209.04439).
            times: `n` long, the frame that each token begins at, for the orders "time" and "frame".
            places: what the method of this name gave for this step, `b n` bool.
        """
        prediction = torch.where(masked.unsqueeze(-1), model_output.to(sample.dtype), sample)
        left = int(timestep)
        if realness is None and places is None:
            call = {"masked": masked, "unknown": unknown, "generators": generators, "times": times}
            places = self.places(timestep, confident=confidence is not None, **call)
        if places is not None:
            return MaskedTokenSchedulerOutput(prev_sample=prediction, masked=masked & ~places)
        if left == 0:
            return MaskedTokenSchedulerOutput(prev_sample=prediction, masked=torch.zeros_like(masked))
        confidence, candidates = (confidence, masked) if realness is None else (realness, unknown)
        noise = gumbel(masked.shape, generators, like=confidence)
        score = confidence + self.config.choice_temperature * left / self.num_inference_steps * noise
        stay = self.staying(timestep, candidates, unknown)
        return MaskedTokenSchedulerOutput(prev_sample=prediction, masked=lowest(score, candidates, stay))

    def staying(self, timestep: int | Tensor, candidates: Tensor, unknown: Tensor) -> Tensor:
        """`b` long: how many tokens stay masked after a step; each step decides at least one of the candidates."""
        stay = self.tokens_left(unknown, 1 - int(timestep) / self.num_inference_steps)
        return torch.minimum(stay, candidates.sum(dim=1) - 1).clamp(min=0)

    def tokens_left(self, unknown: Tensor, progress: float) -> Tensor:
        """`b` long: how many of the unknown tokens stay masked, rounded down."""
        counts = unknown.sum(dim=1)
        shares = [self.masked_share(progress, count) for count in counts.tolist()]
        return (counts * torch.tensor(shares, device=unknown.device)).floor().long()


def lowest(scores: Tensor, candidates: Tensor, counts: Tensor) -> Tensor:
    """`b n` bool: of each row's candidates the `counts` (`b`) with the lowest scores."""
    rank = scores.masked_fill(~candidates, float("inf")).argsort(dim=1).argsort(dim=1)
    return candidates & (rank < counts[:, None])
