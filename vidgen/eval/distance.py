"""Measures distances between two sets of features, each with its spread, and refuses sets that make none."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vidgen.eval.distance_report import DistanceReport
from vidgen.eval.features import FeatureSet, check_same_conditions
from vidgen.eval.frechet import frechet_distance
from vidgen.eval.frechet_uncertainty import (
    NORMAL_95,
    Limit,
    Spread,
    delete_d_jackknife,
    extrapolate,
    split_half_floor,
)
from vidgen.eval.mean_discrepancy import JEDI, KID, PolynomialKernel, kernel_distance
from vidgen.eval.protocol import FeatureProtocol

Kind = Literal["frechet", "limit", "kernel", "jedi"]
# What users write; how the result is called follows from the network.
METRICS: dict[str, Kind] = {
    "fvd": "frechet",
    "fid": "frechet",
    "fd": "frechet",
    "fvd_inf": "limit",
    "fid_inf": "limit",
    "fd_inf": "limit",
    "kvd": "kernel",
    "kid": "kernel",
    "kd": "kernel",
    "jedi": "jedi",
}
JEDI_SCALE = 100.0
LEAST_VIDEOS = 8


@dataclass(frozen=True)
class Measure:
    """A distance between rows of features, and the entry `estimator` that a result has for it."""

    distance: Callable[[Tensor, Tensor], float]
    estimator: dict[str, Any]


def measures(ddof: int) -> dict[Kind, Measure]:
    """One of each kind; `ddof` is of the covariance in Fréchet distances."""
    frechet = Measure(
        lambda real, fake: frechet_distance(real, fake, ddof=ddof), {"frechet": "nuclear-norm-fp64", "ddof": ddof}
    )
    return {
        "frechet": frechet,
        "limit": frechet,
        "kernel": Measure(kernel_distance, _of_kernel(KID, "unbiased", 1.0)),
        "jedi": Measure(
            lambda real, fake: JEDI_SCALE * kernel_distance(real, fake, kernel=JEDI, biased=True),
            _of_kernel(JEDI, "biased", JEDI_SCALE),
        ),
    }


def measure_distance(
    real: FeatureSet,
    fake: FeatureSet,
    *,
    metrics: tuple[str, ...],
    protocol: FeatureProtocol | None = None,
    overrides: dict[str, Any] | None = None,
    ddof: int = 1,
    allow_small_n: bool = False,
    seed: int = 0,
    repeats: int = 20,
) -> DistanceReport:
    """Distances between two sets, each with its spread, and the noise floor of the real set.

    Args:
        metrics: names out of `METRICS`; "fvd" is called by what the network makes of it ("fd.tiny").
        protocol: gives `ddof`, the repeats of the fake set, and whether few samples are its own rule.
        overrides: conditions in which `protocol` differs from the preset of its name.
        ddof: of the covariance, where there is no protocol.
        allow_small_n: accept no more rows than features under a published name, which then ends in `_biased`.
        repeats: subsets drawn for each spread.

    Raises:
        ValueError: sets that do not compare, too few videos, too few rows for a published name, unknown metrics.
    """
    started = time.perf_counter()
    _check(real, fake, metrics)
    kinds: list[Kind] = list(dict.fromkeys(METRICS[metric] for metric in metrics))
    rows, width = min(len(real.features), len(fake.features)), real.features.shape[1]
    names = real.conditions["names"]
    suffix = ""
    # surrogates and presets that are themselves about few samples may be biased as they like
    if rows <= width and names["f"] in ("fvd", "fid") and not (protocol is not None and protocol.small_n):
        if "frechet" in kinds and not allow_small_n:
            raise ValueError(
                f"{names['f'].upper()} of {rows} samples in {width} dimensions is mostly bias; use at least "
                f"{width + 1} samples (2048 are usual) or `vidgen eval kvd`, or accept a number named "
                f"{names['f']}_biased with --allow-small-n"
            )
        suffix = "_biased"
    called: dict[Kind, str] = {
        "frechet": names["f"] + suffix,
        "limit": names["f"] + "_inf",
        "kernel": names["k"],
        "jedi": f"jedi.{real.conditions['extractor']['name']}",
    }
    known = measures(ddof if protocol is None else protocol.ddof)
    pair = _Pair(real, fake, seed=seed, repeats=repeats, draws=1 if protocol is None else protocol.repeats)
    results = []
    for kind in kinds:
        value, uncertainty = pair.limit(known[kind]) if kind == "limit" else pair.value(known[kind])
        results.append(
            {
                "metric": called[kind],
                "value": value,
                "higher_is_better": False,
                "uncertainty": uncertainty | {"unit": "video", "seed": seed},
                "estimator": known[kind].estimator,
            }
        )
    bias = {
        "n_real": len(real.features),
        "n_fake": len(fake.features),
        "d": width,
        "rank_ok": rows > width,
        "real_vs_real_split_half": pair.floor(known[kinds[0]]),
    }
    selfcheck = {"fd_xx": known["frechet"].distance(real.features, real.features.flip(0))}
    seconds = time.perf_counter() - started
    return DistanceReport(results, bias, real, fake, protocol, overrides or {}, selfcheck, seconds)


class _Pair:
    """The two sets, and the ways to look at them; every look draws from the same seed."""

    def __init__(self, real: FeatureSet, fake: FeatureSet, *, seed: int, repeats: int, draws: int) -> None:
        self.real, self.fake, self.seed, self.repeats, self.draws = real, fake, seed, repeats, draws
        self.groups = (real.videos, fake.videos)

    def value(self, measure: Measure) -> tuple[float, dict[str, Any]]:
        """Where the protocol asks for several draws of the fake set, their mean and spread."""
        if self.draws == 1:
            spread = delete_d_jackknife(
                measure.distance,
                self.real.features,
                self.fake.features,
                generator=self._generator(),
                repeats=self.repeats,
                groups=self.groups,
            )
        else:
            names = list(dict.fromkeys(self.fake.videos))
            parts = [self.fake.of_videos(names[first :: self.draws]) for first in range(self.draws)]
            values = [measure.distance(self.real.features, part.features) for part in parts]
            drawn = torch.tensor(values, dtype=torch.float64)
            spread = Spread(float(drawn.mean()), float(drawn.std()), "repeats", self.draws)
        entry = {"method": spread.method, "reps": spread.repeats}
        return spread.value, entry | {"sd": spread.deviation, "ci95": list(spread.interval)}

    def limit(self, measure: Measure) -> tuple[float, dict[str, Any]]:
        limit: Limit = extrapolate(
            measure.distance,
            self.real.features,
            self.fake.features,
            generator=self._generator(),
            groups=self.groups,
        )
        half = NORMAL_95 * limit.deviation
        entry = {"method": "line over 1/N", "sd": limit.deviation, "ci95": [limit.value - half, limit.value + half]}
        return limit.value, entry | {"slope": limit.slope}

    def floor(self, measure: Measure) -> float:
        return split_half_floor(
            measure.distance, self.real.features, generator=self._generator(), groups=self.real.videos
        )

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)


def _check(real: FeatureSet, fake: FeatureSet, metrics: tuple[str, ...]) -> None:
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown or not metrics:
        raise ValueError(f"there is no metric {', '.join(unknown) or 'given'}; there are {', '.join(METRICS)}")
    check_same_conditions(real, fake)
    for which, one in (("real", real), ("fake", fake)):
        if one.num_videos < LEAST_VIDEOS:
            raise ValueError(
                f"expected at least {LEAST_VIDEOS} {which} videos, got {one.num_videos}; a distance is between sets"
            )


def _of_kernel(kernel: PolynomialKernel, mmd: str, scale: float) -> dict[str, Any]:
    return {"mmd": mmd, "degree": kernel.degree, "constant": kernel.constant, "scale": scale}
