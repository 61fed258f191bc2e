"""Measures distances between two sets of features, each with its spread, and refuses sets that make none."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vidgen.eval.distance_report import DistanceReport
from vidgen.eval.features import FeatureSet, check_same_conditions
from vidgen.eval.frechet import frechet_distance
from vidgen.eval.frechet_uncertainty import (
    Spread,
    delete_d_jackknife,
    limit_with_spread,
    split_half_floor,
)
from vidgen.eval.mean_discrepancy import JEDI, KID, PolynomialKernel, kernel_distance
from vidgen.eval.protocol import FeatureProtocol, differing_conditions

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
ESTIMATED: dict[str, tuple[Kind, ...]] = {
    "frechet": ("frechet", "limit"),
    "polynomial-mmd-unbiased": ("kernel",),
    "polynomial-mmd-biased": ("jedi",),
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
        ValueError: sets that do not compare or were not made by `protocol`, another distance or number of videos than
            it takes, too few videos, too few rows for a published name, unknown metrics.
    """
    started = time.perf_counter()
    kinds = kinds_of(metrics)
    check_same_conditions(real, fake)
    if protocol is not None:
        _check_protocol(real, protocol)
    rows, width = min(len(real.features), len(fake.features)), real.features.shape[1]
    names = real.conditions["names"]
    check_numbers(
        kinds,
        videos=(real.num_videos, fake.num_videos),
        rows=rows,
        width=width,
        name=names["f"],
        protocol=protocol,
        allow_small_n=allow_small_n,
    )
    called: dict[Kind, str] = {
        "frechet": names["f"] + ("_biased" if _is_mostly_bias(names["f"], rows, width, protocol) else ""),
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
        limit, spread = limit_with_spread(
            measure.distance,
            self.real.features,
            self.fake.features,
            generator=self._generator(),
            repeats=self.repeats,
            groups=self.groups,
        )
        entry = {"method": spread.method, "reps": spread.repeats, "sd": spread.deviation}
        return limit.value, entry | {"ci95": list(spread.interval), "slope": limit.slope}

    def floor(self, measure: Measure) -> float:
        return split_half_floor(
            measure.distance, self.real.features, generator=self._generator(), groups=self.real.videos
        )

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)


def kinds_of(metrics: tuple[str, ...]) -> list[Kind]:
    """What the names out of `METRICS` stand for, each once. ValueError for others."""
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown or not metrics:
        raise ValueError(f"there is no metric {', '.join(unknown) or 'given'}; there are {', '.join(METRICS)}")
    return list(dict.fromkeys(METRICS[metric] for metric in metrics))


def check_numbers(
    kinds: list[Kind],
    *,
    videos: tuple[int, int],
    rows: int,
    width: int,
    name: str,
    protocol: FeatureProtocol | None,
    allow_small_n: bool,
) -> None:
    """ValueError when there are not the videos that `protocol` takes, or too few for a distance or for its name.

    Also when the first of `kinds` is not what `protocol` estimates; the others stand beside it. A surrogate of FVD
    (fd.<name>) has no published number to mistake, and serves for every kind.

    Args:
        videos: how many real and fake ones there are.
        rows: of features, in the smaller set.
        width: features of a row.
        name: what a Fréchet distance in this space is called.
    """
    wanted = (None, None)
    if protocol is not None:
        if kinds[0] not in ESTIMATED[protocol.estimator] and not protocol.metric.startswith("fd."):
            raise ValueError(
                f"{protocol.name} is about {protocol.metric} (estimator {protocol.estimator}), and a distance of the "
                f"kind {kinds[0]} was asked for; choose a protocol of that kind"
            )
        fakes = None if protocol.num_fake is None else protocol.num_fake * protocol.repeats
        wanted = (protocol.num_real, fakes)
    for which, count, exact in zip(("real", "fake"), videos, wanted, strict=True):
        if exact is not None and count != exact:
            assert protocol is not None
            raise ValueError(
                f"{protocol.name} takes {exact} {which} videos, got {count}; draw as many, or take what is there with "
                "--allow-small-n (a protocol whose num_real and num_fake are None)"
            )
        if count < LEAST_VIDEOS:
            raise ValueError(
                f"expected at least {LEAST_VIDEOS} {which} videos, got {count}; a distance is between sets"
            )
    if {"frechet", "limit"} & set(kinds) and not allow_small_n and _is_mostly_bias(name, rows, width, protocol):
        raise ValueError(
            f"{name.upper()} of {rows} samples in {width} dimensions is mostly bias; use at least {width + 1} samples "
            f"(2048 are usual) or `vidgen eval kvd`, or accept a number named {name}_biased with --allow-small-n"
        )


def _is_mostly_bias(name: str, rows: int, width: int, protocol: FeatureProtocol | None) -> bool:
    """Surrogates, and presets that are themselves about few samples, may be biased as they like."""
    small_by_rule = protocol is not None and protocol.small_n
    return rows <= width and name in ("fvd", "fid") and not small_by_rule


def _check_protocol(features: FeatureSet, protocol: FeatureProtocol) -> None:
    """ValueError unless the features were made with the clips, the preprocessing and the network of `protocol`."""
    made = {name: features.conditions[name] for name in ("clip", "preprocess")}
    wanted = json.loads(json.dumps({"clip": asdict(protocol.clip), "preprocess": asdict(protocol.preprocess)}))
    made["extractor"], wanted["extractor"] = features.conditions["extractor"]["name"], protocol.extractor
    differences = differing_conditions(wanted, made)
    if differences:
        raise ValueError(
            f"these features are not those of {protocol.name}: {'; '.join(differences[:4])}; extract them by it, or "
            "measure without a protocol"
        )
    protocol.check_weights(features.conditions["extractor"]["weights_sha256"])


def _of_kernel(kernel: PolynomialKernel, mmd: str, scale: float) -> dict[str, Any]:
    return {"mmd": mmd, "degree": kernel.degree, "constant": kernel.constant, "scale": scale}
