"""Inception-v3 of 2015-12-05, as FID uses it: its last pooling is the feature space of FID and KID on frames.

Szegedy et al. 2016, with what the TensorFlow graph of that date does otherwise than torchvision's network: means over a
window leave padding out, the last block takes maxima instead, and there are 1008 classes. Module names are the keys of
`pt_inception-2015-12-05-6726825d.pth`.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from vidgen.eval.extractors.base import FeatureExtractor, load_public
from vidgen.eval.extractors.weights import INCEPTION_FILES, Weights, identify
from vidgen.eval.perceptual import read_weights

NUM_FEATURES = 2048
NUM_CLASSES = 1008
TAP = "last pooling"
SIZE = (299, 299)
BATCH_FRAMES = 16

Kernel = int | tuple[int, int]
Step = tuple[str, int, Kernel] | tuple[str, int, Kernel, int]  # key, channels, kernel, stride
Pool = Callable[[Tensor], Tensor]


class Unit(nn.Module):
    """Convolution, batch norm, ReLU; with stride 1 the size stays, with stride 2 nothing is padded."""

    def __init__(self, channels: int, width: int, kernel: Kernel, stride: int = 1, *, padded: bool = True) -> None:
        super().__init__()
        padding = "same" if padded and stride == 1 else "valid"
        self.conv = nn.Conv2d(channels, width, kernel, stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=1e-3)

    def forward(self, frames: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(frames)))


class Mixed(nn.Module):
    """Branches side by side. A branch is a chain of steps; a step of two units puts their results side by side.

    The last branch begins with `pool`, and is nothing more where `pooled` is None.
    """

    def __init__(self, channels: int, *branches: tuple[Step | tuple[Step, Step], ...], pool: Pool, pooled: int | None):
        super().__init__()
        self.pool = pool
        self.has_pool_unit = pooled is not None
        self.branches: list[list[tuple[str, ...]]] = []
        for branch in branches:
            before, chain = channels, []
            for step in branch:
                units: tuple[Step, ...] = step if isinstance(step[0], tuple) else (step,)  # pyright: ignore
                for key, width, kernel, *stride in units:
                    self.add_module(key, Unit(before, width, kernel, *stride))
                chain.append(tuple(unit[0] for unit in units))
                before = sum(unit[1] for unit in units)
            self.branches.append(chain)
        if pooled is not None:
            self.branch_pool = Unit(channels, pooled, 1)

    def forward(self, frames: Tensor) -> Tensor:
        results = []
        for branch in self.branches:
            x = frames
            for keys in branch:
                x = torch.cat([self.get_submodule(key)(x) for key in keys], dim=1)
            results.append(x)
        x = self.pool(frames)
        results.append(self.branch_pool(x) if self.has_pool_unit else x)
        return torch.cat(results, dim=1)


def _mean_3x3(frames: Tensor) -> Tensor:
    return functional.avg_pool2d(frames, 3, stride=1, padding=1, count_include_pad=False)


def _max_3x3(frames: Tensor) -> Tensor:
    return functional.max_pool2d(frames, 3, stride=1, padding=1)


def _halved(frames: Tensor) -> Tensor:
    return functional.max_pool2d(frames, 3, stride=2)


def _block_35(channels: int, pooled: int) -> Mixed:
    return Mixed(
        channels,
        (("branch1x1", 64, 1),),
        (("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)),
        (("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)),
        pool=_mean_3x3,
        pooled=pooled,
    )


def _block_17(narrow: int) -> Mixed:
    row, column = (1, 7), (7, 1)
    long = (("branch7x7dbl_1", narrow, 1), ("branch7x7dbl_2", narrow, column), ("branch7x7dbl_3", narrow, row))
    return Mixed(
        768,
        (("branch1x1", 192, 1),),
        (("branch7x7_1", narrow, 1), ("branch7x7_2", narrow, row), ("branch7x7_3", 192, column)),
        (*long, ("branch7x7dbl_4", narrow, column), ("branch7x7dbl_5", 192, row)),
        pool=_mean_3x3,
        pooled=192,
    )


def _block_8(channels: int, pool: Pool) -> Mixed:
    row, column = (1, 3), (3, 1)
    return Mixed(
        channels,
        (("branch1x1", 320, 1),),
        (("branch3x3_1", 384, 1), (("branch3x3_2a", 384, row), ("branch3x3_2b", 384, column))),
        (
            ("branch3x3dbl_1", 448, 1),
            ("branch3x3dbl_2", 384, 3),
            (("branch3x3dbl_3a", 384, row), ("branch3x3dbl_3b", 384, column)),
        ),
        pool=pool,
        pooled=192,
    )


class Inception(FeatureExtractor):
    """``b 3 t 299 299``, levels 0…255 at (level - 128) / 128 or in [-1, 1] by protocol -> ``b t 2048``."""

    name = "inception-2015-12-05"
    tap = TAP
    num_features = NUM_FEATURES
    frame_size = SIZE
    per_frame = True

    def __init__(self, *, weights: Weights) -> None:
        super().__init__()
        self.weights = weights
        if weights.known is not None:
            self.distance = "id"
        self.Conv2d_1a_3x3 = Unit(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = Unit(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = Unit(32, 64, 3)
        self.Conv2d_3b_1x1 = Unit(64, 80, 1)
        self.Conv2d_4a_3x3 = Unit(80, 192, 3, padded=False)
        self.Mixed_5b = _block_35(192, 32)
        self.Mixed_5c = _block_35(256, 64)
        self.Mixed_5d = _block_35(288, 64)
        self.Mixed_6a = Mixed(
            288,
            (("branch3x3", 384, 3, 2),),
            (("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3, 2)),
            pool=_halved,
            pooled=None,
        )
        self.Mixed_6b = _block_17(128)
        self.Mixed_6c = _block_17(160)
        self.Mixed_6d = _block_17(160)
        self.Mixed_6e = _block_17(192)
        self.Mixed_7a = Mixed(
            768,
            (("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2)),
            (
                ("branch7x7x3_1", 192, 1),
                ("branch7x7x3_2", 192, (1, 7)),
                ("branch7x7x3_3", 192, (7, 1)),
                ("branch7x7x3_4", 192, 3, 2),
            ),
            pool=_halved,
            pooled=None,
        )
        self.Mixed_7b = _block_8(1280, _mean_3x3)
        self.Mixed_7c = _block_8(2048, _max_3x3)
        self.fc = nn.Linear(NUM_FEATURES, NUM_CLASSES)

    def features(self, video: Tensor) -> Tensor:
        frames = rearrange(video, "b c t h w -> (b t) c h w")
        pooled = torch.cat([self._pooled(some) for some in frames.split(BATCH_FRAMES)])
        return rearrange(pooled, "(b t) d -> b t d", b=len(video))

    def _pooled(self, frames: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(frames)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_halved(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(_halved(x))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean(dim=(2, 3))

    def unbiased_logits(self, features: Tensor) -> Tensor:
        """``… 2048`` -> ``… 1008``, without the bias: what the Inception Score takes its softmax of."""
        return features @ self.fc.weight.T


class InceptionTorchScript(FeatureExtractor):
    """The same network as a program: `inception-2015-12-05.pt`, entered behind its own resizing."""

    name = "inception-2015-12-05"
    tap = TAP
    num_features = NUM_FEATURES
    frame_size = SIZE
    per_frame = True

    def __init__(self, *, weights: Weights) -> None:
        super().__init__()
        assert weights.path is not None
        self.weights = weights
        if weights.known is not None:
            self.distance = "id"
        self.program = torch.jit.load(str(weights.path), map_location="cpu")

    def features(self, video: Tensor) -> Tensor:
        frames = rearrange(video, "b c t h w -> (b t) c h w")
        pooled = torch.cat([self.program.layers(some).flatten(1) for some in frames.split(BATCH_FRAMES)])
        return rearrange(pooled, "(b t) d -> b t d", b=len(video))


def load_inception(path: str | Path, *, sha256: str | None = None, torchscript: bool = False) -> FeatureExtractor:
    """Inception with the weights in `path`: a published file (see `INCEPTION_FILES`), or one whose digest is stated.

    Raises:
        ValueError: the file is missing, another one, or of another network; see `weights.identify`.
    """
    weights = identify(path, known=INCEPTION_FILES, network="Inception", sha256=sha256, torchscript=torchscript)
    if weights.layout == "torchscript":
        return InceptionTorchScript(weights=weights).eval().requires_grad_(False)
    state = read_weights(path, wanted=str(INCEPTION_FILES[0]))
    return load_public(Inception(weights=weights), state, layout_of=INCEPTION_FILES[0].name, path=path)
