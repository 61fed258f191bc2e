"""Token-by-token decoding: the order of positions and where guidance acts."""

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
    """Appends one token a step, in the order of the spec.

    Args:
        guidance_until: share of the sequence after which guidance stops (LlamaGen's `cfg_interval`); 1 = never.
    """

    order = 1  # diffusers: one model call a step

    @register_to_config
    def __init__(self, guidance_until: float = 1.0) -> None:
        if not 0 <= guidance_until <= 1:
            raise ValueError(f"guidance_until must lie in [0, 1], got {guidance_until}")
        self.timesteps = torch.arange(0)

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """One step for each token; a timestep is the position of its token."""
        self.timesteps = torch.arange(num_inference_steps, device=device)

    def guidance_at(self, position: int, guidance_scale: float) -> float:
        """Guidance scale at a position of the sequence."""
        return guidance_scale if position < self.config.guidance_until * len(self.timesteps) else 1.0

    def step(
        self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, *, given: Tensor, unknown: Tensor
    ) -> AutoregressiveSchedulerOutput:
        """Append the predicted token, or the given one where it is known.

        Args:
            model_output: prediction `b 1 q` or `b 1 c`.
            timestep: position of the token; equals the length of `sample`.
            sample: tokens so far.
            given, unknown: the token that is given here, and `b 1` bool where it is not.
        """
        if int(timestep) != sample.shape[1]:
            raise ValueError(f"expected the token at position {sample.shape[1]}, got one for position {int(timestep)}")
        token = torch.where(unknown.unsqueeze(-1), model_output.to(given.dtype), given)
        return AutoregressiveSchedulerOutput(prev_sample=torch.cat([sample, token], dim=1))
