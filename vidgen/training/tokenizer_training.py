"""`train_tokenizer`: from a `TokenizerRun` to a trained tokenizer on disk."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vidgen.tokenizers.base import Tokenizer
from vidgen.tokenizers.discriminator import (
    Discriminator,
    DiscriminatorPanel,
    PatchDiscriminator,
    TransformerDiscriminator,
)
from vidgen.tokenizers.losses import LearnedVariance
from vidgen.training.clips import collate, training_clips, validation_clips
from vidgen.training.config import TokenizerRun
from vidgen.training.critic import Adversary, DiscriminatorStep, FaithfulTerms, ReconstructionCritic, load_perceptual
from vidgen.training.curriculum import Curriculum
from vidgen.training.distillation import Distillation, Teacher
from vidgen.training.models import fresh_tokenizer
from vidgen.training.opponent import Opponent
from vidgen.training.order import seed_of
from vidgen.training.processes import build_accelerator
from vidgen.training.recipes import with_recipe
from vidgen.training.tokenizer_step import TokenizerStep
from vidgen.training.trainer import Trainer
from vidgen.training.unused_options import check_used

INITIAL_WEIGHTS, INITIAL_DISCRIMINATOR = 21, 22
TOKENS = "tokens"  # in `freeze`: all that makes them, whatever the tokenizer calls it


def train_tokenizer(run: TokenizerRun, *, tokenizer: Tokenizer | None = None, teacher: Teacher | None = None) -> Path:
    """Train as `run` says; returns the folder of the exported tokenizer (`run.output_dir / "model"`).

    Args:
        tokenizer: train this one in place of a fresh `run.preset`.
        teacher: gives the features that tokens have to tell, with `run.distillation_weight`.

    Raises:
        ValueError: what the user can mend, in one line: unknown preset, unusable data, missing weights, a run folder
            that is taken, a loss that is no number (`TrainingDiverged`), a full disk (`CheckpointNotWritten`).
    """
    given, run = run, with_recipe(run)
    notes = check_used(given, run)
    alone = run.image_share > 0 or run.images_until > 0  # layers in time rest while single frames are trained on
    accelerator = build_accelerator(run, finds_unused_parameters=alone)
    for note in notes:
        accelerator.print(note)
    torch.manual_seed(seed_of(run.seed, INITIAL_WEIGHTS))
    if tokenizer is None:
        tokenizer = fresh_tokenizer(run)
    clips, held_out = training_clips(run.data), validation_clips(run.data)
    torch.manual_seed(seed_of(run.seed, INITIAL_DISCRIMINATOR))
    critic = build_critic(run)
    opponent = None
    if critic is not None:
        if critic.faithful.perceptual is not None:
            critic.faithful.perceptual.to(accelerator.device)
        if critic.adversary is not None:
            opponent = build_opponent(run, critic, critic.adversary.panel.to(accelerator.device))
    source = clips if held_out is None else held_out
    statistics = StatisticsVideos(source, run.statistics_clips) if run.fit_statistics else None
    curriculum = Curriculum(
        seed=run.seed,
        image_share=run.image_share,
        images_until=run.images_until,
        sides=run.sides,
        sides_from=run.sides_from,
    )
    step = TokenizerStep(
        tokenizer,
        critic=critic,
        statistics=statistics,
        curriculum=curriculum,
        frame_masking=run.frame_masking,
        distillation=build_distillation(
            run, tokenizer, teacher, (clip.to(accelerator.device) for clip in StatisticsVideos(clips, 1))
        ),
    )
    step.freeze(f"tokenizer.{prefix}" for prefix in frozen_parts(run, tokenizer))
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


def frozen_parts(run: TokenizerRun, tokenizer: Tokenizer) -> tuple[str, ...]:
    """What the run leaves as it is, by names within the tokenizer: `tokens` stands for its `token_parts`.

    Raises:
        ValueError: tokens are to stay and their statistics are not, or the tokenizer does not say what makes them.
    """
    if TOKENS not in run.freeze:
        return run.freeze
    if run.fit_statistics:
        raise ValueError(
            "tokens are standardised by the statistics, which are measured anew at export; to freeze tokens keep them "
            "too (--no-fit-statistics)"
        )
    if not tokenizer.token_parts:
        raise ValueError(
            f"{type(tokenizer).__name__} does not say which of its parts make tokens (token_parts); freeze them by name"
        )
    return (*(name for name in run.freeze if name != TOKENS), *tokenizer.token_parts)


def build_critic(run: TokenizerRun) -> ReconstructionCritic | None:
    """The critic that the run asks for, None when the tokenizer's own pixel errors are all it wants."""
    own_errors_suffice = run.pixel_loss == "own" and not run.learned_variance and run.frame_masking == 0
    if own_errors_suffice and run.perceptual_weight == 0 and run.adversarial_weight == 0:
        return None
    perceptual = None
    if run.perceptual_weights is not None:
        perceptual = load_perceptual(run.perceptual_network, run.perceptual_weights)
    faithful = FaithfulTerms(
        pixels=run.pixel_loss,
        pixel_weight=run.pixel_weight,
        perceptual=perceptual,
        perceptual_weight=run.perceptual_weight,
        perceptual_frames=run.perceptual_frames,
        variance=LearnedVariance() if run.learned_variance else None,
    )
    return ReconstructionCritic(faithful, adversary=build_adversary(run) if run.adversarial_weight > 0 else None)


