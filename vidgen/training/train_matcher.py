"""`train_matcher`: from a `MatcherRun` to a trained matcher on disk."""

from pathlib import Path

import torch

import vidgen
from vidgen.tokenizers.base import Tokenizer
from vidgen.training.clips import collate, training_clips, validation_clips
from vidgen.training.config import MatcherRun
from vidgen.training.matcher_step import MatcherStep
from vidgen.training.models import fresh_matcher
from vidgen.training.order import seed_of
from vidgen.training.processes import build_accelerator
from vidgen.training.trainer import Trainer

INITIAL_WEIGHTS = 41


def train_matcher(run: MatcherRun) -> Path:
    """Train as `run` says; returns the folder of the exported matcher (`run.output_dir / "model"`).

    Raises:
        ValueError: what the user can mend, in one line: unknown preset or tokenizer, clips without captions, a run
            folder that is taken, a loss that is no number (`TrainingDiverged`), a full disk (`CheckpointNotWritten`).
    """
    accelerator = build_accelerator(run, finds_unused_parameters=False)
    torch.manual_seed(seed_of(run.seed, INITIAL_WEIGHTS))
    matcher = fresh_matcher(run)
    clips = training_clips(run.data, captions_required=True, near_misses=run.near_misses)
    matcher.text_encoder.meet(clips.captions())  # pyright: ignore[reportAttributeAccessIssue]
    step = MatcherStep(
        matcher,  # pyright: ignore[reportArgumentType]
        tokenizers=[frozen_tokenizer(name).to(accelerator.device) for name in run.tokenizers],
        broken=run.broken,
        shortest=run.shortest,
        others=run.others,
    )
    step.freeze(f"matcher.{prefix}" for prefix in run.freeze)
    trainer = Trainer(
        run,
        accelerator=accelerator,
        step=step,
        items=clips,
        endless=run.data.is_world,
        collate=collate,
        validation=validation_clips(run.data, near_misses=run.near_misses),
    )
    return trainer.fit()


def frozen_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of that name, which helps and is not trained; ValueError if it is none with one grid of tokens."""
    tokenizer = vidgen.load(name)
    if not isinstance(tokenizer, Tokenizer) or [part.axes for part in tokenizer.spec.parts] != ["thw"]:
        raise ValueError(f"expected a video tokenizer with one grid of tokens, and {name!r} is none; leave it out")
    return tokenizer.eval().requires_grad_(False)
