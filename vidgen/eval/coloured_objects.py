"""Where are the coloured objects of a shapes-world video, and how much of each pixel is theirs? Nothing is learned.

The border gives the background's colour; plateaus of any palette colour give the objects; an object's coverage is the
share of its colour in a pixel's mix with the background. Components are followed from frame to frame by their places.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vidgen.data.shapes import COLOURS

LONGEST_SIDE = 96  # larger videos are averaged down to about this: the objects are large, and the judge stays quick
MOST_FRAMES = 33

CONTRAST = 45.0  # Euclidean RGB distance (0..255) from the background at which a pixel counts as something else
PLATEAU = 36.0  # largest difference to a neighbour inside an object; edges are steeper and vote for no colour
THIN = 0.15  # price of explaining a pixel by a thin mix of a colour rather than by the colour itself
DISTINCT = 35.0  # RGB distance from every mix of a colour with the background at which a pixel shows another colour
FULL = 0.9  # an object's colour may be this share of the palette's; less is blur
SMALLEST_AREA = 0.0033  # of the squared shorter side: 0.4 times a small star at its smallest
PRESENT_SHARE = 0.5  # an object is seen in at least this share of the frames


@dataclass
class Track:
    """One object through the clip, in frames that `reduced_levels` gave."""

    colour: str
    coverage: np.ndarray  # t h w: share of the object's colour in the pixel, 0 away from the object
    core: np.ndarray  # t h w bool: certainly the object
    present: np.ndarray  # t bool


def reduced_levels(video: Tensor) -> np.ndarray:
    """3 t h w in [-1, 1] -> t h w 3 in 0..255, reduced to what the judge needs: of long videos MOST_FRAMES frames."""
    if video.shape[1] > MOST_FRAMES:
        video = video[:, torch.linspace(0, video.shape[1] - 1, MOST_FRAMES).round().long()]
    return small_levels(video)


def small_levels(video: Tensor) -> np.ndarray:
    """3 t h w in [-1, 1] -> every frame in 0..255, t h w 3, averaged down to about LONGEST_SIDE."""
    video = video.detach().float().cpu()
    reduction = max(1, round(max(video.shape[-2:]) / LONGEST_SIDE + 0.2))
    if reduction > 1:
        video = functional.avg_pool2d(video, reduction)
    return ((video.clamp(-1, 1) + 1) * 127.5).permute(1, 2, 3, 0).contiguous().numpy()


def border_colour(frames: np.ndarray) -> np.ndarray:
    """Median over a ring along the frame's border and over time: objects cover less than half of it."""
    _, height, width, _ = frames.shape
    ring = max(1, min(height, width) // 24)
    inside = np.zeros((height, width), dtype=bool)
    inside[ring : height - ring, ring : width - ring] = True
    return np.median(frames[:, ~inside].reshape(-1, 3), axis=0)


def centres(video: Tensor) -> np.ndarray:
    """Centre of all that is not background in each frame of ``3 t h w``: ``t 2`` (x, y) in shares of width and height.

    NaN where there is nothing. For scenes with one object; the background is that of the whole video.
    """
    frames = small_levels(video)
    offset = _squared(frames - border_colour(frames))
    height, width = frames.shape[1:3]
    return centroids(np.where(offset > CONTRAST**2, 1.0, 0.0)) / np.array([width, height])


def follow_objects(frames: np.ndarray, background: np.ndarray) -> list[Track]:
    """Follow each coloured component through ``t h w 3`` levels; drops what is too small or seldom there."""
    smooth = _smooth(frames)
    colours = _object_colours(smooth, background)
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
        near = dilate(dilate(core)) & ~others
        touched = near & dilate(dilate(others)) & ~core
        near &= ~(touched & (owner != index))
        coverage = np.where(near, raw[index], 0)
        present = (core.sum((1, 2)) >= smallest) & (coverage.sum((1, 2)) >= smallest)
        if present.mean() >= PRESENT_SHARE:  # the seam of two touching objects can look like a thin third one
            tracks.append(Track(colours[index][0], coverage, core, present))
    return tracks


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


def dilate(mask: np.ndarray) -> np.ndarray:
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
        part = dilate(part) & mask
        grown = part.sum()
        if grown == size:
            return part
        size = grown


def centroids(weight: np.ndarray) -> np.ndarray:
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
    places = np.stack([centroids(first), centroids(second)])
    for frame in range(1, first.shape[0]):
        if np.isnan(places[:, frame - 1 : frame + 1]).any():
            continue
        stay = np.linalg.norm(places[:, frame] - places[:, frame - 1], axis=-1).sum()
        swap = np.linalg.norm(places[::-1, frame] - places[:, frame - 1], axis=-1).sum()
        if swap < stay:
            first[frame], second[frame] = second[frame].copy(), first[frame].copy()
            places[:, frame] = places[::-1, frame].copy()
    return [first, second]
