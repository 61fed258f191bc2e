"""Inflated 3D Inception (I3D), trained on Kinetics-400: its averaged logits are the feature space of FVD.

Architecture: Carreira and Zisserman 2017 (figure 3); the logits before softmax, averaged over time, are the features of
Unterthiner et al. 2018. Module names are the keys of `i3d_pretrained_400.pt`.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from vidgen.eval.extractors.base import FeatureExtractor, load_public
from vidgen.eval.extractors.weights import I3D_FILES, Weights, identify
from vidgen.eval.perceptual import read_weights

# The graph of the original TensorFlow module says 1e-3; the port of VideoGPT, TATS and OmniTokenizer runs the same
# weights with 1e-5, so their features differ.
EPSILON = 1e-3
PORT_EPSILON = 1e-5
NUM_CLASSES = 400
TAP = "logits, mean over time"


def _same_padding(video: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Zeros around ``b c t h w``, as TensorFlow's SAME puts them: the odd one behind."""
    edges: list[int] = []
    for extent, width, step in reversed(list(zip(video.shape[2:], kernel, stride, strict=True))):
        missing = max((-(-extent // step) - 1) * step + width - extent, 0)
        edges += [missing // 2, missing - missing // 2]
    return functional.pad(video, edges) if any(edges) else video


class Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, channels: int, width: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(channels, width, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(width)

    def forward(self, video: Tensor) -> Tensor:
        padded = _same_padding(video, self.conv3d.kernel_size, self.conv3d.stride)
        return functional.relu(self.bn(self.conv3d(padded)))


class Pool(nn.Module):
    """Maximum over a window. Its input is never negative, so padding with zeros changes nothing."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, video: Tensor) -> Tensor:
        return functional.max_pool3d(_same_padding(video, self.kernel, self.stride), self.kernel, self.stride)


class Mixed(nn.Module):
    """Four branches side by side: 1x1, two times 1x1 then 3x3, and pooling then 1x1."""

    def __init__(
        self, channels: int, plain: int, narrow_a: int, wide_a: int, narrow_b: int, wide_b: int, pooled: int
    ) -> None:
        super().__init__()
        self.b0 = Unit(channels, plain)
        self.b1a = Unit(channels, narrow_a)
        self.b1b = Unit(narrow_a, wide_a, 3)
        self.b2a = Unit(channels, narrow_b)
        self.b2b = Unit(narrow_b, wide_b, 3)
        self.b3a = Pool((3, 3, 3), (1, 1, 1))
        self.b3b = Unit(channels, pooled)

    def forward(self, video: Tensor) -> Tensor:
        branches = [self.b0(video), self.b1b(self.b1a(video)), self.b2b(self.b2a(video)), self.b3b(self.b3a(video))]
        return torch.cat(branches, dim=1)


class Logits(nn.Module):
    """A 1x1 convolution with bias, under the name that the weight file has for it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(channels, NUM_CLASSES, 1)

    def forward(self, video: Tensor) -> Tensor:
        return self.conv3d(video)


class I3D(FeatureExtractor):
    """``b 3 t 224 224`` in [-1, 1], t of at least 9 -> ``b 1 400``."""

    name = "i3d-kinetics400"
    tap = TAP
    num_features = NUM_CLASSES
    frame_size = (224, 224)
    least_frames = 9  # the last pooling spans two frames, each of which stands for eight

    def __init__(self, *, weights: Weights, epsilon: float = EPSILON) -> None:
        super().__init__()
        self.weights = weights
        if epsilon != EPSILON:
            self.name = f"i3d-kinetics400.eps{epsilon:g}"
        if weights.known is not None:
            self.distance = "vd"

        layers: dict[str, nn.Module] = {
            "Conv3d_1a_7x7": Unit(3, 64, 7, 2),
            "MaxPool3d_2a_3x3": Pool((1, 3, 3), (1, 2, 2)),
            "Conv3d_2b_1x1": Unit(64, 64),
            "Conv3d_2c_3x3": Unit(64, 192, 3),
            "MaxPool3d_3a_3x3": Pool((1, 3, 3), (1, 2, 2)),
            "Mixed_3b": Mixed(192, 64, 96, 128, 16, 32, 32),
            "Mixed_3c": Mixed(256, 128, 128, 192, 32, 96, 64),
            "MaxPool3d_4a_3x3": Pool((3, 3, 3), (2, 2, 2)),
            "Mixed_4b": Mixed(480, 192, 96, 208, 16, 48, 64),
            "Mixed_4c": Mixed(512, 160, 112, 224, 24, 64, 64),
            "Mixed_4d": Mixed(512, 128, 128, 256, 24, 64, 64),
            "Mixed_4e": Mixed(512, 112, 144, 288, 32, 64, 64),
            "Mixed_4f": Mixed(528, 256, 160, 320, 32, 128, 128),
            "MaxPool3d_5a_2x2": Pool((2, 2, 2), (2, 2, 2)),
            "Mixed_5b": Mixed(832, 256, 160, 320, 32, 128, 128),
            "Mixed_5c": Mixed(832, 384, 192, 384, 48, 128, 128),
        }
        self.layers = tuple(layers)
        for key, layer in layers.items():
            self.add_module(key, layer)
        self.logits = Logits(1024)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.eps = epsilon

    def features(self, video: Tensor) -> Tensor:
        for key in self.layers:
            video = self.get_submodule(key)(video)
        logits = self.logits(functional.avg_pool3d(video, (2, 7, 7), stride=1))
        return logits.mean(dim=(2, 3, 4))[:, None]


class I3DTorchScript(FeatureExtractor):
    """The same network as a program: `i3d_torchscript.pt`, called without its own resizing."""

    name = "i3d-kinetics400"
    tap = TAP
    num_features = NUM_CLASSES
    frame_size = (224, 224)
    least_frames = 9

    def __init__(self, *, weights: Weights) -> None:
        super().__init__()
        assert weights.path is not None
        self.weights = weights
        if weights.known is not None:
            self.distance = "vd"
        self.program = torch.jit.load(str(weights.path), map_location="cpu")

    def features(self, video: Tensor) -> Tensor:
        return self.program(video, rescale=False, resize=False, return_features=True)[:, None]


def load_i3d(
    path: str | Path, *, epsilon: float = EPSILON, sha256: str | None = None, torchscript: bool = False
) -> FeatureExtractor:
    """I3D with the weights in `path`: a published file (see `I3D_FILES`), or one whose digest the caller states.

    Args:
        epsilon: of the batch norms; `PORT_EPSILON` gives the features of VideoGPT's port. Only for state dicts.
        sha256, torchscript: see `weights.identify`.

    Raises:
        ValueError: the file is missing, another one, or of another network.
    """
    weights = identify(path, known=I3D_FILES, network="I3D", sha256=sha256, torchscript=torchscript)
    if weights.layout == "torchscript":
        if epsilon != EPSILON:
            raise ValueError(
                f"a batch-norm epsilon of {epsilon:g} needs {I3D_FILES[0].name}; {path} is a fixed program"
            )
        return I3DTorchScript(weights=weights).eval().requires_grad_(False)
    network = I3D(weights=weights, epsilon=epsilon)
    return load_public(network, read_weights(path, wanted=str(I3D_FILES[0])), layout_of=I3D_FILES[0].name, path=path)
