"""Reads size, colour, shape, motion and background back out of a shapes-world video, and judges it against a caption.

How it looks: the border gives the background colour; plateaus of any palette colour give the objects; each object's
coverage is the share of its colour in a pixel's mix. Centroids over time give the direction, areas give growth, and
masks brought to equal area are matched with the four shapes at all angles, standing or turning. Nothing is learned.
"""

import math
from dataclasses import dataclass, field
from functools import cache
from itertools import permutations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vidgen.data.shapes import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene, parse_caption

LONGEST_SIDE = 96  # larger videos are averaged down to about this: the objects are large, and the judge stays quick
MOST_FRAMES = 33

CONTRAST = 45.0  # Euclidean RGB distance (0..255) from the background at which a pixel counts as something else
PLATEAU = 36.0  # largest difference to a neighbour inside an object; edges are steeper and vote for no colour
THIN = 0.15  # price of explaining a pixel by a thin mix of a colour rather than by the colour itself
DISTINCT = 35.0  # RGB distance from every mix of a colour with the background at which a pixel shows another colour
FULL = 0.9  # an object's colour may be this share of the palette's; less is blur
SMALLEST_AREA = 0.0033  # of the squared shorter side: 0.4 times a small star at its smallest
PRESENT_SHARE = 0.5  # an object is seen in at least this share of the frames
TRAVEL = 0.18  # of the frame's side over the clip: less is not moving (the world moves 0.45 to 0.55)
STRAIGHT = 0.6  # travel across the direction, relative to travel along it, above which it is no direction
GROWTH = 0.45  # log2 of the width ratio over the clip: less is not growing (the world has 1)

PATCH = 24  # masks are compared on PATCH x PATCH points …
REACH = 1.1  # … that span this many square roots of the object's area to each side
ANGLE_STEP = 6
SYMMETRY = {"circle": 1, "square": 4, "triangle": 3, "star": 5}
STAR_NOTCH = 0.42  # inner radius over outer radius
BLURS = (0.03, 0.08, 0.13, 0.19)  # edge softness in square roots of the area: sharp to blurry video
TURNS = tuple(
    sign * turn / 20 for turn in range(6, 20) for sign in (1, -1)
)  # 0.3 to 0.95 of a turn (the world: 0.5 to 0.75)
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


def detect(video: Tensor) -> DetectedScene:
    """Read a shapes-world video ``3 t h w`` in [-1, 1], any size, t >= 1: rendered, reconstructed or generated."""
    if video.ndim != 4 or video.shape[0] != 3:
        raise ValueError(f"expected one video 3 t h w, got {tuple(video.shape)}; pass batches clip by clip")
    if not torch.isfinite(video).all():
        raise ValueError(
            "expected finite values in [-1, 1], got NaN or infinity; the model that made this video is broken"
        )
    frames = _prepare(video)
    background_colour = _border_colour(frames)
    background = _name_background(background_colour)
    smooth = _smooth(frames)
    tracks = _tracks(frames, smooth, background_colour, _object_colours(smooth, background_colour))
    found = [_describe(track, others=[other for other in tracks if other is not track]) for track in tracks]
    return DetectedScene(objects=tuple(sorted(found, key=lambda item: -item.span)), background=background)


def centres(video: Tensor) -> np.ndarray:
    """Centre of all that is not background in each frame of ``3 t h w``: ``t 2`` (x, y) in shares of width and height.

    NaN where there is nothing. For scenes with one object; the background is that of the whole video.
    """
    frames = _prepare(video)
    offset = _squared(frames - _border_colour(frames))
    height, width = frames.shape[1:3]
    return _centroids(np.where(offset > CONTRAST**2, 1.0, 0.0)) / np.array([width, height])


@dataclass
class _Track:
    colour: str
    coverage: np.ndarray  # t h w: share of the object's colour in the pixel, 0 away from the object
    core: np.ndarray  # t h w bool: certainly the object
    present: np.ndarray  # t bool


def _prepare(video: Tensor) -> np.ndarray:
    """3 t h w in [-1, 1] -> t h w 3 in 0..255, reduced to what the judge needs."""
    video = video.detach().float().cpu()
    if video.shape[1] > MOST_FRAMES:
        video = video[:, torch.linspace(0, video.shape[1] - 1, MOST_FRAMES).round().long()]
    reduction = max(1, round(max(video.shape[-2:]) / LONGEST_SIDE + 0.2))
    if reduction > 1:
        video = functional.avg_pool2d(video, reduction)
    return ((video.clamp(-1, 1) + 1) * 127.5).permute(1, 2, 3, 0).contiguous().numpy()


