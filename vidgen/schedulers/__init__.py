"""Step rules of the samplers: masked decoding, token by token; flow matching comes from diffusers."""

from vidgen.schedulers.autoregressive import AutoregressiveScheduler, AutoregressiveSchedulerOutput
from vidgen.schedulers.masked import MaskedTokenScheduler, MaskedTokenSchedulerOutput
from vidgen.schedulers.sampling import SamplingRule

__all__ = [
    "AutoregressiveScheduler",
    "AutoregressiveSchedulerOutput",
    "MaskedTokenScheduler",
    "MaskedTokenSchedulerOutput",
    "SamplingRule",
]
