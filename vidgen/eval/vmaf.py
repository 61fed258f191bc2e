"""VMAF (Netflix's perceptual video score, 0 to 100) by the libvmaf filter that comes with PyAV 19 and newer."""

import gc
import json
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import av
import av.filter
import numpy as np
from av.video.format import VideoFormat
from av.video.reformatter import ColorRange, Colorspace
from einops import rearrange
from torch import Tensor

from vidgen.eval.metric import PairedMetric, Sums
from vidgen.eval.pixels import check_pair, to_levels

FILTER = "libvmaf"
MODEL = "vmaf_v0.6.1"


def why_vmaf_is_missing() -> str | None:
    """The reason for which VMAF cannot be computed here; None when it can."""
    if FILTER in av.filter.filters_available:
        return None
    return f"not computed: PyAV {av.__version__} has no {FILTER} filter; install av>=19 (Python 3.12 or newer)"


class Vmaf(PairedMetric):
    """``vmaf_v0.6.1``: the mean over frames of one clip at a time.

    Motion counts from frame to frame, so pieces have to come in order. 8-bit levels, converted to BT.709 luma in the
    studio range, as players do.
    """

    key = MODEL
    smallest_side = 64  # at 32 the filter's result varied from call to call, and 16 crashed it (PyAV 19.0.2)

    def __init__(self) -> None:
        super().__init__()
        self.running: VmafRun | None = None

    def update(self, video: Tensor, reference: Tensor, *, start: int = 0) -> None:
        if (reason := why_vmaf_is_missing()) is not None:
            raise ValueError(f"{self.key} was {reason}")
        check_pair(video, reference, key=self.key, smallest_side=self.smallest_side)
        if video.shape[0] != 1:
            raise ValueError(f"{self.key} takes one clip at a time, got a batch of {video.shape[0]}")
        if start == 0:
            self.close()
            self.running = VmafRun(video.shape[-2], video.shape[-1])
        if self.running is None or start != self.running.frames:
            raise ValueError(f"{self.key} expects the pieces of a clip in order, got frame {start}")
        both = (rearrange(to_levels(x)[0], "c t h w -> t h w c").byte().cpu().numpy() for x in (video, reference))
        for pair in zip(*both, strict=True):
            self.running.push(*pair)

    def close(self) -> None:
        """Count the clip that was being scored."""
        if self.running is not None:
            for score in self.running.finish():
                self.sums["total"].add(score)
                self.sums["count"].add(1)
            self.running = None

    @property
    def has_seen(self) -> bool:
        self.close()
        return super().has_seen

    def merge(self, other: Self) -> None:
        other.close()
        super().merge(other)

    def state_dict(self) -> dict[str, Tensor]:
        self.close()
        return super().state_dict()

    def scores(self, sums: Sums) -> dict[str, Any]:
        return {self.key: sums["total"] / sums["count"]}

    def empty(self) -> Self:
        fresh = super().empty()
        fresh.running = None
        return fresh


class VmafRun:
    """One clip through the filter, which writes its scores into a file when the clip ends."""

    def __init__(self, height: int, width: int) -> None:
        self.frames = 0
        self.folder = tempfile.TemporaryDirectory()
        self.log = Path(self.folder.name) / "vmaf.json"
        self.graph = av.filter.Graph()
        self.sources = [
            self.graph.add_buffer(width=width, height=height, format=VideoFormat("yuv420p"), time_base=Fraction(1, 25))
            for _ in range(2)
        ]
        measure = self.graph.add(FILTER, f"log_path={self.log}:log_fmt=json:model=version={MODEL}")
        self.sink = self.graph.add("buffersink")
        for place, source in enumerate(self.sources):
            source.link_to(measure, 0, place)
        measure.link_to(self.sink)
        self.graph.configure()

    def push(self, video: np.ndarray, reference: np.ndarray) -> None:
        """The next frame of both, uint8 ``h w 3``."""
        for source, pixels in zip(self.sources, (video, reference), strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG, threads=1
            )
            frame.pts, frame.time_base = self.frames, Fraction(1, 25)
            source.push(frame)
        self.frames += 1
        self._drain()

    def finish(self) -> list[float]:
        """The score of each frame."""
        self.graph.push(None)
        self._drain()
        # The filter writes its file when it is freed, and PyAV's graphs and contexts refer to each other.
        del self.graph, self.sources, self.sink
        gc.collect()
        scores = [frame["metrics"]["vmaf"] for frame in json.loads(self.log.read_text())["frames"]]
        self.folder.cleanup()
        return scores

    def _drain(self) -> None:
        try:
            while True:
                self.sink.pull()
        except (av.BlockingIOError, EOFError):
            return
