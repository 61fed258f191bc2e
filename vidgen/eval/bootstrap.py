"""How sure a reconstruction score is: paired bootstrap over clips (Efron and Tibshirani 1993, chapters 6 and 13).

Clips are drawn with replacement and every score is computed again from the sums of the drawn clips, so pooled scores
and means over frames get the right interval too. Frames of a clip are no independent samples and stay together. For the
difference of two tokenizers the same clips are drawn for both. Clips that could not be scored are not drawn. Never use
it for a Fréchet distance, which is biased upwards by repeated samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vidgen.eval.metric import PairedMetric

ClipSums = Mapping[str, float]  # of one clip; a clip that could not be scored has zeros


@dataclass(frozen=True)
class Bootstrap:
    """How often and from which seed; written into every result."""

    resamples: int = 2000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < 100 or not 0 < self.level < 1:
            raise ValueError(f"expected 100 resamples or more and a level in (0, 1), got {self}")

    def to_json(self) -> dict[str, Any]:
        settings = {"level": self.level, "resamples": self.resamples, "seed": self.seed}
        return {"method": "paired bootstrap over clips, percentile", "unit": "clip"} | settings

    def draws(self, clips: int) -> np.ndarray:
        """How often each clip is drawn in each resample, ``resamples clips``; the same for scores of the same clips."""
        generator = np.random.default_rng(self.seed)
        return generator.multinomial(clips, np.full(clips, 1 / clips), size=self.resamples).astype(np.float64)

    def interval(self, samples: np.ndarray) -> tuple[float, float]:
        tail = (1 - self.level) / 2
        low, high = np.nanquantile(samples, [tail, 1 - tail])
        return float(low), float(high)


@dataclass(frozen=True)
class Estimate:
    """A value and its interval; no interval where fewer than two clips have a score."""

    value: float
    low: float | None
    high: float | None

    def to_json(self) -> dict[str, float | None]:
        return {"value": self.value, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        if self.low is None or self.high is None or self.low == self.high:
            return f"{self.value:.4g}"
        # as many decimals as the interval is wide: 31.42 ± 0.05, not 31.4213 ± 0.0496
        decimals = max(0, 1 - int(np.floor(np.log10((self.high - self.low) / 2))))
        return f"{self.value:.{decimals}f} [{self.low:.{decimals}f}, {self.high:.{decimals}f}]"


def estimates(metric: PairedMetric, clips: Sequence[ClipSums], settings: Bootstrap) -> dict[str, Estimate]:
    """Every score of ``metric`` over all ``clips``, with its interval; empty when no clip could be scored."""
    sums = _arrays(metric, clips)
    if not len(sums[metric.weight]):
        return {}
    points = metric.scores({term: values.sum() for term, values in sums.items()})
    if len(sums[metric.weight]) < 2:
        return {key: Estimate(float(value), None, None) for key, value in points.items()}
    samples = _resampled(metric, sums, settings)
    return {key: Estimate(float(value), *settings.interval(samples[key])) for key, value in points.items()}


def differences(
    metric: PairedMetric, ours: Sequence[ClipSums], theirs: Sequence[ClipSums], settings: Bootstrap
) -> dict[str, Estimate]:
    """Every score of ``ours`` minus ``theirs``, for the same clips in the same order, with its interval.

    Raises:
        ValueError: another number of clips, or a clip that only one side could score.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"a paired difference needs the same clips on both sides, got {len(ours)} and {len(theirs)}")
    scored = [[clip[metric.weight] > 0 for clip in clips] for clips in (ours, theirs)]
    lonely = [number for number, (one, other) in enumerate(zip(*scored, strict=True)) if one != other]
    if lonely:
        raise ValueError(f"{metric.key}: {len(lonely)} clips were scored on one side only, such as number {lonely[0]}")
    first, second = _arrays(metric, ours), _arrays(metric, theirs)
    if not any(scored[0]):
        return {}
    points = [metric.scores({term: values.sum() for term, values in sums.items()}) for sums in (first, second)]
    values = {key: float(points[0][key] - points[1][key]) for key in points[0]}
    if sum(scored[0]) < 2:
        return {key: Estimate(value, None, None) for key, value in values.items()}
    samples = [_resampled(metric, sums, settings) for sums in (first, second)]
    return {
        key: Estimate(value, *settings.interval(samples[0][key] - samples[1][key])) for key, value in values.items()
    }


def _arrays(metric: PairedMetric, clips: Sequence[ClipSums]) -> dict[str, np.ndarray]:
    """The sums of the clips that could be scored."""
    scored = [clip for clip in clips if clip[metric.weight] > 0]
    return {term: np.array([clip[term] for clip in scored], dtype=np.float64) for term in metric.terms}


def _resampled(metric: PairedMetric, sums: dict[str, np.ndarray], settings: Bootstrap) -> dict[str, np.ndarray]:
    draws = settings.draws(len(sums[metric.weight]))
    return metric.scores({term: draws @ values for term, values in sums.items()})
