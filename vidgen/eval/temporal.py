"""How a reconstruction moves, compared with its original: temporal differences, and flicker where nothing moves.

Both look at pairs of neighbouring frames of one clip, also across the pieces in which the clip comes.
"""

from abc import abstractmethod
from typing import Any, Self

import torch
from torch import Tensor

from vidgen.eval.metric import PairedMetric, Sums
from vidgen.eval.pixels import check_pair, frame_pieces, to_levels
from vidgen.eval.psnr import CEILINGS


class TransitionMetric(PairedMetric):
    """Compares how a video goes from each frame to the next with how its original does; 8-bit levels."""

    def __init__(self) -> None:
        super().__init__()
        self.held: tuple[Tensor, Tensor] | None = None  # the last frames seen, uint8 or float as they came
        self.next_start = 0

    @abstractmethod
    def count_transitions(self, video: Tensor, reference: Tensor) -> None:
        """Count the t - 1 transitions of levels ``b 3 t h w`` in float64."""

    def update(self, video: Tensor, reference: Tensor, *, start: int = 0) -> None:
        check_pair(video, reference, key=self.key, smallest_side=self.smallest_side)
        following = start + video.shape[2]
        if start > 0:
            if self.held is None or start != self.next_start:
                raise ValueError(f"{self.key} expects frame {self.next_start} next, got frame {start} of the clip")
            video = torch.cat([self.held[0], video], dim=2)
            reference = torch.cat([self.held[1], reference], dim=2)
        self.held, self.next_start = (video[:, :, -1:], reference[:, :, -1:]), following
        before: tuple[Tensor, Tensor] | None = None
        for piece in frame_pieces(video, reference):
            a, b = (to_levels(x) for x in piece)
            if before is not None:
                a, b = torch.cat([before[0], a], dim=2), torch.cat([before[1], b], dim=2)
            if a.shape[2] > 1:
                self.count_transitions(a, b)
            before = a[:, :, -1:], b[:, :, -1:]

    def empty(self) -> Self:
        fresh = super().empty()
        fresh.held, fresh.next_start = None, 0
        return fresh


class TemporalDifferencePsnr(TransitionMetric):
    """``tdiff_psnr.rgb.frame_mean.cap100``: PSNR of the differences of neighbouring frames, peak 255, in dB.

    A constant error of a clip costs nothing here; one that changes from frame to frame does.
    """

    key = "tdiff_psnr.rgb.frame_mean.cap100"

    def count_transitions(self, video: Tensor, reference: Tensor) -> None:
        errors = (video.diff(dim=2) - reference.diff(dim=2)).square_().mean(dim=(1, 3, 4))
        for score in CEILINGS["cap100"](errors.flatten().cpu().numpy()).tolist():
            self.sums["total"].add(score)
        self.sums["count"].add(errors.numel())

    def scores(self, sums: Sums) -> dict[str, Any]:
        return {self.key: sums["total"] / sums["count"]}


class Flicker(TransitionMetric):
    """``flicker.rgb.static2``: how much more the video changes than its original where the original stands still.

    The mean absolute change from frame to frame, in levels of 255, over the pixels that change by at most 2 levels in
    every channel of the original, minus the same of the original. Above 0 the video flickers, below 0 it is steadier
    than its original.
    """

    key = "flicker.rgb.static2"
    terms = ("video", "reference", "count")
    higher_is_better = False
    still = 2

    def count_transitions(self, video: Tensor, reference: Tensor) -> None:
        of_video, of_reference = video.diff(dim=2).abs_(), reference.diff(dim=2).abs_()
        static = (of_reference <= self.still).all(dim=1, keepdim=True)
        self.sums["video"].add(float((of_video * static).sum()))
        self.sums["reference"].add(float((of_reference * static).sum()))
        self.sums["count"].add(3 * int(static.sum()))

    def scores(self, sums: Sums) -> dict[str, Any]:
        return {self.key: (sums["video"] - sums["reference"]) / sums["count"]}
