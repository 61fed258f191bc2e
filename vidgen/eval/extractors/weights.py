"""Weight files of feature networks: which published file is wanted, and whether the one given is that file."""

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Layout = Literal["state-dict", "torchscript"]


@dataclass(frozen=True)
class KnownFile:
    """A published weight file. Its digest is a SHA-256, or the id that git gives its bytes where only that is known."""

    name: str
    layout: Layout
    size: int | None  # bytes
    sha256: str | None
    git_blob: str | None
    where: str  # who publishes it

    def __str__(self) -> str:
        digest = f"sha256 {self.sha256}" if self.sha256 else f"git hash-object {self.git_blob}"
        size = f", {self.size:,} bytes" if self.size else ""
        return f"{self.name} ({self.where}; {digest}{size})"


@dataclass(frozen=True)
class Weights:
    """A file that was looked at. `known` names the published file it equals, None when it equals none."""

    path: Path | None  # None: no file, the weights follow from a recipe
    sha256: str
    layout: Layout
    known: str | None


I3D_FILES = (
    KnownFile(
        name="i3d_pretrained_400.pt",
        layout="state-dict",
        size=None,
        sha256=None,
        git_blob="a867b87ac3a9097d200598b1d48a1b890d8ec744",
        where="in the repositories songweige/TATS and JunyaoHu/common_metrics_on_video_quality",
    ),
    KnownFile(
        name="i3d_torchscript.pt",
        layout="torchscript",
        size=51_235_320,
        sha256="bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",
        git_blob="93daef59c7ae0e9e8f76225521407e60cbafa6aa",
        where="StyleGAN-V, and in the repository JunyaoHu/common_metrics_on_video_quality",
    ),
)
INCEPTION_FILES = (
    KnownFile(
        name="pt_inception-2015-12-05-6726825d.pth",
        layout="state-dict",
        size=95_628_359,
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        git_blob=None,
        where="release fid_weights of mseitzer/pytorch-fid, release v0.2.0 of toshas/torch-fidelity",
    ),
    KnownFile(
        name="inception-2015-12-05.pt",
        layout="torchscript",
        size=95_607_719,
        sha256="f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
        git_blob=None,
        where="NVlabs/stylegan2-ada-pytorch, clean-fid",
    ),
)


def identify(
    path: str | Path,
    *,
    known: tuple[KnownFile, ...],
    network: str,
    sha256: str | None = None,
    torchscript: bool = False,
) -> Weights:
    """Read the digests of a weight file and hold them against the published ones; nothing in it is executed.

    Args:
        sha256: digest of another file that the caller vouches for; results with it do not get the published name.
        torchscript: the caller agrees to run the program in a TorchScript file whose digest fits.

    Raises:
        ValueError: no such file; another digest; a TorchScript file without consent. Each says which file is wanted.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{network} needs a weight file, and there is none at {path}; {files_wanted(known)}")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    same = next((one for one in known if digest == one.sha256 or (one.sha256 is None and blob == one.git_blob)), None)
    if same is None and known and digest != sha256:
        raise ValueError(
            f"{path} is not a published weight file of {network} (sha256 {digest}); {files_wanted(known)}; for a file "
            "of your own state its digest with --weights-sha256"
        )
    if same is None and sha256 is not None and digest != sha256:
        raise ValueError(f"{path} has sha256 {digest}, expected {sha256}")
    layout: Layout = "torchscript" if _is_torchscript(path) else "state-dict"
    if layout == "torchscript" and not torchscript:
        raise ValueError(
            f"{path} is a TorchScript file: loading it runs the program in it; pass --torchscript if you trust it, or "
            "use the state-dict file"
        )
    return Weights(path, digest, layout, None if same is None else same.name)


def files_wanted(known: tuple[KnownFile, ...]) -> str:
    """Which files fit, in words for messages."""
    return "wanted is " + " or ".join(str(one) for one in known) if known else "any file of that network fits"


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/")[1:2] == ["constants.pkl"] for name in archive.namelist())
