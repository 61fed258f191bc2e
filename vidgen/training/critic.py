"""What judges reconstructions beyond pixels while a tokenizer trains: perceptual distance and discriminator."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vidgen.eval.perceptual import FrameDistance, LpipsDistance, LpipsNet, SqueezeNetDistance
from vidgen.tokenizers.base import Critic
from vidgen.tokenizers.discriminator import PatchDiscriminator, hinge_loss
from vidgen.training.config import PerceptualNetwork

LARGEST_BALANCE = 1e4  # VQGAN's bound on the adaptive weight


class ReconstructionCritic:
    """Perceptual and adversarial terms; not a module, so its networks never count as part of what trains.

    Args:
        perceptual: frozen distance between frames, or None.
        perceptual_frames: frames a clip that it is measured on, drawn from torch's global generator; 0 for all.
        discriminator: or None; trained by its own step, here its weights are constants.
        start: step of the first adversarial term.
    """

    def __init__(
        self,
        *,
        perceptual: FrameDistance | None,
        perceptual_weight: float,
        perceptual_frames: int,
        discriminator: PatchDiscriminator | None,
        adversarial_weight: float,
        start: int,
    ) -> None:
        self.perceptual, self.perceptual_weight = perceptual, perceptual_weight
        self.perceptual_frames = perceptual_frames
        self.discriminator, self.adversarial_weight, self.start = discriminator, adversarial_weight, start
        self.judged: tuple[Tensor, Tensor] | None = None

    def at(self, step: int) -> Critic:
        """The critic as it is at a step; keeps the pair that it judges for the discriminator's own step."""

        def judge(real: Tensor, fake: Tensor, *, pixel_loss: Tensor, last_layer: Tensor) -> dict[str, Tensor]:
            losses = self.without_adversary(real, fake, pixel_loss=pixel_loss, last_layer=last_layer)
            if self.discriminator is not None and step >= self.start:
                faithful = pixel_loss + sum(losses.values())
                losses["adversarial"] = self._adversarial(fake, faithful=faithful, last_layer=last_layer)
                self.judged = real, fake.detach()
            return losses

        return judge

    def without_adversary(
        self, real: Tensor, fake: Tensor, *, pixel_loss: Tensor, last_layer: Tensor
    ) -> dict[str, Tensor]:
        """The perceptual term alone: comparable over a whole run, so it is what validation uses."""
        if self.perceptual is None:
            return {}
        frames = real.shape[2]
        if 0 < self.perceptual_frames < frames:
            chosen = torch.randperm(frames)[: self.perceptual_frames].sort().values.to(real.device)
            real, fake = real[:, :, chosen], fake[:, :, chosen]
        return {"perceptual": self.perceptual_weight * self.perceptual(fake, real).float().mean()}

    def _adversarial(self, fake: Tensor, *, faithful: Tensor, last_layer: Tensor) -> Tensor:
        """`-D(fake)`, scaled so that its gradient at the last layer is as long as that of the faithful terms.

        VQGAN (arXiv 2012.09841), equation 7.
        """
        assert self.discriminator is not None
        constants = {name: tensor.detach() for name, tensor in self.discriminator.state_dict().items()}
        term = -functional_call(self.discriminator, constants, (fake,)).float().mean()
        if not last_layer.requires_grad:  # a frozen decoder has nothing to balance
            return self.adversarial_weight * term
        pull = torch.autograd.grad(faithful, last_layer, retain_graph=True)[0].norm()
        push = torch.autograd.grad(term, last_layer, retain_graph=True)[0].norm()
        balance = (pull / (push + 1e-4)).clamp(0.0, LARGEST_BALANCE).detach()
        return self.adversarial_weight * balance * term


class DiscriminatorStep(nn.Module):
    """The discriminator's own loss, as the module that data-parallel training wraps."""

    def __init__(self, discriminator: PatchDiscriminator) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """Hinge loss for videos `b 3 t h w`; `fake` must be detached."""
        batch = real.shape[0]
        logits = self.discriminator(torch.cat([real, fake.to(real.dtype)]))
        return hinge_loss(logits[:batch], logits[batch:])


def load_perceptual(network: PerceptualNetwork, path: Path) -> FrameDistance:
    """The frozen distance whose weights lie at `path`; ValueError when they are not those of that network."""
    if network == "squeezenet":
        return SqueezeNetDistance.from_file(path)
    nets: dict[str, LpipsNet] = {"lpips-alex": "alex", "lpips-vgg": "vgg", "lpips-squeeze": "squeeze"}
    return LpipsDistance.from_file(path, net=nets[network])
