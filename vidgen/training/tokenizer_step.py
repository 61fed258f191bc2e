"""One training step of a tokenizer: its own losses under a critic."""

import copy
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from vidgen.bottlenecks.record import recorded_bottlenecks
from vidgen.nn.random import Generators
from vidgen.tokenizers.base import Tokenizer
from vidgen.training.checkpoint import write_folder
from vidgen.training.critic import ReconstructionCritic
from vidgen.training.curriculum import Curriculum, without_frames
from vidgen.training.distillation import Distillation
from vidgen.training.monitor import CodebookCounter
from vidgen.training.step import Batch, TrainingStep


class TokenizerStep(TrainingStep):
    """Trains `tokenizer`.

    Args:
        critic: pixel, perceptual and adversarial terms, or None for the tokenizer's own losses alone.
        statistics: videos `b 3 t h w` whose latents' mean and deviation are measured at export; None keeps the
            statistics that the tokenizer has.
        curriculum: the shapes of the clips; None takes them as they come.
        frame_masking: share of a clip's frames that the tokenizer does not see; needs a critic.
        distillation: a teacher's part, or None.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        critic: ReconstructionCritic | None,
        statistics: Iterable[Tensor] | None,
        curriculum: Curriculum | None = None,
        frame_masking: float = 0.0,
        distillation: Distillation | None = None,
    ) -> None:
        super().__init__()
        if frame_masking > 0 and not tokenizer.learns_hidden_frames:
            raise ValueError(
                f"{type(tokenizer).__name__} is trained on what it sees or on pieces of a clip, never on hidden "
                "frames; set frame_masking to 0 (or, around another tokenizer, train that one with it first)"
            )
        self.tokenizer = tokenizer
        self.critic, self.curriculum = critic, curriculum
        self.frame_masking, self.distillation = frame_masking, distillation
        self.statistics = statistics
        self.codes = CodebookCounter()
        if critic is not None and critic.faithful.variance is not None:
            self.variance = critic.faithful.variance  # trained along, not exported
        if distillation is not None:
            self.distillation_head = distillation.head

    def forward(self, batch: Batch, generators: Generators) -> dict[str, Tensor]:
        video, step = batch["video"], batch["step"]
        if self.curriculum is not None:
            video = self.curriculum.shaped(video, step=step, generators=generators)
        seen, original = video, None
        if self.frame_masking > 0:
            seen, original = without_frames(video, share=self.frame_masking, generators=generators), video
        critic = None if self.critic is None else self.critic.at(step, original=original)
        with recorded_bottlenecks(self.tokenizer) as passages:
            losses = self.tokenizer.training_losses(seen, generators=generators, critic=critic)
        self.codes.add(passages)
        if self.distillation is not None:
            losses["distillation"] = self.distillation(video, passages)
        return losses

    def measures(self) -> dict[str, float]:
        return self.codes.read()

    def evaluate(self, batch: Batch, generators: Generators) -> dict[str, Tensor]:
        critic = None if self.critic is None else self.critic.at(None)
        return self.tokenizer.training_losses(batch["video"], generators=generators, critic=critic)

    def samples(self, batch: Batch, generators: Generators) -> Tensor:
        """Original above reconstruction."""
        video = batch["video"]
        reconstruction = self.tokenizer.decode(self.tokenizer.encode(video), generators=generators)
        return torch.cat([video, reconstruction.to(video.dtype)], dim=-2)

    def export(self, folder: Path) -> None:
        tokenizer = copy.deepcopy(self.tokenizer).eval()  # the statistics of the exported weights are not the run's
        if self.statistics is not None:
            tokenizer.fit_statistics(video.to(tokenizer.device) for video in self.statistics)
        write_folder(folder, tokenizer.save_pretrained)
