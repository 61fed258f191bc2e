"""How sure a distance between two sets is: spread by leaving samples out, the limit of many samples, the noise floor.

A bootstrap draws with replacement, and repeated samples lower the spread of a set: bootstrapped Fréchet distances lie
above the true one, and their interval excludes the very value it is for. Everything here draws without replacement.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Distance = Callable[[Tensor, Tensor], float]
FRACTIONS = tuple(0.25 + 0.75 * step / 14 for step in range(15))
NORMAL_95 = 1.959963984540054


@dataclass(frozen=True)
class Spread:
    """Standard deviation of a distance, and its 95 % interval, over what other draws of the same size would give."""

    value: float
    deviation: float
    method: str
    repeats: int

    @property
    def interval(self) -> tuple[float, float]:
        half = NORMAL_95 * self.deviation
        return self.value - half, self.value + half


@dataclass(frozen=True)
class Limit:
    """A distance extrapolated to infinitely many samples, and how much of the measured one is bias."""

    value: float
    slope: float  # what the measured distance is above `value`


def delete_d_jackknife(
    distance: Distance,
    real: Tensor,
    fake: Tensor,
    *,
    generator: torch.Generator,
    repeats: int = 50,
    groups: tuple[Sequence[str], Sequence[str]] | None = None,
) -> Spread:
    """Spread of ``distance(real, fake)`` from random halves (Shao and Wu 1989), centred on the value of all samples.

    Args:
        real, fake: ``n d`` features, at least 4 samples (or groups) each.
        repeats: how many pairs of halves are drawn.
        groups: for each row its video, where a video has several rows; whole videos are left out then.
    """
    of_real, of_fake = groups or (range(len(real)), range(len(fake)))
    values = torch.tensor(
        [
            distance(
                real[_drawn(of_real, 0.5, generator=generator)],
                fake[_drawn(of_fake, 0.5, generator=generator)],
            )
            for _ in range(repeats)
        ],
        dtype=torch.float64,
    )
    # sqrt(m / (n - m)) with m of n kept: with halves the spread of the subsets is the spread that is looked for
    kept, count = _kept(of_real, 0.5)
    deviation = float(values.std()) * math.sqrt(kept / (count - kept))
    return Spread(distance(real, fake), deviation, "delete-half-jackknife", repeats)


def limit_with_spread(
    distance: Distance,
    real: Tensor,
    fake: Tensor,
    *,
    generator: torch.Generator,
    repeats: int = 50,
    groups: tuple[Sequence[str], Sequence[str]] | None = None,
) -> tuple[Limit, Spread]:
    """`extrapolate`, and its spread over random halves in which the whole extrapolation is done again.

    How well the points lie on their line says nothing of the spread: all come from the same samples. The shares of a
    half are drawn more coarsely than those of all samples, so the interval is wider than it need be, by up to a half.
    Costs as many distances as there are `FRACTIONS`, for each of the ``repeats`` halves.
    """
    names: tuple[Sequence[str], Sequence[str]] = groups or (
        tuple(map(str, range(len(real)))),
        tuple(map(str, range(len(fake)))),
    )
    limit = extrapolate(distance, real, fake, generator=generator, groups=names)
    values = []
    for _ in range(repeats):
        halves = [_drawn(one, 0.5, generator=generator) for one in names]
        of_real, of_fake = (
            tuple(one[int(row)] for row in half.tolist()) for one, half in zip(names, halves, strict=True)
        )
        half = extrapolate(distance, real[halves[0]], fake[halves[1]], generator=generator, groups=(of_real, of_fake))
        values.append(half.value)
    kept, count = _kept(names[0], 0.5)
    deviation = float(torch.tensor(values, dtype=torch.float64).std()) * math.sqrt(kept / (count - kept))
    return limit, Spread(limit.value, deviation, "line over 1/N, delete-half-jackknife", repeats)


def extrapolate(
    distance: Distance,
    real: Tensor,
    fake: Tensor,
    *,
    generator: torch.Generator,
    fractions: Sequence[float] = FRACTIONS,
    groups: tuple[Sequence[str], Sequence[str]] | None = None,
) -> Limit:
    """The distance of infinitely many samples: a straight line over 1 / N, at 0 (Chong and Forsyth 2020, section 4).

    Each point is the distance of a random share of both sets, so the two may differ in size.
    """
    of_real, of_fake = groups or (range(len(real)), range(len(fake)))
    values = [
        distance(
            real[_drawn(of_real, fraction, generator=generator)],
            fake[_drawn(of_fake, fraction, generator=generator)],
        )
        for fraction in fractions
    ]
    y = torch.tensor(values, dtype=torch.float64)
    # as much as was really drawn: few videos make coarse shares
    shares = [[kept / count for kept, count in (_kept(one, part) for one in (of_real, of_fake))] for part in fractions]
    x = (1 / torch.tensor(shares, dtype=torch.float64)).mean(dim=1)
    centred = x - x.mean()
    slope = float((centred * y).sum() / centred.square().sum())
    value = float(y.mean()) - slope * float(x.mean())
    return Limit(value, slope)


def split_half_floor(
    distance: Distance,
    real: Tensor,
    *,
    generator: torch.Generator,
    repeats: int = 5,
    groups: Sequence[str] | None = None,
) -> float:
    """Mean distance between two halves of the real samples: what a perfect generator would score at half the number."""
    of_real = groups or range(len(real))
    total = 0.0
    for _ in range(repeats):
        half = _drawn(of_real, 0.5, generator=generator)
        other = torch.ones(len(real), dtype=torch.bool)
        other[half] = False
        total += distance(real[half], real[other])
    return total / repeats


def _kept(groups: Sequence[object], fraction: float) -> tuple[int, int]:
    count = len(set(groups))
    return max(2, round(fraction * count)), count


def _drawn(groups: Sequence[object], fraction: float, *, generator: torch.Generator) -> Tensor:
    """Row numbers of a random share of the groups."""
    names = list(dict.fromkeys(groups))
    kept, count = _kept(groups, fraction)
    if count < 4:
        raise ValueError(f"expected at least 4 videos to draw halves from, got {count}; add videos")
    chosen = {names[place] for place in torch.randperm(count, generator=generator)[:kept].tolist()}
    return torch.tensor([row for row, name in enumerate(groups) if name in chosen])
