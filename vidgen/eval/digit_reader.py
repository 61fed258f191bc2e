"""Reads digits and their motions back out of a moving-digits video; a small convolutional network says what is where.

The network gives each place of a frame the probability that a digit has its centre there. Its weights, made by
`eval/train_digit_reader.py` on handwriting of the training split alone, come with vidgen.
"""

from dataclasses import dataclass
from functools import cache
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from vidgen.data.digits import DIGIT_MOTIONS, DigitScene

WEIGHTS = Path(__file__).parents[1] / "pretrained" / "digit-reader" / "weights.safetensors"
SIDE = 64  # frames are scaled to this shorter side
STRIDE = 4
CERTAIN = 0.4  # probability from which a digit is there
APART = 2  # cells around a digit's centre in which there is no second one
PRESENT_SHARE = 0.5  # a digit is seen in at least this share of the frames
TRAVEL = 0.18  # of the frame's side over the clip: less is not moving (the world moves 0.45 to 0.55)
STRAIGHT = 0.6  # travel across the direction, relative to travel along it, above which it is no direction


class DigitNetwork(nn.Module):
    """Frames `b 1 h w` in [0, 1] -> logits `b 10 h/4 w/4`: a digit has its centre in this cell."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        plan = ((1, 24, 2, 1), (24, 48, 2, 1), (48, 80, 1, 1), (80, 80, 1, 2))  # sees 31 pixels: a digit has 28
        for channels, width, stride, dilation in plan:
            conv = nn.Conv2d(channels, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(80, 10, 1))

    def forward(self, frames: Tensor) -> Tensor:
        return self.layers(frames)


@cache
def digit_network() -> DigitNetwork:
    """The network with the weights that come with vidgen."""
    network = DigitNetwork().eval()
    network.load_state_dict({name: tensor.float() for name, tensor in load_file(WEIGHTS).items()}, strict=False)
    return network


@dataclass(frozen=True)
class DigitJudgement:
    """Which parts of a caption a video obeys; with two digits each must be right on both."""

    count: bool
    digit: bool
    motion: bool

    @property
    def all_right(self) -> bool:
        return self.count and self.digit and self.motion


@dataclass
class _Track:
    places: np.ndarray  # t 2: x, y in shares of the frame's sides, NaN where unseen
    votes: np.ndarray  # 10: sum of the probabilities


def read_digits(video: Tensor, *, network: DigitNetwork | None = None) -> DigitScene:
    """The digits of ``3 t h w`` in [-1, 1], at most two, with a motion or "unclear"; the surest digit first."""
    if video.ndim != 4 or video.shape[0] != 3:
        raise ValueError(f"expected one video 3 t h w, got {tuple(video.shape)}; pass batches clip by clip")
    heat = _heat(video, network or digit_network())
    found = [(int(track.votes.argmax()), _motion(track.places)) for track in _tracks(heat)]
    return DigitScene(tuple(found))


def compare_digits(seen: DigitScene, wanted: DigitScene) -> DigitJudgement:
    """Judge what was seen; of both assignments of two digits the one with more right counts."""
    count = len(seen.objects) == len(wanted.objects)
    best = (False, False)
    for chosen in permutations(seen.objects, len(wanted.objects)):
        pairs = list(zip(chosen, wanted.objects, strict=True))
        digit = all(one[0] == other[0] for one, other in pairs)
        motion = all(one[1] == other[1] for one, other in pairs)
        best = max(best, (digit, motion), key=lambda right: (sum(right), right[0]))
    return DigitJudgement(count, *best)


@torch.no_grad()
def _heat(video: Tensor, network: DigitNetwork) -> np.ndarray:
    """t 10 h w: the probability of each digit's centre in each cell."""
    frames = rearrange(video.float().cpu().clamp(-1, 1).mean(0), "t h w -> t 1 h w").add(1).div(2)
    frames = (frames - frames.flatten(1).median(1).values.view(-1, 1, 1, 1)).clamp(min=0)  # the background is black
    scale = SIDE / min(frames.shape[-2:])
    if scale != 1:
        frames = functional.interpolate(frames, scale_factor=scale, mode="bilinear", antialias=scale < 1)
    return network(frames).sigmoid().numpy()


def _tracks(heat: np.ndarray) -> list[_Track]:
    """Follow up to two digits through the clip; each frame's two best peaks go to the nearer of both ways."""
    tracks = [_Track(np.full((len(heat), 2), np.nan), np.zeros(10)) for _ in range(2)]
    for frame, cells in enumerate(heat):
        peaks = _peaks(cells)
        costs = {
            order: sum(_distance(tracks[number], frame, place) for number, (place, _) in zip(order, peaks, strict=True))
            for order in permutations(range(2), len(peaks))
        }
        order = min(costs, key=lambda one: costs[one])
        for number, (place, votes) in zip(order, peaks, strict=True):
            tracks[number].places[frame] = place
            tracks[number].votes += votes
    seen = [track for track in tracks if (~np.isnan(track.places[:, 0])).mean() >= PRESENT_SHARE]
    return sorted(seen, key=lambda track: -track.votes.max())


def _peaks(cells: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The one or two surest digits of a frame: place (x, y in shares of the sides) and probability of each digit."""
    _, height, width = cells.shape
    free = cells.max(0)
    peaks = []
    for _ in range(2):
        row, column = np.unravel_index(int(free.argmax()), free.shape)
        if free[row, column] < CERTAIN:
            break
        rows = slice(max(row - 1, 0), row + 2)
        columns = slice(max(column - 1, 0), column + 2)
        weight = free[rows, columns]
        y, x = np.meshgrid(np.arange(height)[rows], np.arange(width)[columns], indexing="ij")
        place = np.array([(weight * (x + 0.5)).sum() / width, (weight * (y + 0.5)).sum() / height]) / weight.sum()
        peaks.append((place, cells[:, rows, columns].mean((1, 2))))
        around = (slice(max(row - APART, 0), row + APART + 1), slice(max(column - APART, 0), column + APART + 1))
        free = free.copy()
        free[around] = 0
    return peaks


def _distance(track: _Track, frame: int, place: np.ndarray) -> float:
    """How far a place is from where the track goes on in a straight line; a track that has not begun costs little."""
    seen = np.flatnonzero(~np.isnan(track.places[:frame, 0]))
    if len(seen) == 0:
        return 0.1
    expected = track.places[seen[-1]]
    if len(seen) > 2:
        begin, end = seen[max(0, len(seen) - 5)], seen[-1]
        expected = expected + (track.places[end] - track.places[begin]) / (end - begin) * (frame - end)
    return float(np.linalg.norm(place - expected))


def _motion(places: np.ndarray) -> str:
    """The word for a path `t 2`, from a straight line through what was seen of it."""
    seen = ~np.isnan(places[:, 0])
    time = np.linspace(0, 1, len(places))[seen] if len(places) > 1 else np.array([0.5])
    centred = time - time.mean()
    spread = float(centred @ centred)
    travel = centred @ places[seen] / spread if spread > 0 else np.zeros(2)
    along, across = float(np.abs(travel).max()), float(np.abs(travel).min())
    if along <= TRAVEL:
        return "staying still"
    if across > STRAIGHT * along:
        return "unclear"
    axis = int(np.abs(travel).argmax())
    way = (int(np.sign(travel[0])), 0) if axis == 0 else (0, int(np.sign(travel[1])))
    return next(motion for motion, direction in DIGIT_MOTIONS.items() if direction == way)
