"""One training step of a tokenizer: its own losses under a critic."""

import copy
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from vidgen.nn.random import Generators
from vidgen.tokenizers.base import Tokenizer
from vidgen.training.checkpoint import write_folder
from vidgen.training.critic import ReconstructionCritic
from vidgen.training.step import Batch, TrainingStep


class TokenizerStep(TrainingStep):
    """Trains `tokenizer`.

    Args:
        critic: perceptual and adversarial terms, or None for the tokenizer's own losses alone.
        statistics: videos `b 3 t h w` whose latents' mean and deviation are measured at export; None keeps the
            statistics that the tokenizer has.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, critic: ReconstructionCritic | None, statistics: Iterable[Tensor] | None
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.critic = critic
        self.statistics = statistics

    def forward(self, batch: Batch, generators: Generators) -> dict[str, Tensor]:
        critic = None if self.critic is None else self.critic.at(batch["step"])
        return self.tokenizer.training_losses(batch["video"], generators=generators, critic=critic)

    def evaluate(self, batch: Batch, generators: Generators) -> dict[str, Tensor]:
        critic = None if self.critic is None else self.critic.without_adversary
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
