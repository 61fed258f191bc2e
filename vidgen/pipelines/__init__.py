"""Prompt to video: one pipeline for each family of generators, all with the same call."""

from vidgen.nn.reduced_attention import TokenReduction
from vidgen.pipelines.autoregressive import AutoregressiveVideoPipeline
from vidgen.pipelines.base import VideoPipeline
from vidgen.pipelines.cascade import Cascade
from vidgen.pipelines.cascade_stages import Interpolation, SuperResolution
from vidgen.pipelines.diffusion import DiffusionVideoPipeline
from vidgen.pipelines.masked import MaskedVideoPipeline
from vidgen.pipelines.output import VideoPipelineOutput

PIPELINES = (MaskedVideoPipeline, DiffusionVideoPipeline, AutoregressiveVideoPipeline)

__all__ = [
    "PIPELINES",
    "AutoregressiveVideoPipeline",
    "Cascade",
    "DiffusionVideoPipeline",
    "Interpolation",
    "MaskedVideoPipeline",
    "SuperResolution",
    "TokenReduction",
    "VideoPipeline",
    "VideoPipelineOutput",
]
