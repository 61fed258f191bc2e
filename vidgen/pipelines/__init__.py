"""Prompt to video: one pipeline for each family of generators, all with the same call."""

from vidgen.nn.reduced_attention import TokenReduction
from vidgen.pipelines.autoregressive import AutoregressiveVideoPipeline
from vidgen.pipelines.base import VideoPipeline
from vidgen.pipelines.diffusion import DiffusionVideoPipeline
from vidgen.pipelines.masked import MaskedVideoPipeline
from vidgen.pipelines.output import VideoPipelineOutput

PIPELINES = (MaskedVideoPipeline, DiffusionVideoPipeline, AutoregressiveVideoPipeline)

__all__ = [
    "PIPELINES",
    "AutoregressiveVideoPipeline",
    "DiffusionVideoPipeline",
    "MaskedVideoPipeline",
    "TokenReduction",
    "VideoPipeline",
    "VideoPipelineOutput",
]
