"""Step rules of the samplers: masked decoding, token sampling; flow matching comes from diffusers."""

from vidgen.schedulers.masked import MaskedTokenScheduler, MaskedTokenSchedulerOutput
from vidgen.schedulers.sampling import SamplingRule

__all__ = ["MaskedTokenScheduler", "MaskedTokenSchedulerOutput", "SamplingRule"]