def _border_colour(frames: np.ndarray) -> np.ndarray:
    """Median over a ring along the frame's border and over time: objects cover less than half of it."""
    _, height, width, _ = frames.shape
    ring = max(1, min(height, width) // 24)
    inside = np.zeros((height, width), dtype=bool)
    inside[ring : height - ring, ring : width - ring] = True
    return np.median(frames[:, ~inside].reshape(-1, 3), axis=0)


def _name_background(colour: np.ndarray) -> str:
    """The nearest background; brightness counts half, since black and navy differ in tint and models fade."""
    offsets = np.array([*BACKGROUNDS.values()]) - colour
    brightness = offsets.mean(1, keepdims=True)
    return list(BACKGROUNDS)[int(np.square(offsets - 0.5 * brightness).sum(1).argmin())]


def _smooth(frames: np.ndarray) -> np.ndarray:
    """Binomial 3x3 average of t h w c: takes the noise out of decisions, not out of measurements."""
    padded = np.pad(frames, ((0, 0), (1, 1), (0, 0), (0, 0)), mode="edge")
    rows = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
    padded = np.pad(rows, ((0, 0), (0, 0), (1, 1), (0, 0)), mode="edge")
    return (padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]) / 4


def _object_colours(smooth: np.ndarray, background: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Palette colours with a plateau in the video, most pixels first, each with its RGB value as measured."""
    frames, height, width, _ = smooth.shape
    far = _squared(smooth - background) > CONTRAST**2
    flat = np.ones_like(far)
    across = _steps(smooth, 2) < PLATEAU
    down = _steps(smooth, 1) < PLATEAU
    flat[:, :, 1:] &= across
    flat[:, :, :-1] &= across
    flat[:, 1:] &= down
    flat[:, :-1] &= down
    pixels = smooth[far & flat]
    enough = 0.25 * SMALLEST_AREA * min(height, width) ** 2 * frames * PRESENT_SHARE
    if len(pixels) < enough:
        pixels = smooth[far]
    offset = pixels - background
    directions = np.array([*COLOURS.values()]) - background  # k c
    strength = np.square(directions).sum(1)
    share = np.clip(offset @ directions.T / strength, 0, 1.1)
    # A pixel is a colour's when some mix of it with the background explains it, the fuller the better: the soft rim of
    # a yellow shape is dim yellow, although orange is nearer.
    cost = _squared(offset)[:, None] - 2 * share * (offset @ directions.T) + share**2 * strength
    cost += THIN * (1 - np.minimum(share, 1)) ** 2 * strength
    owner = cost.argmin(1)
    names = list(COLOURS)
    chosen: list[tuple[str, np.ndarray]] = []
    for index in np.argsort(-np.bincount(owner, minlength=len(names))):
        mine = owner == index
        full = mine & (share[:, index] > 0.5)
        for _, colour in chosen:
            full &= _mix(pixels, background, colour)[1] > DISTINCT**2
        if full.sum() < enough:
            continue
        peak = float(np.clip(np.quantile(share[full, index], 0.9), FULL, 1.1))
        chosen.append((names[index], background + peak * directions[index]))
    return chosen


def _tracks(
    frames: np.ndarray, smooth: np.ndarray, background: np.ndarray, colours: list[tuple[str, np.ndarray]]
) -> list[_Track]:
    """Follow each coloured component through the clip; drops what is too small or seldom there."""
    if not colours:
        return []
    height, width = frames.shape[1:3]
    smallest = SMALLEST_AREA * min(height, width) ** 2
    shares, misfits = zip(*(_mix(smooth, background, colour) for _, colour in colours), strict=True)
    owner = np.stack(misfits).argmin(0)
    raw = [_mix(frames, background, colour)[0] for _, colour in colours]
    cores: list[tuple[int, np.ndarray]] = []
    for index, share in enumerate(shares):
        rest = (share > 0.5) & (owner == index)
        # Two rounds: two objects may share a colour. Components of a later round are linked to places, not to size.
        components = []
        for _ in range(2):
            component = _largest_components(rest, share)
            areas = component.sum((1, 2))
            if (areas >= smallest).mean() < PRESENT_SHARE:
                break
            components.append(component)
            rest = rest & ~component
        cores.extend((index, core) for core in _link(components))
    tracks = []
    for index, core in cores:
        others = np.zeros_like(core)
        for _, other in cores:
            if other is not core:
                others |= other
        near = _dilate(_dilate(core)) & ~others
        touched = near & _dilate(_dilate(others)) & ~core
        near &= ~(touched & (owner != index))
        coverage = np.where(near, raw[index], 0)
        present = (core.sum((1, 2)) >= smallest) & (coverage.sum((1, 2)) >= smallest)
        if present.mean() >= PRESENT_SHARE:  # the seam of two touching objects can look like a thin third one
            tracks.append(_Track(colours[index][0], coverage, core, present))
    return tracks


def _mix(frames: np.ndarray, background: np.ndarray, colour: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of ``colour`` in each pixel's mix with the background, and squared distance from any such mix (t h w)."""
    direction = (colour - background).astype(np.float32)
    strength = float(direction @ direction)
    offset = frames - background.astype(np.float32)
    share = offset @ (direction / strength)
    inside = np.clip(share, 0, 1)
    return share, _squared(offset) - strength * inside * (2 * share - inside)


def _squared(vectors: np.ndarray) -> np.ndarray:
    """Squared length along the last axis (einsum is several times quicker here than a sum over a short axis)."""
    return np.einsum("...c,...c->...", vectors, vectors)


def _steps(frames: np.ndarray, axis: int) -> np.ndarray:
    """Largest change of any channel between neighbours along an axis of t h w c."""
    change = np.abs(np.diff(frames, axis=axis))
    return np.maximum(np.maximum(change[..., 0], change[..., 1]), change[..., 2])


def _dilate(mask: np.ndarray) -> np.ndarray:
    """Grow a t h w mask by one pixel in eight directions."""
    grown = mask.copy()
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    result = grown.copy()
    result[:, :, 1:] |= grown[:, :, :-1]
    result[:, :, :-1] |= grown[:, :, 1:]
    return result


def _largest_components(mask: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """In each frame the connected part of ``mask`` around its densest place."""
    frames, height, width = mask.shape
    dense = torch.from_numpy(np.where(mask, weight, 0)[:, None].astype(np.float32))
    dense = functional.avg_pool2d(dense, (7, 1), stride=1, padding=(3, 0))
    dense = functional.avg_pool2d(dense, (1, 7), stride=1, padding=(0, 3))
    dense = np.where(mask, dense[:, 0].numpy(), -1).reshape(frames, -1)
    part = np.zeros((frames, height * width), dtype=bool)
    part[np.arange(frames), dense.argmax(1)] = True
    part = part.reshape(mask.shape) & mask
    size = part.sum()
    while True:
        part = _dilate(part) & mask
        grown = part.sum()
        if grown == size:
            return part
        size = grown


def _centroids(weight: np.ndarray) -> np.ndarray:
    """t h w -> t 2 (x, y) in pixels; NaN where there is nothing."""
    _, height, width = weight.shape
    mass = weight.sum((1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        x = weight.sum(1) @ (np.arange(width) + 0.5) / mass
        y = weight.sum(2) @ (np.arange(height) + 0.5) / mass
    return np.stack([x, y], axis=1)


def _link(components: list[np.ndarray]) -> list[np.ndarray]:
    """Two components per frame -> two objects: each goes on with the component nearest to where it was."""
    if len(components) < 2:
        return components
    first, second = (component.copy() for component in components)
    places = np.stack([_centroids(first), _centroids(second)])
    for frame in range(1, first.shape[0]):
        if np.isnan(places[:, frame - 1 : frame + 1]).any():
            continue
        stay = np.linalg.norm(places[:, frame] - places[:, frame - 1], axis=-1).sum()
        swap = np.linalg.norm(places[::-1, frame] - places[:, frame - 1], axis=-1).sum()
        if swap < stay:
            first[frame], second[frame] = second[frame].copy(), first[frame].copy()
            places[:, frame] = places[::-1, frame].copy()
    return [first, second]


def _describe(track: _Track, *, others: list[_Track]) -> DetectedObject:
    """Name size, shape and motion of one followed object."""
    frames, height, width = track.core.shape
    time = np.linspace(0, 1, frames) if frames > 1 else np.array([0.5])
    areas = track.coverage.sum((1, 2))
    touching = np.zeros(frames, dtype=bool)
    rim = _dilate(_dilate(track.core))
    for other in others:
        touching |= (rim & other.core).any((1, 2))
    usable = track.present & (areas > 0)
    alone = usable & ~touching
    # Hidden parts move the centroid and shrink the area: look at free frames only, where they show enough of the clip.
    if alone.sum() >= 4 and np.ptp(time[alone]) >= 0.35:
        usable = alone
    centres = _centroids(track.coverage)
    time, centres, areas = time[usable], centres[usable], areas[usable]
    travel = _slope(time, centres[:, 0]) / width, _slope(time, centres[:, 1]) / height
    growth, middle = _line(time, 0.5 * np.log2(areas))
    standing, turning = _match(track.coverage[usable], centres, areas, time)
    motion = _name_motion(travel, growth)
    if motion == "staying still":
        both = {shape: min(standing[shape], turning[shape]) for shape in SHAPES}
        shape = min(SHAPES, key=lambda name: both[name])
        if turning[shape] < SPIN_GAIN * standing[shape]:
            motion = "spinning"
    else:
        shape = min(SHAPES, key=lambda name: standing[name])
    span = 2.0**middle / math.sqrt(_unit_area(shape)) / min(height, width)
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


def _match(
    coverage: np.ndarray, centres: np.ndarray, areas: np.ndarray, time: np.ndarray
) -> tuple[dict[str, float], dict[str, float]]:
    """Misfit of each shape, standing at its best angle and turning at its best rate; lower is better."""
    height, width = coverage.shape[1:]
    steps = (np.arange(PATCH) + 0.5) / PATCH * 2 - 1
    offsets = REACH * np.sqrt(areas)[:, None] * steps  # t p, pixels from the centre
    x = (centres[:, :1] + offsets) / width * 2 - 1
    y = (centres[:, 1:] + offsets) / height * 2 - 1
    shape = (len(areas), PATCH, PATCH)
    grid = np.stack([np.broadcast_to(x[:, None, :], shape), np.broadcast_to(y[:, :, None], shape)], axis=-1)
    patches = functional.grid_sample(
        torch.from_numpy(coverage[:, None].astype(np.float32)),
        torch.from_numpy(grid.astype(np.float32)),
        align_corners=False,
    ).reshape(len(areas), -1)
    standing: dict[str, float] = {}
    turning: dict[str, float] = {}
    for name in SHAPES:
        templates = _templates(name)  # blurs angles p*p
        blurs, angles, _ = templates.shape
        misfit = torch.cdist(patches, templates.flatten(0, 1)).square().reshape(-1, blurs, angles).numpy()
        standing[name] = float(misfit.mean(0).min())
        turning[name] = math.inf
        if angles > 1:
            turns = 360 / ANGLE_STEP * np.outer(TURNS, time)  # r t, in steps
            phase = np.arange(angles)
            index = np.round(turns[:, None, :] + phase[None, :, None]).astype(int) % angles  # r a t
            per_turn = misfit[np.arange(len(time)), :, index]  # r a t blurs
            turning[name] = float(per_turn.mean(2).min())
    return standing, turning


def _outline(shape: str) -> np.ndarray:
    """Corners of an upright shape 2 wide around the origin, x right and y down: n 2. A circle is a fine polygon."""
    if shape == "square":
        return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], dtype=np.float64)
    if shape == "star":
        angles = np.radians(np.arange(0, 360, 36))
        radii = np.where(np.arange(10) % 2, STAR_NOTCH, 1.0) / math.sin(math.radians(72))
    elif shape == "triangle":
        angles, radii = np.radians([0, 120, 240]), np.full(3, 2 / math.sqrt(3))
    else:
        angles, radii = np.radians(np.arange(0, 360, 5)), np.ones(72)
    return np.stack([radii * np.sin(angles), -radii * np.cos(angles)], axis=1)


@cache
def _unit_area(shape: str) -> float:
    """Area of the shape when it is 1 wide."""
    x, y = (_outline(shape) / 2).T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


@cache
def _templates(shape: str) -> Tensor:
    """The shape at area 1 on the patch grid, at every distinguishable angle and edge softness: ``blurs angles p*p``."""
    finer = 4
    count = PATCH * finer
    places = ((np.arange(count) + 0.5) / count * 2 - 1) * REACH
    x, y = np.meshgrid(places, places)
    corners = _outline(shape) / 2 / math.sqrt(_unit_area(shape))
    angles = [0] if shape == "circle" else range(0, 360 // SYMMETRY[shape], ANGLE_STEP)
    rendered = []
    for angle in angles:
        turn = math.radians(angle)
        rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        turned = corners @ rotation.T
        inside = np.zeros_like(x, dtype=bool)
        for (x0, y0), (x1, y1) in zip(turned, np.roll(turned, -1, axis=0), strict=True):
            if y0 != y1:  # crossing-number test: a horizontal edge crosses no horizontal ray
                inside ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
        rendered.append(inside)
    sharp = torch.from_numpy(np.stack(rendered)).float()[:, None]
    levels = []
    for blur in BLURS:
        sigma = blur / REACH * count / 2
        taps = torch.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1, dtype=torch.float32)
        kernel = torch.softmax(-(taps**2) / (2 * sigma**2), dim=0)
        soft = functional.conv2d(sharp, kernel.view(1, 1, -1, 1), padding=(len(taps) // 2, 0))
        soft = functional.conv2d(soft, kernel.view(1, 1, 1, -1), padding=(0, len(taps) // 2))
        levels.append(functional.avg_pool2d(soft, finer).flatten(1))
    return torch.stack(levels)
