"""Token-by-token (or group-by-group) decoding: which positions come next and where guidance acts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor


@dataclass
class AutoregressiveSchedulerOutput(BaseOutput):
    """`prev_sample`: the tokens so far with the new one, `b m q` or `b m c`."""

    prev_sample: Tensor


class AutoregressiveScheduler(SchedulerMixin, ConfigMixin):
    """Appends one token a step, or one group of tokens.

    Args:
        guidance_until: share of the sequence after which guidance stops (LlamaGen's `cfg_interval`); 1 = never.
        guidance_from: share of the sequence before which there is none.
    """

    order = 1  # diffusers: one model call a step

    @register_to_config
    def __init__(self, guidance_until: float = 1.0, guidance_from: float = 0.0) -> None:
        if not 0 <= guidance_until <= 1:
            raise ValueError(f"guidance_until must lie in [0, 1], got {guidance_until}")
        if not 0 <= guidance_from <= 1:
            raise ValueError(f"guidance_from must lie in [0, 1], got {guidance_from}")
        self.timesteps = torch.arange(0)
        self.length = 0

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: torch.device | str | None = None,
        *,
        sizes: Sequence[int] | None = None,
    ) -> None:
        """One step for each token, or for each group of `sizes` tokens; a timestep is its first position."""
        sizes = (1,) * num_inference_steps if sizes is None else sizes
        if len(sizes) != num_inference_steps:
            raise ValueError(f"expected the sizes of {num_inference_steps} groups, got {len(sizes)}")
        ends = torch.tensor(sizes, device=device).cumsum(dim=0)
        self.timesteps, self.length = ends - torch.tensor(sizes, device=device), sum(sizes)

    def guidance_at(self, position: int, guidance_scale: float) -> float:
        """Guidance scale at a position of the sequence."""
        first, end = (share * self.length for share in (self.config.guidance_from, self.config.guidance_until))
        return guidance_scale if first <= position < end else 1.0

    def step(
        self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, *, given: Tensor, unknown: Tensor
    ) -> AutoregressiveSchedulerOutput:
        """Append the predicted tokens, or the given ones where they are known.

        Args:
            model_output: prediction `b m q` or `b m c`.
            timestep: position of the first of them; equals the length of `sample`.
            sample: tokens so far.
            given, unknown: the tokens that are given here, and `b m` bool where they are not.
        """
        if int(timestep) != sample.shape[1]:
            raise ValueError(f"expected the token at position {sample.shape[1]}, got one for position {int(timestep)}")
        token = torch.where(unknown.unsqueeze(-1), model_output.to(given.dtype), given)
        return AutoregressiveSchedulerOutput(prev_sample=torch.cat([sample, token], dim=1))
