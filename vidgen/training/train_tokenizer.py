"""`train_tokenizer`: from a `TokenizerRun` to a trained tokenizer on disk."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vidgen.tokenizers.base import Tokenizer
from vidgen.tokenizers.discriminator import PatchDiscriminator
from vidgen.training.clips import collate, training_clips, validation_clips
from vidgen.training.config import TokenizerRun
from vidgen.training.critic import ReconstructionCritic, load_perceptual
from vidgen.training.models import fresh_tokenizer
from vidgen.training.order import seed_of
from vidgen.training.tokenizer_step import TokenizerStep
from vidgen.training.trainer import Opponent, Trainer, build_accelerator

INITIAL_WEIGHTS, INITIAL_DISCRIMINATOR = 21, 22


def train_tokenizer(run: TokenizerRun, *, tokenizer: Tokenizer | None = None) -> Path:
    """Train as `run` says; returns the folder of the exported tokenizer (`run.output_dir / "model"`).

    Args:
        tokenizer: train this one in place of a fresh `run.preset`.

    Raises:
        ValueError: what the user can mend, in one line: unknown preset, unusable data, missing weights, a run folder
            that is taken, a loss that is no number (`TrainingDiverged`), a full disk (`CheckpointNotWritten`).
    """
    accelerator = build_accelerator(run, finds_unused_parameters=False)
    torch.manual_seed(seed_of(run.seed, INITIAL_WEIGHTS))
    if tokenizer is None:
        tokenizer = fresh_tokenizer(run)
    clips, held_out = training_clips(run.data), validation_clips(run.data)
    torch.manual_seed(seed_of(run.seed, INITIAL_DISCRIMINATOR))
    critic = build_critic(run)
    if critic is not None and critic.perceptual is not None:
        critic.perceptual.to(accelerator.device)
    opponent = None
    if critic is not None and critic.discriminator is not None:
        critic.discriminator.to(accelerator.device)
        opponent = Opponent(critic, run.discriminator_optimiser)
    source = clips if held_out is None else held_out
    statistics = StatisticsVideos(source, run.statistics_clips) if run.fit_statistics else None
    step = TokenizerStep(tokenizer, critic=critic, statistics=statistics)
    step.freeze(f"tokenizer.{prefix}" for prefix in run.freeze)
    trainer = Trainer(
        run,
        accelerator=accelerator,
        step=step,
        items=clips,
        endless=run.data.is_world,
        collate=collate,
        validation=held_out,
        opponent=opponent,
    )
    return trainer.fit()


def build_critic(run: TokenizerRun) -> ReconstructionCritic | None:
    """The critic that the run asks for, None when pixels are all it wants."""
    if run.perceptual_weight == 0 and run.adversarial_weight == 0:
        return None
    perceptual = None
    if run.perceptual_weights is not None:
        perceptual = load_perceptual(run.perceptual_network, run.perceptual_weights)
    discriminator = None
    if run.adversarial_weight > 0:
        discriminator = PatchDiscriminator(width=run.discriminator_width, axes=run.discriminator_axes)
    return ReconstructionCritic(
        perceptual=perceptual,
        perceptual_weight=run.perceptual_weight,
        perceptual_frames=run.perceptual_frames,
        discriminator=discriminator,
        adversarial_weight=run.adversarial_weight,
        start=run.discriminator_start,
    )


class StatisticsVideos:
    """The first `count` clips of a dataset as videos `1 3 t h w`, as often as they are asked for."""

    def __init__(self, clips: Dataset, count: int) -> None:
        self.clips, self.count = clips, min(count, len(clips))  # pyright: ignore[reportArgumentType]

    def __iter__(self) -> Iterator[Tensor]:
        for index in range(self.count):
            yield self.clips[index]["video"].unsqueeze(0)
