"""Classifier-free guidance and its variants: which branches of a condition a step needs, and how they combine.

The branches differ in what they are told: "full" is the whole condition, "known" has the negative prompt (or none) and
the known pixels, "nothing" has neither text nor known pixels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Branch = str
BRANCHES: tuple[Branch, ...] = ("full", "known", "nothing")


class Schedule(Protocol):
    """A scale for each step."""

    @property
    def highest(self) -> float:
        """The largest scale that it gives."""
        ...

    def at(self, level: float, step: int) -> float:
        """The scale at a noise level in [0, 1] and step number."""
        ...


@dataclass(frozen=True)
class Cosine:
    """From `first` at pure noise to `last` at the clean end, along half a cosine."""

    first: float
    last: float

    @property
    def highest(self) -> float:
        return max(self.first, self.last)

    def at(self, level: float, step: int) -> float:
        return self.last + (self.first - self.last) * (1 - math.cos(math.pi * level)) / 2


@dataclass(frozen=True)
class Oscillating:
    """`highest` at first, then at every second step only (Open-Sora 2, arXiv 2503.09642)."""

    highest: float
    after: int = 10

    def at(self, level: float, step: int) -> float:
        return self.highest if step < self.after or step % 2 == 0 else 1.0


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How to steer away from what an unguided model would make. Plain classifier-free guidance by default."""

    scale: float | Schedule = 3.0
    """unguided + scale · (full - unguided); none up to 1. A `Schedule` gives each step its own."""
    joint: bool = False
    """The unguided branch loses text and known pixels at once (STIV's joint image-text guidance, arXiv 2412.07730)."""
    known_scale: float | None = None
    """A scale of its own for the known pixels, in three branches (InstructPix2Pix, arXiv 2211.09800; Open-Sora 2):
    nothing + known_scale · (known - nothing) + scale · (full - known)."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Noise levels between which there is guidance at all (Kynkäänniemi et al., arXiv 2404.07724)."""
    rescale: float = 0.0
    """Share of the result whose standard deviation is brought back to the full branch's (Lin et al., arXiv 2305.08891,
    equations 15 and 16; they use 0.7)."""
    zero_star: bool = False
    """Scale the unguided branch to fit the full one best before it is subtracted (CFG-Zero*, arXiv 2503.18886)."""
    zero_steps: int = 0
    """The first steps of a flow stand still (CFG-Zero*'s zero-init, 1 there)."""

    def __post_init__(self) -> None:
        low, high = self.interval
        if not 0 <= low < high <= 1:
            raise ValueError(f"interval must be two noise levels, 0 <= low < high <= 1, got {self.interval}")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale is a share between 0 and 1, got {self.rescale}")
        if self.zero_steps < 0:
            raise ValueError(f"zero_steps must be 0 or more, got {self.zero_steps}")
        if self.joint and self.known_scale is not None:
            raise ValueError("joint guidance drops text and known pixels together; give no known_scale with it")
        if self.zero_star and self.known_scale is not None:
            raise ValueError("zero_star scales one unguided branch, and known_scale makes two; give one of them")

    @property
    def highest(self) -> float:
        """The largest scale of all; up to 1 there is no guidance."""
        of_text = float(self.scale) if isinstance(self.scale, float | int) else self.scale.highest
        return of_text if self.known_scale is None else max(of_text, self.known_scale)

    @property
    def all_branches(self) -> tuple[Branch, ...]:
        """Those that some step may need, "full" first."""
        if self.highest <= 1.0:
            return ("full",)
        if self.known_scale is not None:
            return BRANCHES
        return ("full", "nothing" if self.joint else "known")

    def scale_at(self, level: float, step: int) -> float:
        """The scale at a noise level in [0, 1], 1 outside the interval."""
        if not self.interval[0] <= level <= self.interval[1]:
            return 1.0
        return float(self.scale) if isinstance(self.scale, float | int) else self.scale.at(level, step)

    def branches(self, level: float, step: int) -> tuple[Branch, ...]:
        """What the network has to be asked at this step, "full" first."""
        within = self.interval[0] <= level <= self.interval[1]
        if not within or (self.known_scale is None and self.scale_at(level, step) <= 1.0):
            return ("full",)
        return self.all_branches

    def combine(
        self, predictions: Mapping[Branch, Tensor], level: float, step: int, *, made: Tensor | None = None
    ) -> Tensor:
        """The guided prediction, `b n c`, of the branches that `branches` names.

        `rescale` and `zero_star` measure the tokens that are `made`, `b n` bool; all by default.
        """
        full = predictions["full"]
        if step < self.zero_steps:
            return torch.zeros_like(full)
        if len(predictions) == 1:
            return full
        scale = self.scale_at(level, step)
        if self.known_scale is not None:
            known, nothing = predictions["known"], predictions["nothing"]
            guided = nothing + self.known_scale * (known - nothing) + scale * (full - known)
        else:
            unguided = predictions["nothing" if self.joint else "known"]
            if self.zero_star:
                unguided = unguided * best_fit(full, unguided, made)
            guided = unguided + scale * (full - unguided)
        return rescaled(guided, full, self.rescale, made) if self.rescale else guided


def best_fit(full: Tensor, unguided: Tensor, made: Tensor | None = None) -> Tensor:
    """s of each sample that minimises |full - s · unguided|² over the made tokens: `b 1 1`."""
    axes = (1, 2)
    counted = 1.0 if made is None else made.unsqueeze(-1)
    product = (full.float() * unguided.float() * counted).sum(dim=axes, keepdim=True)
    square = (unguided.float().square() * counted).sum(dim=axes, keepdim=True)
    return (product / (square + 1e-8)).to(full.dtype)


def rescaled(guided: Tensor, full: Tensor, share: float, made: Tensor | None = None) -> Tensor:
    """`guided`, whose deviation in each sample grew with the scale, brought back to that of `full` by a share."""
    factor = deviation(full, made) / deviation(guided, made).clamp(min=1e-8)
    return guided * (share * factor + (1 - share))


def deviation(tokens: Tensor, made: Tensor | None) -> Tensor:
    """Standard deviation of each sample over its made tokens: `b n c`, bool `b n` (`None` = all) -> `b 1 1`."""
    axes = (1, 2)
    if made is None:
        return tokens.std(dim=axes, keepdim=True)
    counted = made.unsqueeze(-1) / (made.sum(dim=1)[:, None, None] * tokens.shape[2]).clamp(min=1)
    mean = (tokens.float() * counted).sum(dim=axes, keepdim=True)
    return ((tokens.float() - mean).square() * counted).sum(dim=axes, keepdim=True).sqrt().to(tokens.dtype)
