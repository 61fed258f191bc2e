"""Moving digits: handwritten MNIST digits that glide over black, with captions and class labels.

Grammar: `a DIGIT MOTION`, or `a DIGIT MOTION and a DIGIT MOTION`, with MOTION one of moving left, moving right, moving
up, moving down, staying still.
"""

import gzip
import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vidgen.data.shapes import item_generator

DIGIT_MOTIONS: dict[str, tuple[int, int]] = {
    "moving left": (-1, 0),
    "moving right": (1, 0),
    "moving up": (0, -1),
    "moving down": (0, 1),
    "staying still": (0, 0),
}
DIGIT_CLASSES: tuple[str, ...] = tuple(str(digit) for digit in range(10))
DIGIT_SEPARATOR = " "  # of the digits in a class's name
TWO_DIGIT_CLASSES: tuple[str, ...] = tuple(
    f"{one}{DIGIT_SEPARATOR}{other}" for one, other in combinations_with_replacement(DIGIT_CLASSES, 2)
)
_DIGIT = re.compile(f"a ([0-9]) ({'|'.join(DIGIT_MOTIONS)})")
_SPAN = 0.44  # side of a digit's 28×28 box / shorter side of the frame
_TEST_EVERY = 10
_PLACEMENTS = 16  # random placements tried per clip with two digits
_MOST_BYTES = 2**30  # of an idx file, unpacked; EMNIST's largest has 0.6 of it


@dataclass(frozen=True)
class DigitScene:
    """One or two digits and the motion of each: all that a caption says."""

    objects: tuple[tuple[int, str], ...]

    @property
    def caption(self) -> str:
        return " and ".join(f"a {digit} {motion}" for digit, motion in self.objects)

    @property
    def class_name(self) -> str:
        """The digits alone, ascending: what a pipeline that is told classes hears."""
        return DIGIT_SEPARATOR.join(str(digit) for digit in sorted(digit for digit, _ in self.objects))


def parse_digits(caption: str) -> DigitScene:
    """Read a caption back: `parse_digits(scene.caption) == scene`; ValueError if it is none."""
    phrases = [_DIGIT.fullmatch(phrase) for phrase in caption.split(" and ")]
    if len(phrases) > 2 or None in phrases:
        raise ValueError(
            f"expected `a DIGIT MOTION` or two of them joined by `and`, MOTION one of {', '.join(DIGIT_MOTIONS)}; "
            f"got {caption!r}"
        )
    return DigitScene(tuple((int(match[1]), match[2]) for match in phrases if match))


def digit_classes(digits: tuple[int, ...]) -> tuple[str, ...]:
    """Names of the classes of clips with these numbers of digits: the digits, and the pairs of them in any order."""
    return DIGIT_CLASSES if set(digits) == {1} else DIGIT_CLASSES + TWO_DIGIT_CLASSES


