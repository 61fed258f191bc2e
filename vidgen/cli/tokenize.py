"""`vidgen tokenize`: the tokens of every clip in a folder, one safetensors file a clip."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from vidgen.cli import one_line
from vidgen.cli.loading import Precision, load_identified_tokenizer


@dataclass(frozen=True, kw_only=True)
class Command:
    """Write the tokens of every clip in a folder: one safetensors file for each, under the same name.

    `vidgen detokenize` makes them videos again; `vidgen.latents.Latents.load(FILE, tokenizer)` reads one for
    `tokenizer.decode`. Where tokens are ids, nothing else is written. A clip that cannot be read is named and left out,
    the others are written, and the exit code is 2.

    Example: vidgen tokenize clips/ --tokenizer shapes-fsq -o tokens/
    """

    folder: Annotated[Positional[Path], arg(metavar="DIR")]
    """A folder of clips, searched in its subfolders too, or one clip."""
    tokenizer: str
    """Built-in name (see `vidgen models`), folder, or hub id."""
    output: Annotated[Path, arg(aliases=["-o"], metavar="OUT")]
    """The folder to write to; made when it does not exist."""
    allow_damaged: bool = False
    """Take what can be read of damaged clips, and say how much was lost, instead of leaving them out."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Precision = "fp32"
    """Number format of the network."""


def run(command: Command) -> None:
    """Do it; errors are for the user."""
    import torch

    from vidgen.cli.streaming import tokens_of
    from vidgen.data import VideoError, find_videos, iter_frames, probe

    clips = find_videos(command.folder)
    tokenizer, weights = load_identified_tokenizer(
        command.tokenizer, device=command.device, precision=command.precision
    )
    unreadable = 0
    for clip in clips:
        try:
            rate = probe(clip).fps
            with torch.inference_mode():
                latents = tokens_of(tokenizer, iter_frames(clip, strict=not command.allow_damaged))
        except VideoError as error:
            unreadable += 1
            print(f"vidgen: {one_line(error)}", file=sys.stderr)
            continue
        alone = clip == command.folder  # a file, or a folder of images, which may be called `.`
        below = Path(os.path.basename(os.path.abspath(clip))) if alone else clip.relative_to(command.folder)
        path = command.output / below.with_name(f"{below.name}.safetensors")
        path.parent.mkdir(parents=True, exist_ok=True)
        latents.metadata.update(tokenizer=command.tokenizer, weights_sha256=weights, fps=f"{rate:g}")
        latents.save(path, ids_only=True)
        frames, height, width = latents.size
        print(f"{path}: {latents.tokens.shape[1]} tokens of {frames} frames of {width}x{height}")
    if unreadable:
        others = f"; the others are in {command.output}" if unreadable < len(clips) else ""
        raise ValueError(f"{unreadable} of {len(clips)} clips could not be read (named above){others}")
