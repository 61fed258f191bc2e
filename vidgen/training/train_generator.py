"""`train_generator`: from a `GeneratorRun` to a trained pipeline on disk."""

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import Dataset

from vidgen.data.digits import MovingDigits
from vidgen.data.shapes import ShapesWorld
from vidgen.pipelines.base import VideoPipeline
from vidgen.training.clips import collate, training_clips, validation_clips
from vidgen.training.config import GeneratorRun
from vidgen.training.generator_step import GeneratorStep
from vidgen.training.latent_cache import EncodedClips, cache_key, collate_encoded, encoded_clips
from vidgen.training.models import fresh_pipeline
from vidgen.training.order import seed_of
from vidgen.training.processes import build_accelerator
from vidgen.training.trainer import Trainer

INITIAL_WEIGHTS = 31


def train_generator(run: GeneratorRun, *, pipeline: VideoPipeline | None = None) -> Path:
    """Train as `run` says; returns the folder of the exported pipeline (`run.output_dir / "model"`).

    Args:
        pipeline: train this one's generator in place of a fresh `run.preset` on `run.tokenizer`.

    Raises:
        ValueError: what the user can mend, in one line: unknown preset or tokenizer, unusable data, a run folder that
            is taken, a loss that is no number (`TrainingDiverged`), a full disk (`CheckpointNotWritten`).
    """
    # Some weights rest: the text's last ones of MM-DiT, actions that nobody gives, known tokens where none are.
    accelerator = build_accelerator(run, finds_unused_parameters=True)
    torch.manual_seed(seed_of(run.seed, INITIAL_WEIGHTS))
    if pipeline is None:
        if max(run.lora_rank, run.control_layers) > 0 and run.init_from is None:
            raise ValueError("an adapter or a control branch needs a trained model: name it with --init-from")
        pipeline = fresh_pipeline(run)
    size = {"num_frames": run.data.num_frames, "height": run.data.height, "width": run.data.width}
    pipeline.register_to_config(defaults={**pipeline.config.defaults, **size})
    pipeline.video_tokenizer.to(accelerator.device).eval().requires_grad_(False)
    if not pipeline.text_encoder.trained_jointly:
        pipeline.text_encoder.to(accelerator.device).eval().requires_grad_(False)
    clips: Dataset = training_clips(run.data, captions_required=run.drop_text < 1)
    pipeline.text_encoder.meet(clips.captions())  # pyright: ignore[reportAttributeAccessIssue]
    held_out = validation_clips(run.data)
    endless, join = run.data.is_world, collate
    if run.cached_clips > 0:
        count = run.cached_clips if endless else min(run.cached_clips, len(clips))  # pyright: ignore[reportArgumentType]
        clips = cached(clips, run, pipeline, accelerator=accelerator, part="training", count=count)
        if held_out is not None:
            count = len(held_out)  # pyright: ignore[reportArgumentType]
            held_out = cached(held_out, run, pipeline, accelerator=accelerator, part="validation", count=count)
        endless, join = False, collate_encoded
    step = GeneratorStep(
        pipeline,
        drop_text=run.drop_text,
        known_frames=run.known_frames,
        tasks=run.tasks,
        task_frames=run.task_frames,
    )
    step.freeze(run.freeze)
    if run.lora_rank > 0:
        step.adapt(run.lora_rank)
    if run.control_layers > 0:
        step.add_control(run.control_layers, run.control)
    if run.references > 0:
        step.add_references(run.references)
    if run.compile:
        step.compile_blocks()
    trainer = Trainer(
        run, accelerator=accelerator, step=step, items=clips, endless=endless, collate=join, validation=held_out
    )
    return trainer.fit()


def cached(
    clips: Dataset, run: GeneratorRun, pipeline: VideoPipeline, *, accelerator: Accelerator, part: str, count: int
) -> EncodedClips:
    """A part of the data, encoded by one process and read by all."""
    frozen_text = None if pipeline.text_encoder.trained_jointly else pipeline.text_encoder
    facts: dict[str, Any] = {
        "data": asdict(run.data),
        "part": part,
        "count": count,
        "files": files_of(run),
        "code": code_of(run),
    }
    key = cache_key(pipeline.video_tokenizer, frozen_text, clips=facts)
    folder = run.cache_dir or run.output_dir / "cache"
    say: Callable[[str], None] = accelerator.print
    # One process encodes and the others wait for its lock, which has no limit as collectives have.
    return encoded_clips(
        folder, clips, count=count, key=key, tokenizer=pipeline.video_tokenizer, text_encoder=frozen_text, say=say
    )


def files_of(run: GeneratorRun) -> list[tuple[str, int, int]]:
    """Names, sizes and times of the files that clips come from, so that changed ones are encoded again."""
    folders = [] if run.data.is_world else [Path(run.data.source)]
    folders += [] if run.data.digits_dir is None else [run.data.digits_dir]
    paths = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]


def code_of(run: GeneratorRun) -> str:
    """Hash of the code that draws a built-in world's clips."""
    digest = hashlib.sha256()
    for world in (ShapesWorld, MovingDigits) if run.data.is_world else ():
        digest.update(Path(inspect.getfile(world)).read_bytes())
    return digest.hexdigest()
