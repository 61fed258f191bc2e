"""The discriminators' side of adversarial training."""

from torch import Tensor

from vidgen.training.config import OptimiserConfig
from vidgen.training.critic import DiscriminatorStep, ReconstructionCritic
from vidgen.training.optimiser import build_optimiser


class Opponent:
    """The discriminators with their optimiser, trained at every so manieth step on the pairs that the critic judged."""

    def __init__(
        self, critic: ReconstructionCritic, step: DiscriminatorStep, optimiser: OptimiserConfig, *, every: int = 1
    ) -> None:
        self.critic, self.step, self.config, self.every = critic, step, optimiser, every
        self.optimiser = build_optimiser(step, optimiser)

    def take_judged(self, step: int) -> tuple[Tensor, Tensor] | None:
        """The pair to train on at a step, if any; the steps of round numbers, which are logged, are among them."""
        judged, self.critic.judged = self.critic.judged, None
        return judged if (step + 1) % self.every == 0 else None