class MovingDigits(Dataset):
    """Map-style dataset of one or two digits in motion; item i is a function of the digit files and (seed, i) alone.

    Each item is `{"video": float32 3 t h w in [-1, 1], "caption": str, "id": str, "class_label": int}`; the label is a
    number in `digit_classes(digits)`. Two digits are placed apart where their ways allow it; where they cross, the
    brighter pixel shows.

    Args:
        root: folder with `NAME-images-idx3-ubyte.gz` and `NAME-labels-idx1-ubyte.gz` (MNIST's own files; NAME is
            train, t10k or both).
        split: "train" or "test"; every tenth digit image is for test, so no handwriting occurs in both.
        digits: allowed numbers of digits, each 1 or 2; name a number twice to draw it twice as often.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        num_frames: int = 17,
        height: int = 64,
        width: int = 64,
        digits: tuple[int, ...] = (1, 2),
        seed: int = 0,
        length: int = 1_000_000,
    ) -> None:
        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test'; got {split!r}")
        if not digits or not set(digits) <= {1, 2}:
            raise ValueError(f"digits lists the allowed numbers of digits, each 1 or 2; got {digits!r}")
        images, labels = _read_digits(Path(root))
        chosen = (np.arange(len(labels)) % _TEST_EVERY == 0) == (split == "test")
        self.images = torch.from_numpy(images[chosen]).float().div(255)
        self.labels = labels[chosen]
        self.num_frames, self.height, self.width = num_frames, height, width
        self.split, self.digits, self.seed, self.length = split, digits, seed, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.length:
            raise IndexError(f"index must be in 0…{self.length - 1}; got {index}")
        generator = item_generator(self.seed, index)

        def draw(count: int) -> int:
            return int(torch.randint(count, (), generator=generator))

        number = self.digits[draw(len(self.digits))]
        chosen = [draw(len(self.labels)) for _ in range(number)]
        motions = [list(DIGIT_MOTIONS)[draw(len(DIGIT_MOTIONS))] for _ in range(number)]
        video, _ = self.film(self.images[chosen], motions, generator=generator)
        scene = DigitScene(
            tuple((int(self.labels[digit]), motion) for digit, motion in zip(chosen, motions, strict=True))
        )
        return {
            "video": video,
            "caption": scene.caption,
            "id": f"digits-{self.split}-{self.seed}-{index}",
            "class_label": digit_classes(self.digits).index(scene.class_name),
        }

    def captions(self) -> list[str]:
        """Captions that together have every word of this world's."""
        pairs = [(digit, motion) for digit in range(10) for motion in DIGIT_MOTIONS]
        return [DigitScene((pair,) * number).caption for number in self.digits for pair in pairs]

    def render(self, scene: DigitScene, *, generator: torch.Generator) -> Tensor:
        """A video `3 t h w` in [-1, 1] of a scene, in handwriting of this split that the generator draws."""
        chosen = []
        for digit, _ in scene.objects:
            written = np.flatnonzero(self.labels == digit)
            chosen.append(int(written[int(torch.randint(len(written), (), generator=generator))]))
        return self.film(self.images[chosen], [motion for _, motion in scene.objects], generator=generator)[0]

    def film(self, images: Tensor, motions: Sequence[str], *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The video `3 t h w` in [-1, 1] of digit images `n 28 28` in [0, 1], and their centres `n t 2` in pixels."""
        video = torch.zeros(self.num_frames, self.height, self.width)
        ways = self._place(list(motions), generator=generator)
        for image, centres in zip(images, ways, strict=True):
            video = video.maximum(self._draw(image, centres))
        return video.mul(2).sub(1).expand(3, -1, -1, -1).contiguous(), ways

    def _place(self, motions: list[str], *, generator: torch.Generator) -> Tensor:
        """`number t 2`: the centres (x, y) of each digit on its way across about half of the frame."""
        time = torch.linspace(0, 1, self.num_frames) if self.num_frames > 1 else torch.tensor([0.5])
        sides = torch.tensor([self.width, self.height], dtype=torch.float32)
        span = _SPAN * min(self.width, self.height)
        chance = torch.rand(len(motions), _PLACEMENTS, 3, generator=generator)
        directions = torch.tensor([DIGIT_MOTIONS[motion] for motion in motions])[:, None]
        travel = directions * sides * (0.45 + 0.1 * chance[..., 2:])  # number placements 2
        start = span / 2 + (-travel).clamp(min=0) + (sides - span - travel.abs()) * chance[..., :2]
        centres = start[:, :, None] + time[:, None] * travel[:, :, None]  # number placements t 2
        closest = (centres[0] - centres[-1]).norm(dim=-1).amin(dim=1)
        return centres[:, int(closest.clamp(max=span).argmax())]  # apart, or as far apart as a placement is

    def _draw(self, image: Tensor, centres: Tensor) -> Tensor:
        """`t h w` in [0, 1]: the digit at each of its centres."""
        span = _SPAN * min(self.width, self.height)
        columns = _interpolation(image.shape[1], self.width, centres=centres[:, 0], span=span)
        rows = _interpolation(image.shape[0], self.height, centres=centres[:, 1], span=span)
        return rows @ image @ columns.transpose(1, 2)


def _interpolation(samples: int, side: int, *, centres: Tensor, span: float) -> Tensor:
    """`t side samples`: weights that stretch `samples` pixels to `span` pixels at each centre (linear, averaging)."""
    pixels_per_sample = span / samples
    places = (torch.arange(side) + 0.5 - centres[:, None] + span / 2) / pixels_per_sample - 0.5  # t side
    reach = max(1.0, 1 / pixels_per_sample)
    margin = math.ceil(2 * reach)  # black samples around the digit share in the average
    distance = (places[:, :, None] - torch.arange(-margin, samples + margin)).abs()
    weights = (1 - distance / reach).clamp(min=0)
    return (weights / weights.sum(dim=2, keepdim=True).clamp(min=1e-6))[:, :, margin:-margin]


def _read_digits(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """All digit files of a folder: uint8 `n 28 28` and labels `n`."""
    image_files = sorted(root.glob("*-images-idx3-ubyte.gz"))
    if not image_files:
        raise ValueError(f"expected MNIST files such as t10k-images-idx3-ubyte.gz in {root}; found none")
    images, labels = [], []
    for file in image_files:
        images.append(_read_idx(file))
        labels.append(_read_idx(file.with_name(file.name.replace("images-idx3", "labels-idx1"))))
        if len(images[-1]) != len(labels[-1]):
            raise ValueError(f"expected one label per image of {file}; got {len(labels[-1])} for {len(images[-1])}")
    return np.concatenate(images), np.concatenate(labels)


def _read_idx(path: Path) -> np.ndarray:
    """The idx format: two zero bytes, type (8: uint8), number of axes, their sizes (big-endian int32), the data."""
    data, shape = None, []
    try:
        with gzip.open(path) as file:
            start = file.read(4)
            axes = start[3] if start[:3] == b"\0\0\x08" and len(start) == 4 else 0
            shape = np.frombuffer(file.read(4 * axes), dtype=">i4").tolist()
            if len(shape) == axes > 0 and min(shape) >= 0 and math.prod(shape) <= _MOST_BYTES:
                data = file.read(math.prod(shape) + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"expected a gzipped idx file at {path}; {error}") from None
    if data is None or len(data) != math.prod(shape):
        raise ValueError(
            f"expected an idx file of at most {_MOST_BYTES} bytes at {path}; its header or length says otherwise; "
            "fetch it again"
        )
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)
