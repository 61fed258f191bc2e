"""How far apart two videos look: distances between image-network features, usable as a score and as a loss.

Two networks, both loaded from a file the user names, never downloaded:

- ``SqueezeNetDistance``: ImageNet SqueezeNet 1.0, unit-normalised feature differences, no learned layer weights.
  Its score is called ``squeezenet.features``. It is not LPIPS and its numbers do not compare with LPIPS tables.
- ``LpipsDistance``: the published LPIPS v0.1 (Zhang et al. 2018) of the ``lpips`` package, with the AlexNet, VGG-16 or
  SqueezeNet 1.1 trunk given as a torchvision state dict. The small learned heads come with the package.

Both map two videos ``b 3 t h w`` in [-1, 1] to one distance per frame, ``b t``, and are differentiable.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal, get_args

import torch
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

LpipsNet = Literal["alex", "vgg", "squeeze"]
LPIPS_TRUNKS: dict[str, str] = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}
LPIPS_SMALLEST_SIDES = {"alex": 31, "vgg": 16, "squeeze": 17}

# Indices into SqueezeNet's ``features``: the first activation, then the last blocks at strides 4, 8, 8 and 16.
SQUEEZENET_TAPS = (1, 5, 8, 10, 12)
SQUEEZENET_SMALLEST_SIDE = 21


class FrameDistance(nn.Module, ABC):
    """A distance between frames that names its own convention and the smallest frame it can look at."""

    key: str
    smallest_side: int

    @abstractmethod
    def frame_distances(self, a: Tensor, b: Tensor) -> Tensor:
        """``n 3 h w`` twice, in [-1, 1] -> ``n``, zero for equal frames."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """``b 3 t h w`` twice, in [-1, 1] -> ``b t``."""
        if a.shape != b.shape or a.ndim != 5 or a.shape[1] != 3:
            raise ValueError(f"expected two equal videos b 3 t h w, got {tuple(a.shape)} and {tuple(b.shape)}")
        distances = self.frame_distances(
            rearrange(a, "b c t h w -> (b t) c h w"), rearrange(b, "b c t h w -> (b t) c h w")
        )
        return rearrange(distances, "(b t) -> b t", t=a.shape[2])


def read_weights(path: str | Path, *, wanted: str) -> dict[str, Tensor]:
    """The state dict in ``path`` (``.safetensors``, or a ``torch.save`` file read with ``weights_only=True``).

    Raises ValueError when the file is missing, damaged or no state dict; ``wanted`` says which file belongs here.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"expected {wanted}, but there is no file {path}; give the path of that file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, SafetensorError) as error:
        raise ValueError(f"expected {wanted}, but {path} is damaged or no file of weights; get it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"expected {wanted}, but {path} holds no state dict of tensors; save model.state_dict() there")
    return state


class Fire(nn.Module):
    """SqueezeNet's block: 1x1 squeeze, then 1x1 and 3x3 expansions side by side (Iandola et al. 2016, section 3.2)."""

    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.squeeze(x))
        return torch.cat([functional.relu(self.expand1x1(x)), functional.relu(self.expand3x3(x))], dim=1)


class SqueezeNetFeatures(nn.Module):
    """SqueezeNet 1.0 up to its last Fire block; frozen. Input ``n 3 h w`` RGB in [-1, 1], sides of at least 21.

    The network wants BGR in 0..255 minus (104, 117, 123); ``forward`` does that conversion.
    """

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()

        def pool() -> nn.MaxPool2d:
            return nn.MaxPool2d(3, stride=2, ceil_mode=True)

        self.features = nn.Sequential(
            nn.Conv2d(3, 96, 7, stride=2), nn.ReLU(), pool(),
            Fire(96, 16, 64), Fire(128, 16, 64), Fire(128, 32, 128), pool(),
            Fire(256, 32, 128), Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), pool(),
            Fire(512, 64, 256),
        )  # fmt: skip
        self.register_buffer("mean", torch.tensor([104.0, 117.0, 123.0]).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)

    @classmethod
    def from_file(cls, path: str | Path) -> "SqueezeNetFeatures":
        """Load torchvision-layout weights; the classifier in the file is ignored. ValueError when they do not fit."""
        wanted = "ImageNet SqueezeNet 1.0 weights in torchvision layout (keys features.0.weight … features.12…)"
        state = {key: value for key, value in read_weights(path, wanted=wanted).items() if key.startswith("features.")}
        network = cls()
        needed = network.state_dict()
        wrong = [key for key in needed if key not in state or state[key].shape != needed[key].shape]
        if wrong or len(state) != len(needed):
            raise ValueError(
                f"expected {wanted}, but {path} differs in {wrong[:3] or 'its number of layers'}; "
                "is it another network?"
            )
        network.load_state_dict(state)
        return network.eval()

    def forward(self, frames: Tensor) -> list[Tensor]:
        """``n 3 h w`` in [-1, 1] -> the tapped activations, each ``n c h' w'``."""
        if min(frames.shape[-2:]) < SQUEEZENET_SMALLEST_SIDE:
            height, width = frames.shape[-2:]
            raise ValueError(
                f"SqueezeNet features need frames of at least {SQUEEZENET_SMALLEST_SIDE} pixels a side, "
                f"got {height}x{width}"
            )
        x = (frames + 1) * 127.5
        x = x.flip(1) - self.mean
        tapped = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in SQUEEZENET_TAPS:
                tapped.append(x)
        return tapped


