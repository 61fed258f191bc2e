"""Which of the four shapes fits an object's masks, standing at one angle or turning at a steady rate?

Masks are brought to equal area and compared with the shapes at all angles and several edge softnesses.
"""

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vidgen.data.shapes import SHAPES

PATCH = 24  # masks are compared on PATCH x PATCH points …
REACH = 1.1  # … that span this many square roots of the object's area to each side
ANGLE_STEP = 6
SYMMETRY = {"circle": 1, "square": 4, "triangle": 3, "star": 5}
STAR_NOTCH = 0.42  # inner radius over outer radius
BLURS = (0.03, 0.08, 0.13, 0.19)  # edge softness in square roots of the area: sharp to blurry video
TURNS = tuple(
    sign * turn / 20 for turn in range(6, 20) for sign in (1, -1)
)  # 0.3 to 0.95 of a turn (the world: 0.5 to 0.75)


def match_shapes(
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
def unit_area(shape: str) -> float:
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
    corners = _outline(shape) / 2 / math.sqrt(unit_area(shape))
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
