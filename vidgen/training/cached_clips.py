"""The clips of a run on tokens: encoded anew for every batch, or once for all."""

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from vidgen.conditioning import TextEncoder
from vidgen.data.digits import MovingDigits
from vidgen.data.shapes import ShapesWorld
from vidgen.data.shapes_timelines import ShapesTimelines
from vidgen.tokenizers.base import Tokenizer
from vidgen.training.clips import collate
from vidgen.training.config import LatentRun
from vidgen.training.latent_cache import EncodedClips, cache_key, collate_encoded, encoded_clips
from vidgen.training.step import Batch


def clips_of_run(
    run: LatentRun,
    clips: Dataset,
    held_out: Dataset | None,
    *,
    tokenizer: Tokenizer,
    frozen_text: TextEncoder | None,
    say: Callable[[str], None],
) -> tuple[Dataset, Dataset | None, bool, Callable[[list[dict]], Batch]]:
    """Training and validation items as the run wants them, whether they never end, and how they become batches.

    Args:
        clips, held_out: of the run's data.
        frozen_text: text encoder whose states are kept beside the tokens; `None` keeps captions only.
        say: told what happens.
    """
    if run.cached_clips == 0:
        return clips, held_out, run.data.is_world, collate
    helpers: dict[str, Any] = {"tokenizer": tokenizer, "frozen_text": frozen_text, "say": say}
    count = run.cached_clips if run.data.is_world else min(run.cached_clips, len(clips))  # pyright: ignore[reportArgumentType]
    encoded = cached(clips, run, part="training", count=count, **helpers)
    if held_out is not None:
        count = len(held_out)  # pyright: ignore[reportArgumentType]
        held_out = cached(held_out, run, part="validation", count=count, **helpers)
    return encoded, held_out, False, collate_encoded


def cached(
    clips: Dataset,
    run: LatentRun,
    *,
    tokenizer: Tokenizer,
    frozen_text: TextEncoder | None,
    say: Callable[[str], None],
    part: str,
    count: int,
) -> EncodedClips:
    """A part of the data, encoded by one process and read by all."""
    facts: dict[str, Any] = {
        "data": asdict(run.data),
        "part": part,
        "count": count,
        "files": files_of(run),
        "code": code_of(run),
    }
    key = cache_key(tokenizer, frozen_text, clips=facts)
    folder = run.cache_dir or run.output_dir / "cache"
    # One process encodes and the others wait for its lock, which has no limit as collectives have.
    return encoded_clips(
        folder,
        clips,
        count=count,
        key=key,
        tokenizer=tokenizer,
        text_encoder=frozen_text,
        say=say,
        workers=run.workers,
    )


def files_of(run: LatentRun) -> list[tuple[str, int, int]]:
    """Names, sizes and times of the files that clips come from, so that changed ones are encoded again."""
    folders = [] if run.data.is_world else [Path(run.data.source)]
    folders += [] if run.data.digits_dir is None else [run.data.digits_dir]
    paths = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]


def code_of(run: LatentRun) -> str:
    """Hash of the code that draws a built-in world's clips."""
    digest = hashlib.sha256()
    for world in (ShapesWorld, ShapesTimelines, MovingDigits) if run.data.is_world else ():
        digest.update(Path(inspect.getfile(world)).read_bytes())
    return digest.hexdigest()
