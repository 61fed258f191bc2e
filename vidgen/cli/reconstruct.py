"""`vidgen reconstruct`: a clip through a tokenizer and back, frame for frame, in constant memory."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from vidgen.cli.loading import Precision, load_tokenizer


@dataclass(frozen=True, kw_only=True)
class Command:
    """Send a clip through a tokenizer and back.

    The result has exactly as many frames as the clip, each of exactly its size. Long clips are streamed: memory stays
    the same however long they are, as far as the tokenizer can stream. Sound is left out.

    Example: vidgen reconstruct clip.mp4 --tokenizer shapes-fsq -o back.mp4
    """

    clip: Annotated[Positional[Path], arg(metavar="CLIP")]
    """A video file, a GIF, an image, or a folder of images."""
    tokenizer: str
    """Built-in name (see `vidgen models`), folder, or hub id."""
    output: Annotated[Path, arg(aliases=["-o"], metavar="FILE")]
    """The file to write: .mp4, .webm, .gif, .png for an image, or a name without a suffix for a folder of PNGs."""
    allow_damaged: bool = False
    """Take what can be read of a damaged clip, and say how much was lost, instead of an error."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Precision = "fp32"
    """Number format of the network."""


def run(command: Command) -> None:
    """Do it; errors are for the user."""
    import torch

    from vidgen.cli.streaming import Counted, reconstructed
    from vidgen.data import iter_frames, probe, write_video
    from vidgen.data.write import check_writable

    info = probe(command.clip)
    check_writable(command.output, fps=info.fps)
    if command.output.exists() and command.output.samefile(command.clip):
        raise ValueError(f"{command.output} is the clip itself, which would be lost; choose another name")
    if info.has_sound:
        print(f"vidgen: note: the sound of {command.clip} is left out", file=sys.stderr)
    tokenizer = load_tokenizer(command.tokenizer, device=command.device, precision=command.precision)
    frames = iter_frames(command.clip, strict=not command.allow_damaged)
    with torch.inference_mode():
        made = Counted(reconstructed(tokenizer, frames), total=info.num_frames)
        write_video(command.output, made, fps=info.fps)
    print(f"wrote {command.output} ({made.count} frames of {info.width}x{info.height} at {info.fps:g} frames/s)")
