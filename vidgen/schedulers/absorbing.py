"""Absorbing discrete diffusion over a masked network: each token is decided by its own chance (D3PM, MDLM)."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  diffusers looks the loader up here
from torch import Tensor

from vidgen.nn.random import Generators, rand
from vidgen.schedulers.mask_schedule import RAMPS, check_schedule
from vidgen.schedulers.masked import MaskedTokenSchedulerOutput, MaskScheduler


class AbsorbingScheduler(MaskScheduler, ConfigMixin):
    """Ancestral sampling of the absorbing process (D3PM, arXiv 2107.03006; MDLM, arXiv 2406.07524, equation 7).

    With m the share of masked tokens, a masked token is decided in the step from t to s with probability
    (m_t - m_s) / m_t, whatever the others do; decided tokens stay.

    Args:
        schedule: m after progress r, see `masked_share`.
        remask: share of the decided tokens that a step masks again, at most as many as keep m (ReMDM's capped noise,
            arXiv 2503.00307); the others are decided so much faster.
        guidance_ramp: guidance is "constant", or grows with the steps ("linear").
    """

    @register_to_config
    def __init__(self, schedule: str = "linear", remask: float = 0.0, guidance_ramp: str = "constant") -> None:
        check_schedule(schedule)
        if not 0 <= remask < 1:
            raise ValueError(f"remask must be at least 0 and below 1, got {remask}")
        if guidance_ramp not in RAMPS:
            raise ValueError(f"unknown guidance_ramp {guidance_ramp!r}; one of {', '.join(RAMPS)}")
        self.timesteps = torch.arange(0)
        self.num_inference_steps = 0

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
        """One step; arguments as of `MaskedTokenScheduler.step`; confidence, realness, times, places play no part."""
        prediction = torch.where(masked.unsqueeze(-1), model_output.to(sample.dtype), sample)
        left = int(timestep)
        if left == 0:
            return MaskedTokenSchedulerOutput(prev_sample=prediction, masked=torch.zeros_like(masked))
        draws = rand(masked.shape, generators).to(masked.device)
        chances = [self.chances(left, count) for count in unknown.sum(dim=1).tolist()]
        stays, again = torch.tensor(chances, device=masked.device).T
        return MaskedTokenSchedulerOutput(
            prev_sample=prediction,
            masked=unknown & torch.where(masked, draws < stays[:, None], draws < again[:, None]),
        )

    def chances(self, left: int, total: int) -> tuple[float, float]:
        """Probability that a masked token stays masked, and that a decided one is masked again, before `left` steps."""
        steps = self.num_inference_steps
        before = self.masked_share(1 - (left + 1) / steps, total)
        after = self.masked_share(1 - left / steps, total)
        # more than this share of the decided tokens cannot be masked again and m still fall as it must
        again = min(self.config.remask, after / (1 - before)) if before < 1 else 0.0
        return (after - (1 - before) * again) / before, again
