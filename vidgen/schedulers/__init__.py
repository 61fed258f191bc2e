"""Step rules of the samplers: masked decoding, token by token; flow matching comes from diffusers."""

from vidgen.schedulers.absorbing import AbsorbingScheduler
from vidgen.schedulers.autoregressive import AutoregressiveScheduler, AutoregressiveSchedulerOutput
from vidgen.schedulers.masked import MaskedTokenScheduler, MaskedTokenSchedulerOutput, MaskScheduler
from vidgen.schedulers.sampling import SamplingRule

__all__ = [
    "AbsorbingScheduler",
    "AutoregressiveScheduler",
    "AutoregressiveSchedulerOutput",
    "MaskScheduler",
    "MaskedTokenScheduler",
    "MaskedTokenSchedulerOutput",
    "SamplingRule",
]
