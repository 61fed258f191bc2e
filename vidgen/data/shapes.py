"""The shapes world: a procedural text-video dataset whose captions say exactly what moves, how, and on what.

Grammar, for one object and for two:
    a SIZE COLOUR SHAPE MOTION on a BACKGROUND background
    a SIZE COLOUR SHAPE MOTION and a SIZE COLOUR SHAPE MOTION on a BACKGROUND background
"""

import math
import re
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 210, 50),
    "purple": (150, 60, 190),
    "orange": (240, 140, 40),
    "cyan": (60, 200, 210),
    "white": (240, 240, 240),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (16, 16, 16),
    "gray": (110, 110, 110),
    "navy": (20, 24, 70),
    "brown": (90, 60, 35),
}
SIZES: dict[str, float] = {"small": 0.22, "large": 0.38}  # width of the upright shape / shorter side of the frame
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star")
SHAPE_CLASSES: tuple[str, ...] = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
MOTIONS: tuple[str, ...] = (
    "moving left",
    "moving right",
    "moving up",
    "moving down",
    "spinning",
    "growing",
    "shrinking",
    "staying still",
)
# The pairs that `--hold-out` trains on; the other 20 are for tests of composition. Each colour occurs, each shape with
# three colours, and the pairs hang together: the first four colours have two shapes each, in a ring.
TRAINED_PAIRS: frozenset[tuple[str, str]] = frozenset(
    {
        ("red", "circle"), ("red", "square"),
        ("green", "square"), ("green", "triangle"),
        ("blue", "triangle"), ("blue", "star"),
        ("yellow", "star"), ("yellow", "circle"),
        ("purple", "circle"), ("orange", "square"), ("cyan", "triangle"), ("white", "star"),
    }
)  # fmt: skip
HELD_OUT_PAIRS: frozenset[tuple[str, str]] = (
    frozenset((colour, shape) for colour in COLOURS for shape in SHAPES) - TRAINED_PAIRS
)
GRAMMAR = (
    f"a {{{'|'.join(SIZES)}}} {{{'|'.join(COLOURS)}}} {{{'|'.join(SHAPES)}}} {{{'|'.join(MOTIONS)}}} "
    f"[and a … (a second object)] on a {{{'|'.join(BACKGROUNDS)}}} background; a circle never spins"
)

_OBJECT = re.compile(f"a ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) ({'|'.join(MOTIONS)})")
_SCENE = re.compile(f"({_OBJECT.pattern})(?: and ({_OBJECT.pattern}))? on a ({'|'.join(BACKGROUNDS)}) background")
_DIRECTIONS = {"moving left": (-1, 0), "moving right": (1, 0), "moving up": (0, -1), "moving down": (0, 1)}
_STAR_TIP = 1 / math.sin(math.radians(72))  # radius of the tips when the star is 2 wide
# Distance from the centre to the farthest point, in half widths of the upright shape.
_RADIUS = {"circle": 1.0, "square": math.sqrt(2), "triangle": 2 / math.sqrt(3), "star": _STAR_TIP}
_PLACEMENTS = 24  # random placements tried per scene with two objects


@dataclass(frozen=True)
class ShapeObject:
    """One moving shape; every field is a word of the grammar."""

    size: str
    colour: str
    shape: str
    motion: str

    def __post_init__(self) -> None:
        for field, words in (("size", SIZES), ("colour", COLOURS), ("shape", SHAPES), ("motion", MOTIONS)):
            if getattr(self, field) not in words:
                raise ValueError(f"{field} must be one of {', '.join(words)}; got {getattr(self, field)!r}")
        if self.shape == "circle" and self.motion == "spinning":
            raise ValueError("a spinning circle looks like a still one; choose another shape or motion")

    @property
    def phrase(self) -> str:
        return f"a {self.size} {self.colour} {self.shape} {self.motion}"


@dataclass(frozen=True)
class Scene:
    """One or two objects on a background: all that a caption says, and nothing that it does not."""

    objects: tuple[ShapeObject, ...]
    background: str

    def __post_init__(self) -> None:
        if len(self.objects) not in (1, 2):
            raise ValueError(f"a scene holds 1 or 2 objects; got {len(self.objects)}")
        if self.background not in BACKGROUNDS:
            raise ValueError(f"background must be one of {', '.join(BACKGROUNDS)}; got {self.background!r}")

    @property
    def caption(self) -> str:
        return f"{' and '.join(item.phrase for item in self.objects)} on a {self.background} background"


