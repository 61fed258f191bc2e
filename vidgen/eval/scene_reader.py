"""Reads size, colour, shape, motion and background out of a shapes-world video.

Centroids of each followed object over time give the direction, areas give growth, and the shape that fits its masks
best, standing or turning, gives the rest.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vidgen.data.shapes import BACKGROUNDS, SHAPES, SIZES
from vidgen.eval.coloured_objects import Track, border_colour, centroids, dilate, follow_objects, reduced_levels
from vidgen.eval.shape_matching import match_shapes, unit_area

TRAVEL = 0.18  # of the frame's side over the clip: less is not moving (the world moves 0.45 to 0.55)
STRAIGHT = 0.6  # travel across the direction, relative to travel along it, above which it is no direction
GROWTH = 0.45  # log2 of the width ratio over the clip: less is not growing (the world has 1)
SPIN_GAIN = 0.85  # a turning shape must leave at most this share of the misfit of a standing one


@dataclass(frozen=True)
class DetectedObject:
    """One object; words of the grammar, or "unclear" for a motion that is none of them."""

    size: str
    colour: str
    shape: str
    motion: str
    span: float = field(compare=False)  # width of the upright shape / shorter side, geometric mean over the clip


@dataclass(frozen=True)
class DetectedScene:
    """What a video shows: the largest object first. No objects: an empty or unreadable video."""

    objects: tuple[DetectedObject, ...]
    background: str


def detect(video: Tensor) -> DetectedScene:
    """Read a shapes-world video ``3 t h w`` in [-1, 1], any size, t >= 1: rendered, reconstructed or generated."""
    if video.ndim != 4 or video.shape[0] != 3:
        raise ValueError(f"expected one video 3 t h w, got {tuple(video.shape)}; pass batches clip by clip")
    if not torch.isfinite(video).all():
        raise ValueError(
            "expected finite values in [-1, 1], got NaN or infinity; the model that made this video is broken"
        )
    frames = reduced_levels(video)
    background_colour = border_colour(frames)
    background = _name_background(background_colour)
    tracks = follow_objects(frames, background_colour)
    found = [_describe(track, others=[other for other in tracks if other is not track]) for track in tracks]
    return DetectedScene(objects=tuple(sorted(found, key=lambda item: -item.span)), background=background)


def _name_background(colour: np.ndarray) -> str:
    """The nearest background; brightness counts half, since black and navy differ in tint and models fade."""
    offsets = np.array([*BACKGROUNDS.values()]) - colour
    brightness = offsets.mean(1, keepdims=True)
    return list(BACKGROUNDS)[int(np.square(offsets - 0.5 * brightness).sum(1).argmin())]


def _describe(track: Track, *, others: list[Track]) -> DetectedObject:
    """Name size, shape and motion of one followed object."""
    frames, height, width = track.core.shape
    time = np.linspace(0, 1, frames) if frames > 1 else np.array([0.5])
    areas = track.coverage.sum((1, 2))
    touching = np.zeros(frames, dtype=bool)
    rim = dilate(dilate(track.core))
    for other in others:
        touching |= (rim & other.core).any((1, 2))
    usable = track.present & (areas > 0)
    alone = usable & ~touching
    # Hidden parts move the centroid and shrink the area: look at free frames only, where they show enough of the clip.
    if alone.sum() >= 4 and np.ptp(time[alone]) >= 0.35:
        usable = alone
    centres = centroids(track.coverage)
    time, centres, areas = time[usable], centres[usable], areas[usable]
    travel = _slope(time, centres[:, 0]) / width, _slope(time, centres[:, 1]) / height
    growth, middle = _line(time, 0.5 * np.log2(areas))
    standing, turning = match_shapes(track.coverage[usable], centres, areas, time)
    motion = _name_motion(travel, growth)
    if motion == "staying still":
        both = {shape: min(standing[shape], turning[shape]) for shape in SHAPES}
        shape = min(SHAPES, key=lambda name: both[name])
        if turning[shape] < SPIN_GAIN * standing[shape]:
            motion = "spinning"
    else:
        shape = min(SHAPES, key=lambda name: standing[name])
    span = 2.0**middle / math.sqrt(unit_area(shape)) / min(height, width)
    size = min(SIZES, key=lambda name: abs(math.log(span / SIZES[name])))
    return DetectedObject(size=size, colour=track.colour, shape=shape, motion=motion, span=float(span))


def _line(time: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Least-squares change over the whole clip, and the value at its middle."""
    centred = time - time.mean()
    spread = float(centred @ centred)
    slope = float(centred @ values / spread) if spread > 0 else 0.0
    return slope, float(values.mean() + slope * (0.5 - time.mean()))


def _slope(time: np.ndarray, values: np.ndarray) -> float:
    return _line(time, values)[0]


def _name_motion(travel: tuple[float, float], growth: float) -> str:
    x, y = travel
    along, across = max(abs(x), abs(y)), min(abs(x), abs(y))
    if along > TRAVEL:
        if across > STRAIGHT * along:
            return "unclear"
        if abs(x) > abs(y):
            return "moving right" if x > 0 else "moving left"
        return "moving down" if y > 0 else "moving up"
    if abs(growth) > GROWTH:
        return "growing" if growth > 0 else "shrinking"
    return "staying still"
