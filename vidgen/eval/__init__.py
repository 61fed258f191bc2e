"""Scores and judges: how good a reconstruction is, and whether a generated video obeys its prompt.

The suites that run models lie in `vidgen.eval.recon_suite` and `vidgen.eval.obedience`; what is imported here needs
torch, numpy and PyAV only, so that training can use it.
"""

from vidgen.eval.codebook import CodebookUsage
from vidgen.eval.detector import DetectedObject, DetectedScene, Judgement, detect, judge
from vidgen.eval.frechet import frechet_distance
from vidgen.eval.interval import Interval, wilson_interval
from vidgen.eval.mean_discrepancy import kernel_distance
from vidgen.eval.metric import Metric, merge_across_ranks
from vidgen.eval.perceptual import (
    FrameDistance,
    LpipsDistance,
    SqueezeNetDistance,
    SqueezeNetFeatures,
    perceptual_distance,
)
from vidgen.eval.psnr import PooledPsnr, Psnr
from vidgen.eval.reconstruction import PerceptualScore
from vidgen.eval.ssim import MsSsim, Ssim
from vidgen.eval.temporal import Flicker, TemporalDifferencePsnr

__all__ = [
    "CodebookUsage",
    "DetectedObject",
    "DetectedScene",
    "Flicker",
    "FrameDistance",
    "Interval",
    "Judgement",
    "LpipsDistance",
    "Metric",
    "MsSsim",
    "PerceptualScore",
    "PooledPsnr",
    "Psnr",
    "SqueezeNetDistance",
    "SqueezeNetFeatures",
    "Ssim",
    "TemporalDifferencePsnr",
    "detect",
    "frechet_distance",
    "judge",
    "kernel_distance",
    "merge_across_ranks",
    "perceptual_distance",
    "wilson_interval",
]
