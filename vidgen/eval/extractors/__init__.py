"""Feature networks that a distance between videos can be measured in, found by the name a protocol has for them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vidgen.eval.extractors.base import FeatureExtractor
from vidgen.eval.extractors.i3d import I3D, PORT_EPSILON, load_i3d
from vidgen.eval.extractors.inception import Inception, load_inception
from vidgen.eval.extractors.surrogates import SqueezeNetMotion, TinyNetwork, TokenizerFeatures
from vidgen.eval.extractors.weights import I3D_FILES, INCEPTION_FILES, KnownFile, files_wanted

__all__ = [
    "EXTRACTORS",
    "I3D",
    "FeatureExtractor",
    "Inception",
    "SqueezeNetMotion",
    "TinyNetwork",
    "TokenizerFeatures",
    "load_extractor",
    "load_i3d",
    "load_inception",
]


@dataclass(frozen=True)
class WeightChoice:
    """What the user says about a weight file: see `weights.identify`."""

    path: Path | None = None
    sha256: str | None = None
    torchscript: bool = False


@dataclass(frozen=True)
class Entry:
    """How the network of that name is loaded, and which published files it takes (none: any file of its layout)."""

    load: Callable[[Path, WeightChoice], FeatureExtractor]
    files: tuple[KnownFile, ...] = ()


EXTRACTORS: dict[str, Entry] = {
    "i3d-kinetics400": Entry(
        lambda path, choice: load_i3d(path, sha256=choice.sha256, torchscript=choice.torchscript), I3D_FILES
    ),
    "i3d-kinetics400.eps1e-05": Entry(
        lambda path, choice: load_i3d(path, epsilon=PORT_EPSILON, sha256=choice.sha256, torchscript=choice.torchscript),
        I3D_FILES[:1],
    ),
    "inception-2015-12-05": Entry(
        lambda path, choice: load_inception(path, sha256=choice.sha256, torchscript=choice.torchscript),
        INCEPTION_FILES,
    ),
    "squeezenet1_0": Entry(lambda path, choice: SqueezeNetMotion.from_file(path)),
}


def load_extractor(name: str, choice: WeightChoice) -> FeatureExtractor:
    """The network called `name`, frozen. ValueError names the file that is wanted when there is none."""
    if name == TinyNetwork.name:
        return TinyNetwork()
    if name not in EXTRACTORS:
        raise ValueError(
            f"there is no feature network {name!r}; there are {', '.join([*EXTRACTORS, TinyNetwork.name])}"
        )
    entry = EXTRACTORS[name]
    if choice.path is None:
        raise ValueError(f"{name} needs a weight file (--weights FILE); {files_wanted(entry.files)}")
    return entry.load(choice.path, choice)
