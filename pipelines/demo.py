"""The main job on the built-in models: a prompt becomes a video three times, then a clip is reconstructed and scored.

Every line that starts with `$` is a command that you can type yourself. Run by `make demo`.
"""

import argparse
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, repeat
from PIL import Image

from vidgen.cli import main
from vidgen.data import Scene, ShapeObject, read_video, render, write_video

SCENE = Scene((ShapeObject("large", "yellow", "star", "moving right"),), "navy")
PIPELINES = ("shapes-masked", "shapes-flow", "shapes-ar")
TOKENIZER = "shapes-fsq"
STRIP_FRAMES = 6


def vidgen(*words: object) -> None:
    """Run one `vidgen` command in this process and leave with its exit code if it fails."""
    command = [str(word) for word in words]
    print(f"\n$ vidgen {shlex.join(command)}", flush=True)
    started = time.perf_counter()
    code = main(command)
    if code:
        sys.exit(code)
    print(f"  ({time.perf_counter() - started:.1f} s)", flush=True)


def write_strip(path: Path, videos: list[Path]) -> None:
    """One row of frames for each video, evenly spaced in time and twice as large, as one picture."""
    rows = []
    for video in videos:
        frames = read_video(video).frames
        chosen = frames[np.linspace(0, len(frames) - 1, STRIP_FRAMES).round().astype(int)]
        rows.append(rearrange(chosen, "t h w c -> h (t w) c"))
    Image.fromarray(repeat(np.concatenate(rows), "h w c -> (h 2) (w 2) c")).save(path)


def demo(folder: Path) -> None:
    """Write three generated videos, a clip, its reconstruction and its scores into `folder`."""
    for pipeline in PIPELINES:
        vidgen("generate", SCENE.caption, "--model", pipeline, "--seed", 1, "-o", folder / f"{pipeline}.mp4")
    write_strip(folder / "strip.png", [folder / f"{pipeline}.mp4" for pipeline in PIPELINES])
    clip = folder / "clip.mp4"
    write_video(
        clip, render(SCENE, num_frames=17, height=64, width=64, generator=torch.Generator().manual_seed(1)), fps=8
    )
    vidgen("reconstruct", clip, "--tokenizer", TOKENIZER, "-o", folder / "reconstruction.mp4")
    vidgen("eval", "recon", "--tokenizer", TOKENIZER, "--data", clip, "-o", folder / "scores.json")
    print(f"\nall files are in {folder}/")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="folder to write to")
    demo(parser.parse_args().out)
