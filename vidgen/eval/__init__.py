"""Scores and judges: how good a reconstruction is, and whether a generated video obeys its prompt.

The suites that run models lie in `vidgen.eval.recon_suite` and `vidgen.eval.obedience`; what is imported here needs
torch and numpy only, so that training can use it.
"""

from vidgen.eval.codebook import CodebookUsage
from vidgen.eval.detector import DetectedObject, DetectedScene, Judgement, detect, judge
from vidgen.eval.interval import Interval, wilson_interval
from vidgen.eval.metric import Metric, merge_across_ranks
from vidgen.eval.perceptual import (
    FrameDistance,
    LpipsDistance,
    SqueezeNetDistance,
    SqueezeNetFeatures,
    perceptual_distance,
)
from vidgen.eval.reconstruction import PerceptualScore, Psnr, Ssim

__all__ = [
    "CodebookUsage",
    "DetectedObject",
    "DetectedScene",
    "FrameDistance",
    "Interval",
    "Judgement",
    "LpipsDistance",
    "Metric",
    "PerceptualScore",
    "Psnr",
    "SqueezeNetDistance",
    "SqueezeNetFeatures",
    "Ssim",
    "detect",
    "judge",
    "merge_across_ranks",
    "perceptual_distance",
    "wilson_interval",
]
