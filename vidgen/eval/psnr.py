"""Peak signal-to-noise ratio in the conventions in use, the frames it is worst for, and its course within a block.

Which convention is meant decides up to 3 dB, so every key spells it: colours (``rgb``; ``y601``: BT.601 luma in the
studio range; ``grey``: full-range luma), pooling, and what an error of zero counts as. Frames are rounded to 8 bits
first, as any file or screen would; ``.float`` and ``.floor`` at the end of a key say otherwise.
"""

import heapq
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vidgen.eval.metric import ExactSum, PairedFrameMean, PairedMetric, Sums
from vidgen.eval.pixels import Colour, check_pair, convention, frame_pieces, levels_of_pair
from vidgen.eval.protocol import Quantise

Ceiling = Literal["cap100", "eps1e-8", "eps1.2e-7"]
FLOAT32_EPSILON = float(np.finfo(np.float32).eps)


def _capped(error: Any) -> Any:
    with np.errstate(divide="ignore"):
        return np.minimum(100.0, 10 * np.log10(255**2 / np.asarray(error, dtype=np.float64)))


# Mean squared error in squared levels -> dB.
CEILINGS: dict[str, Callable[[Any], Any]] = {
    "cap100": _capped,
    "eps1e-8": lambda error: -10 * np.log10(error / 255**2 + 1e-8),  # at most 80 dB
    "eps1.2e-7": lambda error: 20 * np.log10(255 / (np.sqrt(error) + FLOAT32_EPSILON)),
}


def frame_errors(video: Tensor, reference: Tensor, *, colour: Colour, quantise: Quantise) -> Tensor:
    """``b 3 t h w`` twice -> the mean squared error of each frame in squared levels, float64 ``b t``."""
    errors = []
    for a, b in frame_pieces(video, reference):
        a, b = levels_of_pair(a, b, quantise=quantise, colour=colour)
        errors.append((a - b).square_().mean(dim=(1, 3, 4)))
    return torch.cat(errors, dim=1)


class Psnr(PairedFrameMean):
    """``psnr.<colour>.frame_mean.<ceiling>``: the mean over frames of each frame's PSNR in dB.

    Args:
        colour: channels that are compared.
        ceiling: ``cap100`` lets no frame count more than 100 dB; ``eps1e-8`` adds 1e-8 to the squared error of frames
            in [0, 1] (VidTok).
        quantise: how floats become levels.
    """

    def __init__(self, *, colour: Colour = "rgb", ceiling: Ceiling = "cap100", quantise: Quantise = "round") -> None:
        super().__init__()
        self.colour: Colour = colour
        self.ceiling: Ceiling = ceiling
        self.quantise: Quantise = quantise
        self.key = f"psnr.{convention(colour, 'frame_mean', ceiling, quantise=quantise)}"

    def frame_scores(self, video: Tensor, reference: Tensor) -> Tensor:
        check_pair(video, reference, key=self.key)
        errors = frame_errors(video, reference, colour=self.colour, quantise=self.quantise).cpu().numpy()
        return torch.from_numpy(CEILINGS[self.ceiling](errors))


class PooledPsnr(PairedMetric):
    """``psnr.<colour>.global.<ceiling>``: from the squared error of all frames together; bad frames weigh more.

    ``wrapped`` squares differences of bytes in bytes (modulo 256), as numpy does when nobody widens them. It is not a
    PSNR and never falls below 24 dB; some published tables hold it.
    """

    terms = ("squared_error", "samples")
    weight = "samples"

    def __init__(
        self,
        *,
        colour: Colour = "rgb",
        ceiling: Ceiling = "cap100",
        quantise: Quantise = "round",
        wrapped: bool = False,
    ) -> None:
        super().__init__()
        self.colour: Colour = colour
        self.ceiling: Ceiling = ceiling
        self.quantise: Quantise = quantise
        self.wrapped = wrapped
        self.key = f"psnr.{convention(colour, 'global', ceiling, quantise=quantise)}" + ".wrapped" * wrapped

    def update(self, video: Tensor, reference: Tensor, *, start: int = 0) -> None:
        check_pair(video, reference, key=self.key)
        for a, b in frame_pieces(video, reference):
            a, b = levels_of_pair(a, b, quantise=self.quantise, colour=self.colour)
            squared = (a - b).square_()
            # Sums of whole squared levels are whole numbers below 2^53, hence exact.
            self.sums["squared_error"].add(float((squared.remainder_(256) if self.wrapped else squared).sum()))
            self.sums["samples"].add(squared.numel())

    def scores(self, sums: Sums) -> dict[str, Any]:
        return {self.key: CEILINGS[self.ceiling](sums["squared_error"] / sums["samples"])}


class PhaseMean:
    """The mean of frame scores by their place in a causal block: seams show as phases that are worse than others.

    Frame 0 is a phase of its own (``first``), since causal tokenizers encode it alone; frame t > 0 has the phase
    ``(t - 1) % period``.
    """

    def __init__(self, period: int) -> None:
        if period < 1:
            raise ValueError(f"a block has at least one frame, got a period of {period}")
        self.totals = [ExactSum() for _ in range(period + 1)]
        self.counts = [0] * (period + 1)

    def update(self, scores: Tensor, *, start: int) -> None:
        """Count the scores ``b t`` of frames ``start``, ``start + 1``…"""
        period = len(self.totals) - 1
        for offset, column in enumerate(scores.unbind(1)):
            frame = start + offset
            phase = 0 if frame == 0 else 1 + (frame - 1) % period
            self.totals[phase].add(float(column.sum()))
            self.counts[phase] += len(column)

    def merge(self, other: "PhaseMean") -> None:
        for total, more in zip(self.totals, other.totals, strict=True):
            total.merge(more)
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]

    def to_json(self) -> dict[str, list[float]]:
        return {"totals": [total.value for total in self.totals], "counts": list(self.counts)}

    @classmethod
    def from_json(cls, stored: dict[str, list]) -> "PhaseMean":
        phases = cls(len(stored["counts"]) - 1)
        for total, value in zip(phases.totals, stored["totals"], strict=True):
            total.add(value)
        phases.counts = list(stored["counts"])
        return phases

    def compute(self) -> dict[str, float | None]:
        """Phase (``first``, ``0``, ``1``…) -> mean score, None for phases that no frame had."""
        names = ["first", *map(str, range(len(self.totals) - 1))]
        means = [total.value / count if count else None for total, count in zip(self.totals, self.counts)]
        return dict(zip(names, means))


class BadFrame(NamedTuple):
    """A frame of a clip and its score."""

    score: float
    clip: str
    frame: int


class WorstFrames:
    """The ``size`` frames with the lowest score."""

    def __init__(self, size: int = 10) -> None:
        self.size = size
        self.frames: list[BadFrame] = []

    def update(self, scores: Tensor, *, clip: str, start: int) -> None:
        """Look at the scores ``t`` of frames ``start``, ``start + 1``… of ``clip``."""
        self._keep(BadFrame(score, clip, start + offset) for offset, score in enumerate(scores.tolist()))

    def merge(self, other: "WorstFrames") -> None:
        self._keep(other.frames)

    def _keep(self, more: Any) -> None:
        self.frames = heapq.nsmallest(self.size, [*self.frames, *more])
