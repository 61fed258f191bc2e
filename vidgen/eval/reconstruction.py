"""The reconstruction scores by name: which object computes the score that a key names, and why one is left out."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vidgen.eval.metric import ClipMean, PairedFrameMean, PairedMetric
from vidgen.eval.perceptual import FrameDistance, lpips_nets, why_lpips_is_missing
from vidgen.eval.pixels import check_pair
from vidgen.eval.precision import without_tf32
from vidgen.eval.protocol import Preprocess, ReconstructionProtocol
from vidgen.eval.psnr import PooledPsnr, Psnr
from vidgen.eval.ssim import MsSsim, Ssim
from vidgen.eval.temporal import Flicker, TemporalDifferencePsnr
from vidgen.eval.vmaf import Vmaf, why_vmaf_is_missing
from vidgen.eval.warping import WarpingError

# What needs no weights, by key. These are never updated: `.empty()` gives one to use.
METRICS: dict[str, PairedMetric] = {
    metric.key: metric
    for metric in (
        Psnr(),
        Psnr(quantise="none"),
        Psnr(quantise="floor"),
        Psnr(ceiling="eps1e-8", quantise="none"),
        Psnr(colour="y601"),
        Psnr(colour="grey"),
        PooledPsnr(),
        ClipMean(PooledPsnr(), key="psnr.rgb.clip_global.cap100"),
        ClipMean(PooledPsnr(ceiling="eps1.2e-7"), key="psnr.rgb.clip_global.eps1.2e-7"),
        ClipMean(PooledPsnr(ceiling="eps1.2e-7", wrapped=True), key="psnr.rgb.clip_global.eps1.2e-7.wrapped"),
        Ssim(),
        Ssim(quantise="none"),
        Ssim(quantise="floor"),
        Ssim(colour="grey"),
        Ssim(window="uniform7.sample"),
        Ssim(pool=True, quantise="none"),
        MsSsim(),
        TemporalDifferencePsnr(),
        Flicker(),
        WarpingError(),
        Vmaf(),
    )
}


class PerceptualScore(PairedFrameMean):
    """The mean over frames of a perceptual distance; the key is the distance's. No rounding to 8 bits."""

    higher_is_better = False

    def __init__(self, distance: FrameDistance) -> None:
        super().__init__()
        self.distance = distance
        self.key, self.smallest_side = distance.key, distance.smallest_side

    def frame_scores(self, video: Tensor, reference: Tensor) -> Tensor:
        check_pair(video, reference, key=self.key, smallest_side=self.smallest_side)
        pieces = zip(video.split(4, dim=2), reference.split(4, dim=2), strict=True)
        with without_tf32():
            frames = [self.distance(_signed(a), _signed(b)) for a, b in pieces]
        return torch.cat(frames, dim=1)


def _signed(video: Tensor) -> Tensor:
    """Floats in [-1, 1] (clipped) of floats or uint8 levels."""
    return video.float() / 127.5 - 1 if video.dtype == torch.uint8 else video.float().clamp(-1, 1)


class Scores(NamedTuple):
    """Fresh metrics of a protocol, and the reason for each of its keys that has none."""

    metrics: list[PairedMetric]
    missing: dict[str, str]


def scores_for(protocol: ReconstructionProtocol, distances: Sequence[FrameDistance] = ()) -> Scores:
    """What computes the scores that ``protocol`` names.

    Args:
        distances: perceptual distances that have their weights; those that the protocol does not name are scored too.

    Raises:
        ValueError: a key that nothing computes, or that rounds in another way than the protocol says.
    """
    _check_levels(protocol)
    perceptual = {distance.key: PerceptualScore(distance) for distance in distances}
    metrics, missing = [], {}
    for key in dict.fromkeys([*protocol.metrics, *perceptual]):
        reason = why_missing(key, available=list(perceptual))
        if reason is not None:
            missing[key] = reason
            continue
        metric = perceptual[key] if key in perceptual else METRICS[key].empty()
        by_clip = protocol.pooling == "clip" and not isinstance(metric, ClipMean)
        metrics.append(ClipMean(metric) if by_clip else metric)
    return Scores(metrics, missing)


def _check_levels(protocol: ReconstructionProtocol) -> None:
    """ValueError where the preprocessing names levels that the keys of the scores do not."""
    steps = protocol.preprocess
    endings = {"round": "", "none": ".float", "floor": ".floor"}
    for key in protocol.metrics:
        found = next((ending for ending in (".float", ".floor") if key.endswith(ending)), "")
        if key in METRICS and found != endings[steps.quantise]:
            raise ValueError(
                f"{protocol.name} says quantise={steps.quantise!r}, and {key} rounds in another way; the ending of a "
                "key decides: none for round, .float for none, .floor for floor"
            )
    if steps.value_range != Preprocess.value_range:
        raise ValueError(f"{protocol.name} wants levels in {steps.value_range}; reconstructions are scored in 0…255")


def why_missing(key: str, *, available: Sequence[str]) -> str | None:
    """Why nothing computes ``key`` here; None when something does. ValueError for a key that does not exist."""
    if key in available:
        return None
    if key == Vmaf.key:
        return why_vmaf_is_missing()
    if key in METRICS:
        return None
    if key == "squeezenet.features":
        return "not computed: give the path of ImageNet SqueezeNet 1.0 weights (--squeezenet-weights FILE)"
    if (net := lpips_nets().get(key)) is not None:
        return why_lpips_is_missing(net)
    raise ValueError(f"no score is called {key!r}; there are {', '.join([*METRICS, *lpips_nets()])}")