def build_adversary(run: TokenizerRun) -> Adversary:
    """Fresh discriminators, as the run describes them."""
    size = {"width": run.discriminator_width, "layers": run.discriminator_layers}
    judges: list[Discriminator]
    if run.discriminator_kind == "transformer":
        judges = [TransformerDiscriminator(**size)]
    else:
        patches = [PatchDiscriminator(**size, axes=each) for each in judged_axes(run)]
        for judge in patches:  # not after the thousands of steps before the first verdict
            judge.check_side(min(run.data.height, run.data.width, *run.sides))
        judges = [*patches]
    return Adversary(
        DiscriminatorPanel(*judges),
        loss=run.adversarial_loss,
        weight=run.adversarial_weight,
        adaptive=run.adaptive_weight,
        feature_weight=run.feature_weight,
        start=run.discriminator_start,
        warmup=run.adversarial_warmup,
    )


def judged_axes(run: TokenizerRun) -> tuple[Literal["frames", "video"], ...]:
    """What each of the discriminators of patches looks at."""
    return ("frames", "video") if run.discriminator_axes == "both" else (run.discriminator_axes,)


def build_opponent(run: TokenizerRun, critic: ReconstructionCritic, panel: DiscriminatorPanel) -> Opponent:
    step = DiscriminatorStep(
        panel,
        loss=run.adversarial_loss,
        r1_weight=run.r1_weight,
        lecam_weight=run.lecam_weight,
        names=judged_axes(run),
    ).to(next(panel.parameters()).device)
    return Opponent(critic, step, run.discriminator_optimiser, every=run.discriminator_every)


def build_distillation(
    run: TokenizerRun, tokenizer: Tokenizer, teacher: Teacher | None, example: Iterable[Tensor]
) -> Distillation | None:
    """The teacher's part; `example` is a clip that says how long its features are."""
    if (teacher is None) != (run.distillation_weight == 0):
        raise ValueError(
            f"a teacher and a weight for it go together; got distillation_weight {run.distillation_weight} and "
            f"{'no' if teacher is None else 'a'} teacher in train_tokenizer"
        )
    if teacher is None:
        return None
    with torch.no_grad():
        features = teacher(next(iter(example))).shape[1]
    return Distillation(
        tokenizer,
        teacher,
        features=features,
        weight=run.distillation_weight,
        channels=run.distillation_channels or None,
    )


class StatisticsVideos:
    """The first `count` clips of a dataset as videos `1 3 t h w`, as often as they are asked for."""

    def __init__(self, clips: Dataset, count: int) -> None:
        self.clips, self.count = clips, min(count, len(clips))  # pyright: ignore[reportArgumentType]

    def __iter__(self) -> Iterator[Tensor]:
        for index in range(self.count):
            yield self.clips[index]["video"].unsqueeze(0)
