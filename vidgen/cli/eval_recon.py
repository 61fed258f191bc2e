"""`vidgen eval recon`: how well tokenizers give clips back, how small their tokens are, how fast they are."""

import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from vidgen.cli.loading import Precision, load_tokenizer, make_folder, pick_device

if TYPE_CHECKING:
    from vidgen.eval.clips import ClipSet
    from vidgen.eval.perceptual import FrameDistance
    from vidgen.eval.protocol import ReconstructionProtocol
    from vidgen.eval.subjects import Subject

WORLD = "shapes"
FOLDER = "folder:"


@dataclass(frozen=True, kw_only=True)
class Command:
    """Score tokenizers on clips: PSNR, SSIM, LPIPS, temporal errors, tokens, bits, codebook use, speed and memory.

    Prints every score with its interval over clips, and the paired difference of each tokenizer to the first. With -o
    it writes FILE.json (everything, with conventions and machine), FILE.csv, and the results of single clips into
    FILE.clips/ as they come: the same command goes on after a crash, and more tokenizers reuse what is there.

    Several processes share the clips: accelerate launch --multi_gpu --num_processes 2 -m vidgen.cli eval recon …

    Example: vidgen eval recon --tokenizers shapes-fsq shapes-kl --data clips/ -o scores/shapes.json
    """

    tokenizers: Annotated[tuple[str, ...], arg(metavar="NAMES", aliases=["--tokenizer"])]
    """Built-in names (see `vidgen models`), folders, hub ids, diffusers:DIR, or folder:DIR for finished videos."""
    data: Annotated[tuple[str, ...], arg(metavar="DIR_OR_FILES")]
    """Folders of clips, clips, or the word `shapes` for the procedural world."""
    protocol: str = "recon.v1"
    """Which frames are scored under which conventions; `vidgen eval list-protocols` has them all."""
    output: Annotated[Path | None, arg(aliases=["-o"], metavar="FILE")] = None
    """Where to write FILE.json, FILE.csv and FILE.clips/."""
    html: Annotated[Path | None, arg(metavar="FILE")] = None
    """Where to write a page with tables, charts and frames under a slider; it needs no other file."""
    max_frames: int | None = None
    """Score so many frames of each clip; as the protocol says by default."""
    fps: float | None = None
    """Resample the clips to this many frames a second; as the protocol says by default."""
    size: tuple[int, int] | None = None
    """Height and width to scale and crop the clips to; as the protocol says by default."""
    num_clips: int = 64
    """How many clips of `shapes` are drawn."""
    allow_missing: bool = False
    """Leave out clips that cannot be scored (damaged, too short, twice the same) and list them in the result."""
    squeezenet_weights: Path | None = None
    """ImageNet SqueezeNet 1.0 weights, for the score `squeezenet.features`."""
    lpips_weights: Annotated[tuple[str, ...], arg(metavar="NET=FILE")] = ()
    """ImageNet weights of LPIPS backbones in torchvision's layout: alex=FILE vgg=FILE squeeze=FILE."""
    lpips_net: Literal["alex", "vgg", "squeeze"] = "alex"
    """The backbone of an --lpips-weights that is a file alone."""
    resamples: int = 2000
    """Draws of the bootstrap behind the intervals."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Precision = "fp32"
    """Number format of the networks."""

    def __post_init__(self) -> None:
        if WORLD in self.data and len(self.data) > 1:
            raise ValueError(f"score {WORLD!r} and your own clips in two calls; got --data {' '.join(self.data)}")


def run(command: Command) -> None:
    """Do it; errors are for the user."""
    from vidgen.cli.tables import print_whole
    from vidgen.eval.bootstrap import Bootstrap
    from vidgen.eval.protocol import ReconstructionProtocol
    from vidgen.eval.protocols import get_protocol
    from vidgen.eval.ranks import join_launch, rank
    from vidgen.eval.recon_suite import evaluate

    device = join_launch(pick_device(command.device))
    protocol = with_overrides(get_protocol(command.protocol, ReconstructionProtocol), command)
    distances = perceptual_distances(command)
    clips, originals = read_clips(command, protocol)
    subjects = [
        subject_named(name, command, device=str(device), originals=originals, protocol=protocol)
        for name in command.tokenizers
    ]
    for path in (command.output, command.html):
        make_folder(path)
    report = evaluate(
        subjects,
        clips,
        protocol=protocol,
        distances=distances,
        bootstrap=Bootstrap(resamples=command.resamples),
        records=None if command.output is None else command.output.with_suffix(".clips"),
        on_clip=Told(len(clips.clips)) if rank() == 0 else None,
        allow_missing=command.allow_missing,
    )
    if rank() > 0:
        return
    print_whole(report.table(), *report.notes())
    if command.output is not None:
        for path in report.write(command.output):
            print(f"wrote {path}")
    if command.html is not None:
        from vidgen.eval.frames_shown import frames_beside
        from vidgen.eval.html_report import write_reconstruction

        write_reconstruction(command.html, report, frames_beside(report, subjects, clips))
        print(f"wrote {command.html}")


class Told:
    """Says now and then, where the errors go, which clip is about to be scored."""

    def __init__(self, clips: int, *, every: float = 10.0) -> None:
        self.clips, self.every = clips, every
        self.seen: Counter[str] = Counter()
        self.last = time.monotonic()

    def __call__(self, subject: str, clip: str) -> None:
        self.seen[subject] += 1
        if time.monotonic() - self.last >= self.every:
            self.last = time.monotonic()
            print(f"{subject}: clip {self.seen[subject]} of {self.clips}, {clip}", file=sys.stderr)


def with_overrides(protocol: "ReconstructionProtocol", command: Command) -> "ReconstructionProtocol":
    """The protocol with what the options change; its hash then differs from the preset's."""
    from vidgen.eval.protocol import Resize

    changes = {"max_frames": command.max_frames, "fps": command.fps}
    clip = replace(protocol.clip, **{name: value for name, value in changes.items() if value is not None})
    preprocess = protocol.preprocess
    if command.size is not None:
        height, width = command.size
        resize = Resize(height=height, width=width, fit="cover", kernel="swscale")
        preprocess = replace(preprocess, resizes=(resize,))
    return replace(protocol, clip=clip, preprocess=preprocess)


