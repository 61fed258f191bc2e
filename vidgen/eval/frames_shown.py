"""Frames for the eye: a few originals beside what every subject made of them, as PNG bytes."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from vidgen.data import to_frames
from vidgen.eval.clips import Clip, ClipSet
from vidgen.eval.recon_report import ReconstructionReport
from vidgen.eval.subjects import Counts, Subject

ORIGINAL = "original"
LARGEST_SIDE = 512  # larger frames are cut at their centre: scaling would hide what there is to see


class ShownFrame(NamedTuple):
    """One frame of a clip: the original, then that of each subject by name, as PNGs of one size."""

    clip: str
    frame: int
    pictures: dict[str, bytes]


def frames_beside(
    report: ReconstructionReport, subjects: Sequence[Subject], clips: ClipSet, *, count: int = 4
) -> list[ShownFrame]:
    """The worst frame of the first subject, then the middle frames of the first clips; `count` in all.

    Args:
        subjects: those of the report, which reconstruct the chosen clips once more.
    """
    first = report.subjects[0]
    places = {record["clip"]: record["counts"]["frames"] // 2 for record in first.records}
    chosen = [(bad.clip, bad.frame) for bad in first.worst[:1]] + list(places.items())
    by_name = {clip.name: clip for clip in clips.clips}
    shown = []
    for name, frame in list(dict.fromkeys(chosen))[:count]:
        pictures: dict[str, bytes] = {}
        for subject in subjects:
            made, original = _pair_at(subject, by_name[name], frame)
            pictures.setdefault(ORIGINAL, png(original))
            pictures[subject.name] = png(made)
        shown.append(ShownFrame(name, frame, pictures))
    return shown


@torch.no_grad()
def _pair_at(subject: Subject, clip: Clip, frame: int) -> tuple[Tensor, Tensor]:
    """Reconstruction and original, ``3 h w``, of one frame."""
    for start, video, reference in subject.pairs(clip, Counts(), None):
        if start <= frame < start + video.shape[2]:
            return video[0, :, frame - start], reference[0, :, frame - start]
    raise ValueError(f"{subject.name} gave back no frame {frame} of {clip.name}")


def png(frame: Tensor) -> bytes:
    """``3 h w`` in [-1, 1] -> a PNG of at most `LARGEST_SIDE` pixels a side, cut at the centre."""
    height, width = frame.shape[-2:]
    top, left = max(0, height - LARGEST_SIDE) // 2, max(0, width - LARGEST_SIDE) // 2
    cut = frame[:, top : top + LARGEST_SIDE, left : left + LARGEST_SIDE]
    file = io.BytesIO()
    Image.fromarray(to_frames(cut[:, None])[0]).save(file, format="png", optimize=True)
    return file.getvalue()
