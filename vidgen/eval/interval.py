"""How sure a measured share is: the Wilson score interval."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple


class Interval(NamedTuple):
    """Lower and upper bound of a proportion, both in [0, 1]."""

    low: float
    high: float


def wilson_interval(successes: int, trials: int, *, level: float = 0.95) -> Interval:
    """Score interval of ``successes`` out of ``trials`` (Wilson 1927).

    Unlike the normal approximation it stays inside [0, 1] and has width at 0 and at ``trials`` successes.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"expected 0 <= successes <= trials and at least one trial, got {successes} of {trials}")
    return wilson_around(successes / trials, trials, level=level)


def wilson_around(share: float, trials: int, *, level: float) -> Interval:
    """The same for a mean of shares, which need not be a whole number of the ``trials`` behind it."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    shrink = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def share(right: Sequence[bool]) -> dict[str, float]:
    """How many of the trials are right, their share and its 95 % interval, for JSON."""
    interval = wilson_interval(sum(right), len(right))
    return {"right": sum(right), "share": sum(right) / len(right), "low": interval.low, "high": interval.high}
