"""`train_matcher`: from a `MatcherRun` to a trained matcher on disk."""

from pathlib import Path
from typing import Any

import torch

from vidgen.data.shapes import HELD_OUT_PAIRS, near_miss, parse_caption
from vidgen.matchers.presets import MATCHER_PRESETS
from vidgen.training.cached_clips import clips_of_run
from vidgen.training.clips import training_clips, validation_clips
from vidgen.training.config import MatcherRun
from vidgen.training.matcher_step import MatcherStep, NearMiss
from vidgen.training.models import check_name, fresh_matcher, tokenizer_of
from vidgen.training.order import seed_of
from vidgen.training.processes import build_accelerator
from vidgen.training.trainer import Trainer
from vidgen.training.unused_options import check_used

INITIAL_WEIGHTS = 41


def train_matcher(run: MatcherRun) -> Path:
    """Train as `run` says; returns the folder of the exported matcher (`run.output_dir / "model"`).

    Raises:
        ValueError: what the user can mend, in one line: unknown preset or tokenizer, clips without captions, a run
            folder that is taken, a loss that is no number (`TrainingDiverged`), a full disk (`CheckpointNotWritten`).
    """
    check_used(run)
    accelerator = build_accelerator(run, finds_unused_parameters=False)
    torch.manual_seed(seed_of(run.seed, INITIAL_WEIGHTS))
    check_name(run.preset, MATCHER_PRESETS)
    tokenizer = tokenizer_of(run, MATCHER_PRESETS[run.preset].tokenizer)
    matcher: Any = fresh_matcher(run, tokenizer)
    tokenizer.to(accelerator.device).eval().requires_grad_(False)
    clips, held_out, endless, join = clips_of_run(
        run,
        training_clips(run.data, captions_required=True),
        validation_clips(run.data),
        tokenizer=tokenizer,
        frozen_text=None,
        say=accelerator.print,
    )
    step = MatcherStep(
        matcher,
        tokenizer,
        near_miss=near_miss_of(run),
        near_misses=run.near_misses,
        others=run.others,
        broken=run.broken,
        shortest=run.shortest,
    )
    step.freeze(f"matcher.{prefix}" for prefix in run.freeze)
    trainer = Trainer(
        run, accelerator=accelerator, step=step, items=clips, endless=endless, collate=join, validation=held_out
    )
    return trainer.fit()


def near_miss_of(run: MatcherRun) -> NearMiss | None:
    """Captions of the shapes world that are nearly right; `None` for other data, whose captions have no grammar."""
    if run.data.source != "shapes":
        return None
    hold_out = HELD_OUT_PAIRS if run.data.hold_out else frozenset()
    return lambda caption, generator: near_miss(parse_caption(caption), generator=generator, hold_out=hold_out).caption
