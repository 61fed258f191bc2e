"""What every score is: accumulate with update, join ranks with merge, read with compute.

Merging is exact: the same items in any order, split over any number of metrics, give bit-equal results.
"""

import math
from abc import ABC, abstractmethod
from typing import Self, TypeVar

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


class PairedFrameMean(Metric):
    """The mean over frames of a score that compares a frame with its original. ``key`` names it."""

    key: str

    def __init__(self) -> None:
        self.total = ExactSum()
        self.count = 0

    @abstractmethod
    def frame_scores(self, video: Tensor, reference: Tensor) -> Tensor:
        """``b 3 t h w`` in [-1, 1], twice -> ``b t``."""

    def update(self, video: Tensor, reference: Tensor) -> Tensor:
        """Count the frames of ``b 3 t h w`` videos in [-1, 1]; returns their scores ``b t`` for per-clip tables."""
        if video.shape != reference.shape or video.ndim != 5 or video.shape[1] != 3:
            raise ValueError(
                f"{self.key} expects a video and its original, both b 3 t h w, "
                f"got {tuple(video.shape)} and {tuple(reference.shape)}"
            )
        scores = self.frame_scores(video, reference)
        for score in scores.flatten().tolist():
            self.total.add(score)
        self.count += scores.numel()
        return scores

    def merge(self, other: Self) -> None:
        self.total.merge(other.total)
        self.count += other.count

    def compute(self) -> dict[str, float]:
        if self.count == 0:
            raise ValueError(f"{self.key} has seen no frame; call update first")
        return {self.key: self.total.value / self.count}

    def state_dict(self) -> dict[str, Tensor]:
        return {"total": torch.tensor(self.total.partials, dtype=torch.float64), "count": torch.tensor(self.count)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.total.partials = state["total"].tolist()
        self.count = int(state["count"])

    def empty(self) -> Self:
        return type(self)()


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