def perceptual_distance(a: Tensor, b: Tensor, *, features: nn.Module) -> Tensor:
    """Squared difference of channel-unit-normalised features, mean over places and layers: ``n 3 h w`` twice -> ``n``.

    Normalising each place's feature vector follows LPIPS (Zhang et al. 2018, eq. 1); the layer weights are all equal.
    """
    layers = []
    for of_a, of_b in zip(features(a), features(b), strict=True):
        difference = functional.normalize(of_a, dim=1, eps=1e-6) - functional.normalize(of_b, dim=1, eps=1e-6)
        layers.append(difference.square().sum(dim=1).mean(dim=(1, 2)))
    return torch.stack(layers).mean(dim=0)


class SqueezeNetDistance(FrameDistance):
    """``squeezenet.features``: mean squared difference of unit-normalised SqueezeNet 1.0 features, 0 to 4."""

    key = "squeezenet.features"
    smallest_side = SQUEEZENET_SMALLEST_SIDE

    def __init__(self, features: SqueezeNetFeatures) -> None:
        super().__init__()
        self.features = features

    @classmethod
    def from_file(cls, path: str | Path) -> "SqueezeNetDistance":
        return cls(SqueezeNetFeatures.from_file(path))

    def frame_distances(self, a: Tensor, b: Tensor) -> Tensor:
        return perceptual_distance(a, b, features=self.features)


class LpipsDistance(FrameDistance):
    """``lpips.<net>.v0.1``: LPIPS as published, trunk weights from a file of the user's.

    ``lpips.<net>.spatial.v0.1`` scales the distance maps of the layers to the size of the frame before it takes their
    mean (the package's ``spatial=True``), which gives slightly other numbers.
    """

    def __init__(self, network: nn.Module, net: LpipsNet, *, spatial: bool = False) -> None:
        super().__init__()
        self.key = f"lpips.{net}.spatial.v0.1" if spatial else f"lpips.{net}.v0.1"
        self.smallest_side = LPIPS_SMALLEST_SIDES[net]
        self.network = network.requires_grad_(False)

    @classmethod
    def from_file(cls, path: str | Path, *, net: LpipsNet, spatial: bool = False) -> "LpipsDistance":
        """``path``: a state dict of torchvision's alexnet, vgg16 or squeezenet1_1. ValueError when it does not fit."""
        if net not in get_args(LpipsNet):
            raise ValueError(f"expected an LPIPS net out of {', '.join(get_args(LpipsNet))}, got {net!r}")
        state = read_weights(path, wanted=lpips_file_wanted(net))
        import lpips  # imports torchvision: slow, and not needed unless LPIPS is asked for

        with warnings.catch_warnings():  # lpips builds its trunk through arguments that torchvision calls old
            warnings.simplefilter("ignore", UserWarning)
            network = lpips.LPIPS(net=net, pnet_rand=True, spatial=spatial, verbose=False)
        trunk = {
            key: f"features.{key.split('.', 1)[1]}" for key in network.net.state_dict()
        }  # slice2.3.weight -> features.3.weight
        shapes = {key: value.shape for key, value in network.net.state_dict().items()}
        wrong = [name for key, name in trunk.items() if name not in state or state[name].shape != shapes[key]]
        if wrong:
            raise ValueError(
                f"expected {lpips_file_wanted(net)}, but {path} differs in {wrong[:3]}; is it another network?"
            )
        network.net.load_state_dict({key: state[name] for key, name in trunk.items()})
        return cls(network.eval(), net, spatial=spatial)

    def frame_distances(self, a: Tensor, b: Tensor) -> Tensor:
        return self.network(a, b).mean(dim=(1, 2, 3))


def lpips_nets() -> dict[str, LpipsNet]:
    """Key of each LPIPS score -> the net that it needs."""
    nets = get_args(LpipsNet)
    return {f"lpips.{net}.v0.1": net for net in nets} | {f"lpips.{net}.spatial.v0.1": net for net in nets}


def lpips_file_wanted(net: LpipsNet) -> str:
    """Which file LPIPS needs for this trunk, in words for messages."""
    return f"torchvision's ImageNet {LPIPS_TRUNKS[net]} state dict (a .pth or .safetensors file) for LPIPS-{net}"


def why_lpips_is_missing(net: LpipsNet) -> str:
    """The reason shown in place of an LPIPS number when no trunk file was given."""
    return f"not computed: needs {lpips_file_wanted(net)}; give its path (--lpips-weights {net}=FILE)"


def distances_from_files(
    squeezenet: str | Path | None, lpips: Iterable[tuple[LpipsNet, str | Path]], *, spatial: bool = False
) -> list[FrameDistance]:
    """The distances whose weights lie in these files.

    Args:
        squeezenet: ImageNet SqueezeNet 1.0, or None.
        lpips: backbones with their files, one distance each; `spatial` as in `LpipsDistance`.

    Raises:
        ValueError: a file that is not there, or holds other weights.
    """
    found: list[FrameDistance] = [] if squeezenet is None else [SqueezeNetDistance.from_file(squeezenet)]
    found += [LpipsDistance.from_file(file, net=net, spatial=spatial) for net, file in lpips]
    return found
