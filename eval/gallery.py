"""The README's pictures (`make gallery`): the same prompts through every built-in pipeline, and reconstruction pairs.

Writes docs/images/shapes.gif (moving) and shapes.png (the same as strips of frames): one row for each prompt, one
column for each pipeline; and reconstructions.png: rendered clips beside what each built-in tokenizer makes of them.
Prompts and seeds are the first ones tried.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange, repeat
from numpy.typing import NDArray
from PIL import Image

import vidgen
from vidgen.data import parse_caption, render

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
PIPELINES = ("shapes-masked", "shapes-flow", "shapes-ar")
TOKENIZERS = ("shapes-fsq", "shapes-kl")
PROMPTS = (
    "a large yellow star moving right on a navy background",
    "a small red circle moving left on a gray background",
    "a large cyan square growing on a black background",
    "a large green triangle spinning on a brown background",
    "a small white star moving up and a large purple circle staying still on a navy background",
)
SEED = 1
FRAMES_A_SECOND = 8
STRIP_FRAMES = 5
GAP = 4  # pixels between two videos


def generate(name: str) -> list[NDArray[np.uint8]]:
    """One video `t h w c` for each prompt."""
    pipeline: Any = vidgen.load(name)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(SEED) for _ in PROMPTS]
    frames = pipeline(list(PROMPTS), generator=generators, output_type="np").frames
    return list((frames * 255).round().astype(np.uint8))


def reconstruct(name: str, clips: list[torch.Tensor]) -> list[NDArray[np.uint8]]:
    """Each clip `c t h w` through a tokenizer and back, as `t h w c`."""
    tokenizer: Any = vidgen.load(name)
    with torch.no_grad():
        return [as_pixels(tokenizer.decode(tokenizer.encode(clip[None]))[0]) for clip in clips]


def as_pixels(video: torch.Tensor) -> NDArray[np.uint8]:
    scaled = ((video.clamp(-1, 1) + 1) * 127.5).round().byte()
    return rearrange(scaled, "c t h w -> t h w c").numpy()


def strip(video: NDArray[np.uint8], frames: int = STRIP_FRAMES) -> NDArray[np.uint8]:
    """Evenly spaced frames beside each other, `h (t w) c`."""
    chosen = video[np.linspace(0, len(video) - 1, frames).round().astype(int)]
    return rearrange(chosen, "t h w c -> h (t w) c")


def grid(rows: list[list[NDArray[np.uint8]]], scale: int) -> NDArray[np.uint8]:
    """Pictures of equal size `h w c` in rows and columns with white gaps, each pixel `scale` wide."""
    padding = ((0, GAP), (0, GAP), (0, 0))
    lines = [np.concatenate([np.pad(cell, padding, constant_values=255) for cell in row], axis=1) for row in rows]
    return repeat(np.concatenate(lines)[:-GAP, :-GAP], f"h w c -> (h {scale}) (w {scale}) c")


def main() -> None:
    columns = [generate(name) for name in PIPELINES]
    rows = [list(videos) for videos in zip(*columns, strict=True)]
    Image.fromarray(grid([[strip(video) for video in row] for row in rows], 1)).save(IMAGES / "shapes.png")
    moving = [Image.fromarray(grid([[video[t] for video in row] for row in rows], 2)) for t in range(len(rows[0][0]))]
    still = {"save_all": True, "append_images": moving[1:], "loop": 0, "duration": 1000 // FRAMES_A_SECOND}
    moving[0].save(IMAGES / "shapes.gif", **still)

    clips = []
    for prompt in PROMPTS:
        generator = torch.Generator().manual_seed(SEED)
        clips.append(render(parse_caption(prompt), num_frames=17, height=64, width=64, generator=generator))
    versions = [[as_pixels(clip) for clip in clips], *(reconstruct(name, clips) for name in TOKENIZERS)]
    rows = [[strip(video) for video in videos] for videos in versions]
    Image.fromarray(grid([list(row) for row in zip(*rows, strict=True)], 1)).save(IMAGES / "reconstructions.png")


if __name__ == "__main__":
    main()
