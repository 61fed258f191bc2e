"""What an evaluation finds on this machine: devices, packages, codecs, and weight files by their digests.

Nothing is downloaded or executed, and no weight file is loaded: files are recognised by their bytes.
"""

import hashlib
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import av
import torch

from vidgen.eval.codecs import CODECS, can_encode
from vidgen.eval.extractors.weights import I3D_FILES, INCEPTION_FILES, KnownFile
from vidgen.eval.vmaf import MODEL, why_vmaf_is_missing

WEIGHT_SUFFIXES = frozenset({".pt", ".pth", ".safetensors"})
HUB = Path("~/.cache/torch/hub/checkpoints")
PACKAGES = {
    "torch": "everything",
    "diffusers": "everything",
    "av": "reading videos, codecs of `vidgen eval rd`, VMAF from version 19",
    "lpips": "the LPIPS scores, with a weight file",
    "torchvision": "the networks under LPIPS",
    "transformers": "CLIPSIM, text encoders of transformers (pip install 'vidgen[text]')",
}


class Finding(NamedTuple):
    """One thing that is here or not, and what to know about it."""

    name: str
    present: bool
    detail: str


class Section(NamedTuple):
    """Findings of one kind."""

    title: str
    findings: list[Finding]


@dataclass(frozen=True)
class WantedFile:
    """A weight file that some score takes; `option` is how it is given to the command line."""

    option: str
    name: str
    digest: str  # SHA-256 or its first characters, or the id that git gives the file
    where: str

    @classmethod
    def of(cls, option: str, known: KnownFile) -> "WantedFile":
        return cls(option, known.name, known.sha256 or known.git_blob or "", known.where)


def examine(folders: Sequence[Path]) -> list[Section]:
    """Look around.

    Args:
        folders: where weight files are looked for, at any depth; those that do not exist have none.
    """
    return [
        Section("devices", devices()),
        Section("packages", packages()),
        Section("codecs and filters", codecs()),
        Section("weight files", weight_files(folders)),
    ]


def devices() -> list[Finding]:
    found = [
        Finding("cpu", True, f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads in use")
    ]
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        found.append(Finding(f"cuda:{number}", True, f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB"))
    if not torch.cuda.is_available():
        found.append(Finding("cuda", False, f"torch {torch.__version__} sees no CUDA device"))
    return found


def packages() -> list[Finding]:
    found = []
    for name, purpose in PACKAGES.items():
        try:
            found.append(Finding(name, True, f"{version(name)}: {purpose}"))
        except PackageNotFoundError:
            found.append(Finding(name, False, f"needed for {purpose}"))
    return found


def codecs() -> list[Finding]:
    found = [
        Finding(name, can_encode(codec), f"{codec.encoder} and {codec.decoder} of PyAV {av.__version__}")
        for name, codec in CODECS.items()
    ]
    reason = why_vmaf_is_missing()
    return [*found, Finding(MODEL, reason is None, reason or f"PyAV {av.__version__}, model built in")]


def wanted_files() -> list[WantedFile]:
    """Every file that a score knows by its digest."""
    from torchvision.models import AlexNet_Weights, SqueezeNet1_0_Weights, SqueezeNet1_1_Weights, VGG16_Weights

    trunks = {
        "--lpips-weights alex=FILE": AlexNet_Weights.IMAGENET1K_V1,
        "--lpips-weights vgg=FILE": VGG16_Weights.IMAGENET1K_V1,
        "--lpips-weights squeeze=FILE": SqueezeNet1_1_Weights.IMAGENET1K_V1,
        "--squeezenet-weights FILE": SqueezeNet1_0_Weights.IMAGENET1K_V1,
    }
    wanted = [WantedFile.of("--i3d FILE", one) for one in I3D_FILES]
    wanted += [WantedFile.of("--inception FILE", one) for one in INCEPTION_FILES]
    for option, trunk in trunks.items():
        name = str(trunk.url).rpartition("/")[2]
        # torch hub's convention: a name ends in the first characters of the SHA-256
        wanted.append(WantedFile(option, name, Path(name).stem.rpartition("-")[2], "torchvision"))
    return wanted


def weight_files(folders: Sequence[Path]) -> list[Finding]:
    """Each wanted file with its place, then the files that are none of them."""
    wanted = wanted_files()
    known: dict[WantedFile, str] = {}
    others = []
    for path in sorted({path for folder in folders for path in files_below(folder)}):
        sha256, blob = digests(path)
        same = [one for one in wanted if sha256.startswith(one.digest) or blob == one.digest]
        known |= {one: f"{one.option}: {path} (sha256 {sha256})" for one in same}
        if not same:
            others.append(
                Finding(
                    path.name, True, f"digest not known, its layout decides what takes it: {path} (sha256 {sha256})"
                )
            )
    found = [
        Finding(one.name, True, known[one])
        if one in known
        else Finding(one.name, False, f"{one.option}; {one.where}; {digest_name(one.digest)}")
        for one in wanted
    ]
    return found + others


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.expanduser().rglob("*") if path.suffix in WEIGHT_SUFFIXES and path.is_file()]


def digests(path: Path) -> tuple[str, str]:
    """SHA-256, and the id that git gives the bytes; read in pieces."""
    sha256 = hashlib.sha256()
    blob = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(2**22):
            sha256.update(piece)
            blob.update(piece)
    return sha256.hexdigest(), blob.hexdigest()


def digest_name(digest: str) -> str:
    if len(digest) == 40:
        return f"git hash-object {digest}"
    return f"sha256 {digest}" if len(digest) == 64 else f"sha256 begins with {digest}"