def parse_caption(text: str) -> Scene:
    """Read a caption back into its scene; `parse_caption(scene.caption) == scene`.

    Raises:
        ValueError: the text does not follow the grammar; the message holds the grammar.
    """
    match = _SCENE.fullmatch(text)
    if match is None:
        raise ValueError(f"the shapes world reads captions of the form: {GRAMMAR}; got {text!r}")
    groups = match.groups()
    phrases = [groups[1:5]] if groups[5] is None else [groups[1:5], groups[6:10]]
    return Scene(objects=tuple(ShapeObject(*phrase) for phrase in phrases), background=groups[-1])


def sample_scene(
    *,
    generator: torch.Generator,
    objects: tuple[int, ...] = (1, 2),
    hold_out: frozenset[tuple[str, str]] = frozenset(),
    favour: tuple[str, ...] = (),
) -> Scene:
    """Draw a scene uniformly: first the number of objects, then each word. Two objects never share a colour.

    Args:
        objects: allowed numbers of objects, each 1 or 2; name a number twice to draw it twice as often.
        hold_out: (colour, shape) pairs that are never drawn, for tests of composition.
        favour: words of objects that are drawn more often: twice as often if named once, three times if named twice.
    """
    pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in hold_out]

    def draw(choices):
        # a choice is a word, a pair of words or a number of objects, and each favour for a word counts
        words = [choice if isinstance(choice, tuple) else (choice,) for choice in choices]
        tickets = [i for i, of in enumerate(words) for _ in range(1 + sum(map(favour.count, of)))]
        return choices[tickets[int(torch.randint(len(tickets), (), generator=generator))]]

    drawn: list[ShapeObject] = []
    for _ in range(draw(objects)):
        taken = {item.colour for item in drawn}
        colour, shape = draw([pair for pair in pairs if pair[0] not in taken])
        motions = [motion for motion in MOTIONS if (shape, motion) != ("circle", "spinning")]
        drawn.append(ShapeObject(draw(list(SIZES)), colour, shape, draw(motions)))
    return Scene(objects=tuple(drawn), background=draw(list(BACKGROUNDS)))


def near_miss(scene: Scene, *, generator: torch.Generator, hold_out: frozenset[tuple[str, str]] = frozenset()) -> Scene:
    """Another scene that differs from `scene` in one thing: one word of an object or of the background, a word that two
    objects exchange, one object more, or one less; each kind is drawn as often. Pairs of `hold_out` never occur in it.
    """
    while True:
        items: list[ShapeObject | None] = [*scene.objects]
        background = scene.background
        kind = _drawn((*_WORDS, "background", "exchange", "number"), generator)
        which = int(torch.randint(len(items), (), generator=generator))
        if kind == "background":
            background = _drawn(tuple(BACKGROUNDS), generator)
        elif kind == "number":
            extra = sample_scene(generator=generator, objects=(1,)).objects[0]
            items = items[which : which + 1] if len(items) == 2 else [*items, extra]
        elif kind == "exchange":
            word = _drawn(tuple(_WORDS), generator)
            values = [getattr(item, word) for item in reversed(scene.objects)]
            items = [_with(item, word, value) for item, value in zip(scene.objects, values, strict=True)]
        else:
            items[which] = _with(scene.objects[which], kind, _drawn(_WORDS[kind], generator))
        objects = tuple(item for item in items if item is not None)
        pairs = {(item.colour, item.shape) for item in objects}
        whole = len(objects) == len(items) == len({item.colour for item in objects})
        same = background == scene.background and set(objects) == set(scene.objects)
        if whole and not same and not pairs & hold_out:
            return Scene(objects=objects, background=background)


_WORDS = {"size": tuple(SIZES), "colour": tuple(COLOURS), "shape": SHAPES, "motion": MOTIONS}


def _drawn(choices: tuple[str, ...], generator: torch.Generator) -> str:
    return choices[int(torch.randint(len(choices), (), generator=generator))]


def _with(item: ShapeObject, word: str, value: str) -> ShapeObject | None:
    """The object with another word; `None` for a circle that would spin."""
    words = {**asdict(item), word: value}
    return None if (words["shape"], words["motion"]) == ("circle", "spinning") else ShapeObject(**words)


