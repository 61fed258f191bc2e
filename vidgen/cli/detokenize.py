"""`vidgen detokenize`: the videos whose tokens `vidgen tokenize` wrote."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from vidgen.cli import one_line
from vidgen.cli.generate import output_files
from vidgen.cli.loading import Precision, load_identified_tokenizer

if TYPE_CHECKING:
    from vidgen.latents import Latents

VIDEOS = (".mp4", ".webm", ".gif")


@dataclass(frozen=True, kw_only=True)
class Command:
    """Turn files of tokens back into videos.

    Each video has as many frames as the clip had, of its size and at its rate. Tokens mean something to the very
    tokenizer that made them: files that say to come from other weights are refused. A file that cannot be read is named
    and left out, the others are written, and the exit code is 2.

    Example: vidgen detokenize tokens/ --tokenizer shapes-fsq -o videos/
    """

    tokens: Annotated[Positional[Path], arg(metavar="TOKENS")]
    """A folder of token files, searched in its subfolders too, or one file."""
    tokenizer: str
    """The tokenizer that made them: built-in name (see `vidgen models`), folder, or hub id."""
    output: Annotated[Path, arg(aliases=["-o"], metavar="OUT")]
    """The folder to write to; made when it does not exist."""
    format: Annotated[str | None, arg(metavar="mp4|webm|gif|png")] = None
    """Format of all videos, png for a folder of images each; by default the clip's if it can be written, or mp4."""
    fps: float | None = None
    """Frames per second; by default those of the clip."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Precision = "fp32"
    """Number format of the network."""


def run(command: Command) -> None:
    """Do it; errors are for the user."""
    import torch

    from vidgen.cli.streaming import decoded
    from vidgen.data import write_video
    from vidgen.latents import Latents

    if command.format not in (None, "png", *(suffix[1:] for suffix in VIDEOS)):
        raise ValueError(f"--format takes mp4, webm, gif or png; got {command.format!r}")
    files = token_files(command.tokens)
    tokenizer, weights = load_identified_tokenizer(
        command.tokenizer, device=command.device, precision=command.precision
    )
    refused = 0
    for file in files:
        try:
            latents = Latents.load(file, tokenizer)
            check_origin(latents, file, tokenizer=command.tokenizer, weights=weights)
            rate = frame_rate(latents, file) if command.fps is None else command.fps
            below = file.relative_to(command.tokens) if command.tokens.is_dir() else Path(file.name)
            name = video_name(file, command.format, frames=latents.size[0])
            paths = output_files(command.output / below.with_name(name), len(latents))
            for number, path in enumerate(paths):
                with torch.inference_mode():
                    write_video(path, decoded(tokenizer, [latents[number : number + 1]]), fps=rate)
        except ValueError as error:
            refused += 1
            print(f"vidgen: {one_line(error)}", file=sys.stderr)
            continue
        frames, height, width = latents.size
        for path in paths:
            print(f"{path}: {frames} frames of {width}x{height} at {rate:g} frames/s")
    if refused:
        others = f"; the others are in {command.output}" if refused < len(files) else ""
        raise ValueError(f"{refused} of {len(files)} files could not be decoded (named above){others}")


def token_files(root: Path) -> list[Path]:
    """The token files at or below a path, sorted; ValueError if there is none."""
    files = [root] if root.is_file() else sorted(root.rglob("*.safetensors"))
    if not files:
        raise ValueError(
            f"expected files of tokens (.safetensors) in {root}, found none; `vidgen tokenize` writes them"
        )
    return files


def check_origin(latents: "Latents", file: Path, *, tokenizer: str, weights: str) -> None:
    """ValueError if the file says that its tokens come from other weights."""
    if latents.metadata.get("weights_sha256", weights) != weights:
        made_by = latents.metadata.get("tokenizer", "another tokenizer")
        raise ValueError(
            f"the tokens in {file} come from {made_by!r} with other weights than {tokenizer!r} has here, and would not "
            "decode to the clip; give the tokenizer that made them"
        )


def frame_rate(latents: "Latents", file: Path) -> float:
    """Frames per second of the clip; ValueError if the file does not say, or says something else than a rate."""
    said = latents.metadata.get("fps", "nothing")
    try:
        rate = float(said)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise ValueError(f"{file} says {said[:20]!r} where its frames per second should stand; give them with --fps")
    return rate


def video_name(file: Path, format: str | None, *, frames: int) -> str:
    """`clip.mp4.safetensors` -> `clip.mp4`; of a format that cannot be written, `clip.avi.mp4`; of an image, `.png`."""
    from vidgen.data.decode import IMAGE_SUFFIXES

    name = file.name.removesuffix(".safetensors")
    stem, suffix = Path(name).stem, Path(name).suffix.lower()
    if format is None and frames == 1 and suffix in IMAGE_SUFFIXES:
        return name if suffix == ".png" else f"{name}.png"
    if format is None:
        return name if suffix in VIDEOS else f"{name}.mp4"
    kept = stem if suffix in VIDEOS else name
    return kept.replace(".", "_") if format == "png" else f"{kept}.{format}"
