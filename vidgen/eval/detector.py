"""Judges a shapes-world video against a caption: which of its words does the video obey?

Reading the video is the work of `vidgen.eval.scene_reader`.
"""

from dataclasses import dataclass
from itertools import permutations

from torch import Tensor

from vidgen.data.shapes import Scene, parse_caption
from vidgen.eval.coloured_objects import centres
from vidgen.eval.scene_reader import DetectedObject, DetectedScene, detect

__all__ = [
    "ATTRIBUTES",
    "DetectedObject",
    "DetectedScene",
    "Judgement",
    "centres",
    "compare",
    "detect",
    "judge",
]


@dataclass(frozen=True)
class Judgement:
    """Which parts of a caption a video obeys. With two objects each attribute must be right on both."""

    count: bool
    background: bool
    colour: bool
    motion: bool
    size: bool
    shape: bool

    @property
    def colour_motion_background(self) -> bool:
        """Number of objects, colours, motions and background right; sizes and shapes free."""
        return self.count and self.colour and self.motion and self.background

    @property
    def all_right(self) -> bool:
        return self.colour_motion_background and self.size and self.shape


ATTRIBUTES = ("count", "background", "colour", "motion", "size", "shape", "colour_motion_background", "all_right")


def judge(video: Tensor, wanted: str | Scene) -> Judgement:
    """Compare ``video`` (``3 t h w`` in [-1, 1]) with a caption of the shapes world, or its scene.

    The order of two objects does not matter: of both assignments the one with more right attributes counts.
    """
    scene = parse_caption(wanted) if isinstance(wanted, str) else wanted
    return compare(detect(video), scene)


def compare(seen: DetectedScene, wanted: Scene) -> Judgement:
    """Judge an already detected scene."""
    background = seen.background == wanted.background
    count = len(seen.objects) == len(wanted.objects)
    attributes = ("colour", "motion", "size", "shape")
    best = dict.fromkeys(attributes, False)
    for chosen in permutations(seen.objects, len(wanted.objects)):
        pairs = list(zip(chosen, wanted.objects, strict=True))
        right = {name: all(getattr(a, name) == getattr(b, name) for a, b in pairs) for name in attributes}
        best = max(best, right, key=lambda judged: (sum(judged.values()), judged["colour"]))
    return Judgement(count=count, background=background, **best)