def perceptual_distances(command: Command) -> "list[FrameDistance]":
    """The distances whose weights were given."""
    from vidgen.eval.perceptual import distances_from_files

    lpips = []
    for entry in command.lpips_weights:
        net, _, file = entry.rpartition("=")
        if net not in ("", "alex", "vgg", "squeeze"):
            raise ValueError(f"--lpips-weights takes alex=FILE, vgg=FILE or squeeze=FILE; got {entry!r}")
        lpips.append((net or command.lpips_net, file))
    spatial = command.protocol == "recon.opensoraplan"
    return distances_from_files(command.squeezenet_weights, lpips, spatial=spatial)


def read_clips(command: Command, protocol: "ReconstructionProtocol") -> "tuple[ClipSet, dict[str, Path]]":
    """The clips to score, and the files that they come from by name."""
    from vidgen.data import ShapesWorld
    from vidgen.eval.clips import ClipSet, clips_for_protocol, clips_from_dataset, find_clips
    from vidgen.eval.protocol import ClipRule

    if command.data == (WORLD,):
        if protocol.clip != ClipRule() or protocol.preprocess.resizes:
            raise ValueError(
                f"--data {WORLD} is scored as it is drawn (17 frames of 64x64), and the conditions asked for cut or "
                "scale clips; take --protocol recon.v1 without --max-frames, --fps and --size, or give files"
            )
        origin = {"world": WORLD, "seed": 1, "decoded_lossy": False}
        return ClipSet(clips_from_dataset(ShapesWorld(seed=1), command.num_clips), origin=origin), {}
    files = find_clips(command.data)
    return clips_for_protocol(files, protocol, allow_missing=command.allow_missing), files


def subject_named(
    name: str, command: Command, *, device: str, originals: dict[str, Path], protocol: "ReconstructionProtocol"
) -> "Subject":
    """A tokenizer, or the folder of finished videos that `folder:DIR` names."""
    from vidgen.eval.subjects import FolderSubject, TokenizerSubject

    if name.startswith(FOLDER):
        return FolderSubject(name.removeprefix(FOLDER), name, originals=originals, protocol=protocol)
    return TokenizerSubject(load_tokenizer(name, device=device, precision=command.precision), name)
