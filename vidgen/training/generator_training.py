"""`train_generator`: from a `GeneratorRun` to a trained pipeline on disk."""

from pathlib import Path

import torch
from torch.utils.data import Dataset

from vidgen.pipelines.base import VideoPipeline
from vidgen.training.cached_clips import clips_of_run
from vidgen.training.clips import training_clips, validation_clips
from vidgen.training.config import GeneratorRun
from vidgen.training.generator_step import GeneratorStep
from vidgen.training.models import fresh_pipeline
from vidgen.training.order import seed_of
from vidgen.training.processes import build_accelerator
from vidgen.training.trainer import Trainer
from vidgen.training.unused_options import check_used

INITIAL_WEIGHTS = 31


def train_generator(run: GeneratorRun, *, pipeline: VideoPipeline | None = None) -> Path:
    """Train as `run` says; returns the folder of the exported pipeline (`run.output_dir / "model"`).

    Args:
        pipeline: train this one's generator in place of a fresh `run.preset` on `run.tokenizer`.

    Raises:
        ValueError: what the user can mend, in one line: unknown preset or tokenizer, unusable data, a run folder that
            is taken, a loss that is no number (`TrainingDiverged`), a full disk (`CheckpointNotWritten`).
    """
    check_used(run)
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
    frozen_text = None if pipeline.text_encoder.trained_jointly else pipeline.text_encoder
    clips, held_out, endless, join = clips_of_run(
        run,
        clips,
        validation_clips(run.data),
        tokenizer=pipeline.video_tokenizer,
        frozen_text=frozen_text,
        say=accelerator.print,
    )
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
