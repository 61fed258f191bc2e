"""What every score is: accumulate with update, join ranks with merge, read with compute.

Merging is exact: the same items in any order, split over any number of metrics, give bit-equal results.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self, TypeVar

import torch
from torch import Tensor


class ExactSum:
    """A sum of floats without rounding error, so that its value does not depend on the order of the terms.

    Keeps non-overlapping partial sums (Shewchuk 1997); ``value`` rounds once.
    """

    def __init__(self) -> None:
        self.partials: list[float] = []

    def add(self, term: float) -> None:
        kept = []
        for partial in self.partials:
            if abs(term) < abs(partial):
                term, partial = partial, term
            high = term + partial
            low = partial - (high - term)
            if low:
                kept.append(low)
            term = high
        self.partials = [*kept, term]

    def merge(self, other: "ExactSum") -> None:
        for partial in list(other.partials):
            self.add(partial)

    @property
    def value(self) -> float:
        return math.fsum(self.partials)


class Metric(ABC):
    """An accumulator of one score. Keys of ``compute`` carry the convention (``psnr.rgb.frame_mean.cap100``)."""

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Take in what ``other`` has seen, exactly as if this metric had seen it. ``other`` stays unchanged."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The scores so far; ValueError when nothing has been seen."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """All that was accumulated, as CPU tensors."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Replace what was accumulated by a ``state_dict`` of the same class."""

    @abstractmethod
    def empty(self) -> Self:
        """A metric of the same settings that has seen nothing."""


Sums = Mapping[str, Any]  # floats, or arrays of them with one entry a resampled data set


class PairedMetric(Metric):
    """A score that compares videos with their originals and follows from sums over what it has seen.

    Attributes:
        key: name of the score with its convention.
        terms: names of the sums.
        weight: the sum that is zero as long as there is nothing to score.
        smallest_side: frames with a shorter side cannot be scored.
        higher_is_better: None for numbers that only describe.
    """

    key: str
    terms: tuple[str, ...] = ("total", "count")
    weight = "count"
    smallest_side = 1
    higher_is_better: bool | None = True

    def __init__(self) -> None:
        self.sums = {term: ExactSum() for term in self.terms}

    @abstractmethod
    def update(self, video: Tensor, reference: Tensor, *, start: int = 0) -> None:
        """Count a piece of ``b`` videos, ``b 3 t h w`` twice: floats in [-1, 1] or uint8 levels.

        Args:
            start: index of the first frame in its clip; above 0 the piece continues the clips of the last update.

        Raises:
            ValueError: other shapes or types, values out of range, NaN, frames that are too small.
        """

    @abstractmethod
    def scores(self, sums: Sums) -> dict[str, Any]:
        """The scores that follow from sums; works on arrays too, entry by entry."""

    @property
    def has_seen(self) -> bool:
        return self.sums[self.weight].value > 0

    def compute(self) -> dict[str, float]:
        if not self.has_seen:
            raise ValueError(f"{self.key} has seen no frame that counts; call update first")
        return {key: float(score) for key, score in self.scores(self.values()).items()}

    def values(self) -> dict[str, float]:
        return {term: total.value for term, total in self.sums.items()}

    def merge(self, other: Self) -> None:
        for term, total in other.sums.items():
            self.sums[term].merge(total)

    def state_dict(self) -> dict[str, Tensor]:
        return {term: torch.tensor(total.partials, dtype=torch.float64) for term, total in self.sums.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for term, total in self.sums.items():
            total.partials = state[term].tolist()

    def empty(self) -> Self:
        fresh = copy.copy(self)
        PairedMetric.__init__(fresh)
        return fresh


class PairedFrameMean(PairedMetric):
    """The mean over frames of a score that compares a frame with its original."""

    @abstractmethod
    def frame_scores(self, video: Tensor, reference: Tensor) -> Tensor:
        """``b 3 t h w`` twice -> ``b t``."""

    def update(self, video: Tensor, reference: Tensor, *, start: int = 0) -> None:
        self.count(self.frame_scores(video, reference))

    def count(self, scores: Tensor) -> None:
        """Count ``frame_scores`` that were computed already."""
        for score in scores.flatten().tolist():
            self.sums["total"].add(score)
        self.sums["count"].add(scores.numel())

    def scores(self, sums: Sums) -> dict[str, Any]:
        return {self.key: sums["total"] / sums["count"]}


class MeanOfSums(PairedMetric):
    """Reads sums that something else has made: the first term over the second. It cannot be updated."""

    def __init__(self, key: str, terms: tuple[str, ...]) -> None:
        self.key, self.terms, self.weight = key, terms, terms[1]
        super().__init__()

    def update(self, video: Tensor, reference: Tensor, *, start: int = 0) -> None:
        raise ValueError(f"{self.key} only reads sums; use the metric that made them")

    def scores(self, sums: Sums) -> dict[str, Any]:
        return {self.key: sums[self.terms[0]] / sums[self.terms[1]]}


class ClipMean(PairedMetric):
    """The mean over clips, however long they are, of the score that ``metric`` gives each clip. ``b`` has to be 1."""

    terms = ("total", "clips")
    weight = "clips"

    def __init__(self, metric: PairedMetric, *, key: str | None = None) -> None:
        super().__init__()
        self.metric = metric.empty()
        self.key = key or metric.key
        self.smallest_side, self.higher_is_better = metric.smallest_side, metric.higher_is_better

    def update(self, video: Tensor, reference: Tensor, *, start: int = 0) -> None:
        if video.shape[0] != 1:
            raise ValueError(
                f"{self.key} is a mean over clips and takes one at a time, got a batch of {video.shape[0]}"
            )
        if start == 0:
            self.close()
        self.metric.update(video, reference, start=start)

    def close(self) -> None:
        """Count the clip that was being scored."""
        if self.metric.has_seen:
            self.sums["total"].add(self.metric.compute()[self.metric.key])
            self.sums["clips"].add(1)
        self.metric = self.metric.empty()

    def scores(self, sums: Sums) -> dict[str, Any]:
        return {self.key: sums["total"] / sums["clips"]}

    def closed(self) -> Self:
        """The same with the clip under way counted."""
        copied = self.empty()
        copied.metric = self.metric
        PairedMetric.merge(copied, self)
        copied.close()
        return copied

    @property
    def has_seen(self) -> bool:
        return self.metric.has_seen or self.sums["clips"].value > 0

    def values(self) -> dict[str, float]:
        return {term: total.value for term, total in self.closed().sums.items()}

    def merge(self, other: Self) -> None:
        super().merge(other.closed())

    def state_dict(self) -> dict[str, Tensor]:
        return PairedMetric.state_dict(self.closed())

    def empty(self) -> Self:
        return type(self)(self.metric, key=self.key)


AnyMetric = TypeVar("AnyMetric", bound=Metric)


def merge_across_ranks(metric: AnyMetric) -> AnyMetric:
    """On every rank the same metric, which has seen what all ranks saw; without process group ``metric`` itself."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return metric
    states: list[dict[str, Tensor]] = [{} for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(states, metric.state_dict())
    merged = metric.empty()
    for state in states:
        of_rank = metric.empty()
        of_rank.load_state_dict(state)
        merged.merge(of_rank)
    return merged