def render(scene: Scene, *, num_frames: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Draw a scene; the generator decides what the caption leaves open (places, exact distances, turning sense).

    Rules. Motion is uniform in time. Moving covers 0.45 to 0.55 of the frame's side, spinning 0.5 to 0.75 of a turn.
    Growing and shrinking change the width by a factor of 2 at a constant rate, so that its geometric mean over the
    clip is the nominal width of the size word. Objects stay inside the frame; shapes stand upright unless they spin.
    Two objects are placed apart where their ways allow it, and the second is drawn over the first. One frame shows the
    middle of the motion.

    Returns:
        float32 `3 t h w` in [-1, 1]; a pixel's value is the colour mix by covered area (anti-aliased).
    """
    if min(num_frames, height, width) < 1:
        raise ValueError(f"frames, height and width must be at least 1; got {num_frames}, {height}, {width}")
    time = np.linspace(0, 1, num_frames) if num_frames > 1 else np.array([0.5])
    tracks = _place(scene.objects, time=time, height=height, width=width, generator=generator)
    video = np.empty((3, num_frames, height, width), dtype=np.float32)
    video[:] = _colour(BACKGROUNDS[scene.background])
    for item, (centres, half_widths, angles) in zip(scene.objects, tracks, strict=True):
        _paint(video, item, centres=centres, half_widths=half_widths, angles=angles)
    return torch.from_numpy(video)


class ShapesWorld(Dataset):
    """Map-style dataset of rendered scenes; item i is a function of (seed, i) alone.

    Each item is `{"video": float32 3 t h w in [-1, 1], "caption": str, "id": str}`, and with `objects=(1,)` also
    `"class_label": int`, the number of its colour and shape in `SHAPE_CLASSES`.

    Args:
        objects: allowed numbers of objects, each 1 or 2; name a number twice to draw it twice as often.
        hold_out: (colour, shape) pairs that never occur.
        favour: words of objects that are drawn more often: twice as often if named once, three times if named twice.
    """

    def __init__(
        self,
        num_frames: int = 17,
        height: int = 64,
        *,
        width: int = 64,
        objects: tuple[int, ...] = (1, 2),
        seed: int = 0,
        length: int = 1_000_000,
        hold_out: frozenset[tuple[str, str]] = frozenset(),
        favour: tuple[str, ...] = (),
    ) -> None:
        if not objects or not set(objects) <= {1, 2}:
            raise ValueError(f"objects lists the allowed numbers of objects, each 1 or 2; got {objects!r}")
        unknown = sorted(pair for pair in hold_out if pair[0] not in COLOURS or pair[1] not in SHAPES)
        if unknown:
            raise ValueError(f"hold_out takes (colour, shape) pairs such as ('red', 'star'); got {unknown[0]!r}")
        if len({colour for colour in COLOURS for shape in SHAPES if (colour, shape) not in hold_out}) < max(objects):
            raise ValueError(f"hold_out leaves too few colours for {max(objects)} objects; hold out fewer pairs")
        strange = sorted(set(favour) - {*SIZES, *COLOURS, *SHAPES, *MOTIONS})
        if strange:
            words = ", ".join((*SIZES, *COLOURS, *SHAPES, *MOTIONS))
            raise ValueError(f"favour takes words of objects ({words}); got {strange[0]!r}")
        self.num_frames, self.height, self.width = num_frames, height, width
        self.objects, self.seed, self.length = objects, seed, length
        self.hold_out, self.favour = hold_out, favour

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.length:
            raise IndexError(f"index must be in 0…{self.length - 1}; got {index}")
        scene, generator = self._scene(index)
        video = render(scene, num_frames=self.num_frames, height=self.height, width=self.width, generator=generator)
        item = {"video": video, "caption": scene.caption, "id": f"shapes-{self.seed}-{index}"}
        if self.objects != (1,):
            return item
        return item | {"class_label": SHAPE_CLASSES.index(f"{scene.objects[0].colour} {scene.objects[0].shape}")}

    def scene(self, index: int) -> Scene:
        """The scene of item `index`, without rendering it."""
        return self._scene(index)[0]

    def captions(self) -> list[str]:
        """Captions that together have every word of this world's."""
        return [self.scene(index).caption for index in range(min(1024, self.length))]

    def _scene(self, index: int) -> tuple[Scene, torch.Generator]:
        generator = item_generator(self.seed, index)
        scene = sample_scene(generator=generator, objects=self.objects, hold_out=self.hold_out, favour=self.favour)
        return scene, generator


def item_generator(seed: int, index: int) -> torch.Generator:
    """The generator of item `index` of a dataset with this seed: neighbours in either number are unrelated."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence([seed, index]).generate_state(1)[0]))


def _colour(rgb: tuple[int, int, int]) -> np.ndarray:
    return (np.array(rgb, dtype=np.float32) / 127.5 - 1).reshape(3, 1, 1, 1)


def _place(
    objects: tuple[ShapeObject, ...], *, time: np.ndarray, height: int, width: int, generator: torch.Generator
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Choose each object's way: centres `t 2` (x, y in pixels), half widths `t` in pixels, angles `t` in radians."""
    sides = np.array([width, height], dtype=np.float64)
    candidates = _PLACEMENTS if len(objects) > 1 else 1
    chance = torch.rand(len(objects), candidates, 3, generator=generator).numpy().astype(np.float64)
    turns = torch.rand(len(objects), 2, generator=generator).numpy().astype(np.float64)
    centres, half_widths, angles = [], [], []
    for item, places, (amount, sense) in zip(objects, chance, turns, strict=True):
        exponent = {"growing": time - 0.5, "shrinking": 0.5 - time}.get(item.motion, np.zeros_like(time))
        half_width = SIZES[item.size] * min(height, width) / 2 * 2.0**exponent
        # Only a spinning square reaches farther than it does upright; the others turn inside their own circle.
        upright_square = item.shape == "square" and item.motion != "spinning"
        reach = half_width.max() * (1 if upright_square else _RADIUS[item.shape])
        travel = np.array(_DIRECTIONS.get(item.motion, (0, 0))) * sides * (0.45 + 0.1 * places[:, 2:])
        room = sides - 2 * reach - np.abs(travel)
        start = reach + np.maximum(-travel, 0) + room * places[:, :2]
        centres.append(start[:, None] + travel[:, None] * time[:, None])  # candidates t 2
        half_widths.append(half_width)
        turn = 2 * math.pi * (0.5 + 0.25 * amount) * (1 if sense < 0.5 else -1)
        angles.append(turn * time if item.motion == "spinning" else np.zeros_like(time))
    best = 0
    if len(objects) == 2:
        distance = np.linalg.norm(centres[0] - centres[1], axis=-1)
        reaches = [_RADIUS[item.shape] * half for item, half in zip(objects, half_widths, strict=True)]
        gap = (distance / (reaches[0] + reaches[1])).min(axis=1)
        best = int(np.argmax(np.minimum(gap, 1)))  # the first placement without contact, else the one with least
    return [(way[best], half, angle) for way, half, angle in zip(centres, half_widths, angles, strict=True)]


def _paint(
    video: np.ndarray, item: ShapeObject, *, centres: np.ndarray, half_widths: np.ndarray, angles: np.ndarray
) -> None:
    """Mix the object's colour into `video` (3 t h w) in place, looking only at a window around it."""
    _, frames, height, width = video.shape
    window = 2 * math.ceil(half_widths.max() * _RADIUS[item.shape] + 1) + 1
    window_height, window_width = min(window, height), min(window, width)
    left = np.clip(np.floor(centres[:, 0] - window_width / 2), 0, width - window_width).astype(int)
    top = np.clip(np.floor(centres[:, 1] - window_height / 2), 0, height - window_height).astype(int)

    def per_frame(values: np.ndarray) -> np.ndarray:
        return values.astype(np.float32)[:, None, None]

    x = np.arange(0.5, window_width, dtype=np.float32)[None, None] + per_frame(left - centres[:, 0])
    y = np.arange(0.5, window_height, dtype=np.float32)[None, :, None] + per_frame(top - centres[:, 1])
    cosine, sine = per_frame(np.cos(angles) / half_widths), per_frame(np.sin(angles) / half_widths)
    distance = _DISTANCES[item.shape](cosine * x + sine * y, cosine * y - sine * x) * per_frame(half_widths)
    coverage = np.clip(0.5 - distance, 0, 1)
    colour = _colour(COLOURS[item.colour])[:, 0]
    for frame in range(frames):
        rows, columns = slice(top[frame], top[frame] + window_height), slice(left[frame], left[frame] + window_width)
        patch = video[:, frame, rows, columns]
        patch += coverage[frame] * (colour - patch)


# Signed distances (negative inside) to shapes 2 wide around the origin; x points right, y down.


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(x * x + y * y) - 1


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - 1


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    inner_radius = 1 / math.sqrt(3)
    return np.maximum(y, math.sqrt(3) / 2 * np.abs(x) - y / 2) - inner_radius


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # Fold the plane at the symmetry axes until one edge is left: from the upper tip to the notch 36° beside it.
    cosine, sine = math.cos(math.radians(36)), math.sin(math.radians(36))
    y = -y
    for _ in range(2):
        x = np.abs(x)
        beyond = np.maximum(cosine * x - sine * y, 0)
        x, y = x - 2 * cosine * beyond, y + 2 * sine * beyond
    x = np.abs(x)
    notch = 0.42 * _STAR_TIP
    edge_x, edge_y = notch * sine, notch * cosine - _STAR_TIP
    length = math.hypot(edge_x, edge_y)
    return (x * -edge_y + (y - _STAR_TIP) * edge_x) / length


_DISTANCES = {"circle": _circle, "square": _square, "triangle": _triangle, "star": _star}
