"""Generated videos on disk: laid out and named as VBench expects, sampled so that an interrupted run goes on.

VBench reads ``{prompt}-{index}.mp4`` from one folder (github.com/Vchitect/VBench, prompts/README.md). Each video has
noise of its own, which depends on seed, prompt and index alone: neither batches nor what is already there change it.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from vidgen.data import find_videos, write_video
from vidgen.eval.obedience import TextToVideo, videos_of
from vidgen.eval.protocol import differing_conditions
from vidgen.eval.report import peak_memory_megabytes, reset_peak_memory, write_json

SCHEMA = "vidgen.samples/1"
LONGEST_NAME = 240  # bytes; file systems take 255, and a file has a longer name until it is complete
Suffix = Literal[".mp4", ""]


class SamplingCost(NamedTuple):
    """What videos took that were just made: ``batch_size`` at once, decoding and the first call's set-up included."""

    videos: int
    batch_size: int
    seconds_per_video: float  # wall clock
    peak_memory_megabytes: float  # as `peak_memory_megabytes`


def sample_path(folder: Path, prompt: str, index: int, *, suffix: Suffix) -> Path:
    """Where sample `index` of a prompt lies; without a suffix it is a folder of PNGs.

    Raises:
        ValueError: a prompt that cannot be a name.
    """
    name = f"{prompt}-{index}{suffix}"
    if "/" in prompt or "\0" in prompt or not prompt or prompt[0] == "." or len(name.encode()) > LONGEST_NAME:
        raise ValueError(
            f"videos are named by their prompts; {prompt!r} is empty, longer than {LONGEST_NAME} bytes, begins with a "
            "dot or has a slash; change it"
        )
    return folder / name


def read_prompts(path: str | Path) -> list[str]:
    """One prompt a line, such as VBench's lists; empty lines and repeated prompts are passed over."""
    lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    prompts = list(dict.fromkeys(line for line in lines if line))
    if not prompts:
        raise ValueError(f"expected a prompt a line in {path}, found none")
    return prompts


def samples_in(folder: str | Path) -> dict[str, list[Path]]:
    """The videos of a folder by prompt, in the order of their indices.

    A name that does not end in ``-{index}`` is a prompt with one sample.
    """
    found: dict[str, list[tuple[int, Path]]] = {}
    for path in find_videos(folder):
        name = path.stem if path.is_file() else path.name
        named = re.fullmatch(r"(.+)-(\d+)", name)
        prompt, index = (named[1], int(named[2])) if named else (name, 0)
        found.setdefault(prompt, []).append((index, path))
    return {prompt: [path for _, path in sorted(paths)] for prompt, paths in sorted(found.items())}


def sample_paths(folder: Path, prompts: Sequence[str], *, samples: int, suffix: Suffix) -> dict[str, list[Path]]:
    """Where `samples` videos of each prompt lie, in the order of `samples_in`. ValueError as `sample_path`."""
    return {
        prompt: [sample_path(folder, prompt, index, suffix=suffix) for index in range(samples)]
        for prompt in sorted(prompts)
    }


@torch.no_grad()
def sample_videos(
    pipeline: TextToVideo,
    prompts: Sequence[str],
    folder: Path,
    *,
    samples: int,
    suffix: Suffix,
    fps: float,
    seed: int,
    identity: dict[str, Any],
    batch_size: int = 8,
    say: Callable[[str], None] = lambda line: None,
    **call_kwargs: Any,
) -> SamplingCost | None:
    """Fill `folder` with `samples` videos of each prompt; what is there stays. None when all are there.

    Args:
        identity: of the model, JSON-able; FOLDER.samples.json keeps it with the settings.
        call_kwargs: passed to the pipeline: num_frames, num_inference_steps, guidance_scale…

    Raises:
        ValueError: a prompt that cannot be a name; a folder made by another model or with other settings.
    """
    paths = {
        (prompt, index): sample_path(folder, prompt, index, suffix=suffix)
        for prompt in prompts
        for index in range(samples)
    }
    _claim(folder, {"model": identity, "seed": seed, "fps": fps, "settings": call_kwargs})
    missing = [place for place, path in paths.items() if not path.exists()]
    say(f"{folder.name}: {len(paths) - len(missing)} of {len(paths)} videos are there")
    pipeline.set_progress_bar_config(disable=True)
    reset_peak_memory(pipeline.device)
    seconds = 0.0
    for first in range(0, len(missing), batch_size):
        batch = missing[first : first + batch_size]
        started = time.perf_counter()
        output = pipeline(
            prompt=[prompt for prompt, _ in batch],
            generator=[torch.Generator().manual_seed(noise_seed(seed, *place)) for place in batch],
            output_type="pt",
            **call_kwargs,
        )
        videos = videos_of(output.frames)
        seconds += time.perf_counter() - started
        for place, video in zip(batch, videos, strict=True):
            write_video(paths[place], video, fps=fps)
        say(f"{folder.name}: {len(paths) - len(missing) + first + len(batch)} of {len(paths)} videos")
    if not missing:
        return None
    return SamplingCost(len(missing), batch_size, seconds / len(missing), peak_memory_megabytes(pipeline.device))


def noise_seed(seed: int, prompt: str, index: int) -> int:
    """Of one video; the same wherever in a list its prompt stands."""
    return int.from_bytes(hashlib.sha256(json.dumps([seed, prompt, index]).encode()).digest()[:7], "big")


def conditions_file(folder: Path) -> Path:
    """Where the model and the settings are kept that made the videos of a folder."""
    return folder.with_name(f"{folder.name}.samples.json")


def cost_file(folder: Path) -> Path:
    """Where it is kept what making the videos of a folder took."""
    return folder.with_name(f"{folder.name}.cost.json")


def _claim(folder: Path, conditions: dict[str, Any]) -> None:
    """Keep the conditions beside the folder, or compare with those that are kept."""
    kept = conditions_file(folder)
    conditions = {"schema": SCHEMA} | json.loads(json.dumps(conditions))
    if not kept.exists():
        write_json(kept, conditions)
        return
    differences = differing_conditions(json.loads(kept.read_text(encoding="utf-8")), conditions)
    if differences:
        raise ValueError(
            f"{folder} was made under other conditions ({'; '.join(differences[:3])}); choose another folder or remove "
            f"it with {kept.name}"
        )
