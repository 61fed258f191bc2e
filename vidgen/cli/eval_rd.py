"""`vidgen eval rd`: quality over rate, tokenizers beside video codecs on the same frames."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from vidgen.cli import eval_recon

if TYPE_CHECKING:
    from vidgen.eval.codecs import CodecSubject


@dataclass(frozen=True, kw_only=True)
class Command(eval_recon.Command):
    """Put tokenizers beside x264, x265, SVT-AV1 or VP9: bits per pixel, scores, and how much more rate each needs.

    Prints every point with its interval over clips, and the BD-rate of every curve (for a single tokenizer: its excess
    in rate at equal quality) against the anchor. With -o it writes FILE.json, FILE.csv and FILE.clips/, from which the
    same command goes on after a crash.

    Example: vidgen eval rd --tokenizers shapes-fsq --data clips/ --codecs x264 x265 svtav1 -o rd.json --plot rd.svg
    """

    tokenizers: Annotated[tuple[str, ...], arg(metavar="NAMES", aliases=["--tokenizer"])] = ()
    """Built-in names, folders, hub ids; CURVE=NAME,NAME,… joins tokenizers of several rates to one curve."""
    codecs: Annotated[tuple[str, ...], arg(metavar="NAMES")] = ("x264",)
    """Out of x264, x265, svtav1, vp9 (4:2:0), x264-444, x265-444, vp9-444 (4:4:4) and x264-rgb."""
    crf: Annotated[tuple[int, ...], arg(metavar="NUMBERS")] = ()
    """Constant qualities for all codecs; each codec has four of its own by default (their scales differ)."""
    key_frames: int = 250
    """Most frames from one key frame to the next."""
    low_delay: bool = False
    """No frame refers to a later one."""
    anchor: str | None = None
    """The codec or curve that the others are compared with; the first codec by default."""
    plot: Annotated[Path | None, arg(metavar="FILE.svg")] = None
    """Where to write the curves as SVG."""
    protocol: str = "rd.v1"
    """Which frames are scored under which conventions; `vidgen eval list-protocols` has them all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.plot is not None and self.plot.suffix.lower() != ".svg":
            raise ValueError(f"--plot writes SVG; give it a name that ends in .svg, got {self.plot}")


def run(command: Command) -> None:
    """Do it; errors are for the user."""
    from vidgen.cli.loading import make_folder, pick_device
    from vidgen.cli.tables import print_whole
    from vidgen.eval.bootstrap import Bootstrap
    from vidgen.eval.protocol import ReconstructionProtocol
    from vidgen.eval.protocols import get_protocol
    from vidgen.eval.ranks import join_launch, rank
    from vidgen.eval.rate_distortion import Family, RateDistortionReport
    from vidgen.eval.recon_suite import evaluate

    make_folder(command.output)
    coders = codec_subjects(command)
    families = {}
    for coder in coders:
        families.setdefault(coder.family, []).append(coder.name)
    members = [curve_of(entry) for entry in command.tokenizers]
    families |= dict(members)
    anchor = anchor_among(families, command)
    device = join_launch(pick_device(command.device))
    protocol = eval_recon.with_overrides(get_protocol(command.protocol, ReconstructionProtocol), command)
    distances = eval_recon.perceptual_distances(command)
    clips, originals = eval_recon.read_clips(command, protocol)
    tokenizers = [
        eval_recon.subject_named(name, command, device=str(device), originals=originals, protocol=protocol)
        for _, names in members
        for name in names
    ]
    subjects = [*coders, *tokenizers]
    scored = evaluate(
        subjects,
        clips,
        protocol=protocol,
        distances=distances,
        bootstrap=Bootstrap(resamples=command.resamples),
        records=None if command.output is None else command.output.with_suffix(".clips"),
        allow_missing=command.allow_missing,
    )
    if rank() > 0:
        return
    report = RateDistortionReport(scored, [Family(name, tuple(names)) for name, names in families.items()], anchor)
    *before, last = report.tables()
    for table in before:
        print_whole(table)
    print_whole(last, *report.notes())
    if command.output is not None:
        for path in report.write(command.output):
            print(f"wrote {path}")
    if command.plot is not None:
        report.plot(command.plot)
        print(f"wrote {command.plot}")
    if command.html is not None:
        from vidgen.eval.frames_shown import frames_beside
        from vidgen.eval.html_report import write_rate_distortion

        write_rate_distortion(command.html, report, frames_beside(scored, subjects, clips))
        print(f"wrote {command.html}")


def anchor_among(families: dict[str, list[str]], command: Command) -> str:
    """The curve that --anchor names; a codec's own name also means its curve with low delay."""
    wanted = command.anchor or next(iter(families), "")
    found = [name for name in (wanted, f"{wanted} low delay") if name in families]
    if not found:
        raise ValueError(f"--anchor is one of the curves {', '.join(families)}; got {wanted!r}")
    return found[0]


def codec_subjects(command: Command) -> "list[CodecSubject]":
    """Every codec at every quality; ValueError for what does not exist."""
    from vidgen.eval.codecs import CODECS, CodecSubject

    names = [name for entry in command.codecs for name in entry.split(",")]
    unknown = [name for name in names if name not in CODECS]
    if unknown:
        raise ValueError(f"--codecs takes {', '.join(CODECS)}; got {', '.join(unknown)}")
    return [
        CodecSubject(name, crf, key_frame_distance=command.key_frames, low_delay=command.low_delay)
        for name in names
        for crf in command.crf or CODECS[name].crfs
    ]


def curve_of(entry: str) -> tuple[str, list[str]]:
    """The name of a curve and of the tokenizers on it."""
    curve, equals, names = entry.partition("=")
    return (curve, names.split(",")) if equals else (entry, [entry])
