"""What judges reconstructions while a tokenizer trains: pixels, perceptual distance, discriminators."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vidgen.eval.perceptual import FrameDistance, LpipsDistance, LpipsNet, SqueezeNetDistance
from vidgen.tokenizers.base import Critic, PixelTerms
from vidgen.tokenizers.discriminator import DiscriminatorPanel
from vidgen.tokenizers.losses import GAMES, PIXEL_ERRORS, LearnedVariance, LeCam, feature_matching, gradient_penalty
from vidgen.training.config import AdversarialLoss, PerceptualNetwork, PixelLoss

LARGEST_BALANCE = 1e4  # VQGAN's bound on the adaptive weight


class FaithfulTerms:
    """Terms that compare a reconstruction with its original; not a module, its network is frozen.

    Args:
        pixels: error of pixels, or `"own"` for what the tokenizer itself would take.
        pixel_weight: of that error where it is not the tokenizer's own.
        perceptual: frozen distance between frames, or None.
        perceptual_frames: frames a clip that it is measured on, drawn from torch's global generator; 0 for all.
        variance: divides all of these terms, or None.
    """

    def __init__(
        self,
        *,
        pixels: PixelLoss = "own",
        pixel_weight: float = 1.0,
        perceptual: FrameDistance | None = None,
        perceptual_weight: float = 1.0,
        perceptual_frames: int = 0,
        variance: LearnedVariance | None = None,
    ) -> None:
        self.pixels, self.pixel_weight = pixels, pixel_weight
        self.perceptual, self.perceptual_weight = perceptual, perceptual_weight
        self.perceptual_frames = perceptual_frames
        self.variance = variance

    def __call__(self, real: Tensor, fake: Tensor, own: PixelTerms) -> dict[str, Tensor]:
        if self.pixels == "own":
            terms = own(real, fake)
        else:
            terms = {self.pixels: self.pixel_weight * PIXEL_ERRORS[self.pixels](fake, real)}
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual_weight * self._distance(self.perceptual, real, fake)
        return terms if self.variance is None else self.variance(terms)

    def _distance(self, perceptual: FrameDistance, real: Tensor, fake: Tensor) -> Tensor:
        frames = real.shape[2]
        if 0 < self.perceptual_frames < frames:
            chosen = torch.randperm(frames)[: self.perceptual_frames].sort().values.to(real.device)
            real, fake = real[:, :, chosen], fake[:, :, chosen]
        return perceptual(fake, real).float().mean()


class Adversary:
    """The discriminators' part in a tokenizer's loss; they are trained by their own step, here they are constants.

    Args:
        weight: of the adversarial term.
        adaptive: scale the term so that its gradient at the decoder's last layer is as long as that of the faithful
            terms (VQGAN, arXiv 2012.09841, equation 7), times `weight`.
        feature_weight: of the matching of the discriminators' features, without balance; 0 for none.
        start, warmup: step of the first term, and steps over which both weights grow from there.
    """

    def __init__(
        self,
        panel: DiscriminatorPanel,
        *,
        loss: AdversarialLoss = "hinge",
        weight: float,
        adaptive: bool = True,
        feature_weight: float = 0.0,
        start: int = 0,
        warmup: int = 0,
    ) -> None:
        self.panel, self.game = panel, GAMES[loss]
        self.weight, self.adaptive, self.feature_weight = weight, adaptive, feature_weight
        self.start, self.warmup = start, warmup

    def strength(self, step: int) -> float:
        """Share of the weights at a step, 0 before the start."""
        if step < self.start:
            return 0.0
        return min(1.0, (step - self.start + 1) / max(1, self.warmup))

    def __call__(
        self, real: Tensor, fake: Tensor, *, strength: float, faithful: Tensor, last_layer: Tensor
    ) -> dict[str, Tensor]:
        constants = {name: tensor.detach() for name, tensor in self.panel.state_dict().items()}
        of_fake: list[list[Tensor]] = functional_call(self.panel, constants, (fake,))
        term = torch.stack([self.game.generator(features[-1]) for features in of_fake]).sum()
        balance = self._balance(faithful, term, last_layer) if self.adaptive and last_layer.requires_grad else 1.0
        terms = {"adversarial": strength * self.weight * balance * term}
        if self.feature_weight > 0:
            with torch.no_grad():
                of_real = self.panel(real)
            matched = [feature_matching(one[:-1], other[:-1]) for one, other in zip(of_real, of_fake)]
            terms["feature_matching"] = strength * self.feature_weight * torch.stack(matched).sum()
        return terms

    def _balance(self, faithful: Tensor, term: Tensor, last_layer: Tensor) -> Tensor:
        pull = torch.autograd.grad(faithful, last_layer, retain_graph=True)[0].norm()
        push = torch.autograd.grad(term, last_layer, retain_graph=True)[0].norm()
        return (pull / (push + 1e-4)).clamp(0.0, LARGEST_BALANCE).detach()


class ReconstructionCritic:
    """Faithful terms and an adversary, together as the critic that tokenizers call.

    Args:
        adversary: or None for faithful terms alone.
    """

    def __init__(self, faithful: FaithfulTerms, *, adversary: Adversary | None = None) -> None:
        self.faithful, self.adversary = faithful, adversary
        self.judged: tuple[Tensor, Tensor] | None = None

    def at(self, step: int | None, *, original: Tensor | None = None) -> Critic:
        """The critic as it is at a step; keeps the pair that it judges for the discriminators' own step.

        Args:
            step: None leaves the adversary out: terms that are comparable over a whole run, for validation.
            original: the videos that the tokenizer should have given back, where it saw damaged ones.
        """

        def judge(real: Tensor, fake: Tensor, *, own: PixelTerms, last_layer: Tensor) -> dict[str, Tensor]:
            if original is not None:
                if original.shape != real.shape:
                    raise ValueError(
                        f"expected a tokenizer that gives back whole clips {tuple(original.shape)} where frames are "
                        f"masked, and this one trains on pieces {tuple(real.shape)}; set frame_masking to 0"
                    )
                real = original
            terms = self.faithful(real, fake, own)
            strength = 0.0 if self.adversary is None or step is None else self.adversary.strength(step)
            if self.adversary is not None and strength > 0:
                faithful = torch.stack(list(terms.values())).sum()
                terms |= self.adversary(real, fake, strength=strength, faithful=faithful, last_layer=last_layer)
                self.judged = real, fake.detach()
            return terms

        return judge


class DiscriminatorStep(nn.Module):
    """The discriminators' own loss, as the module that data-parallel training wraps.

    Args:
        r1_weight, r1_every: gradient penalty, taken at every so manieth step and so many times heavier there
            (StyleGAN2's lazy regularisation); weight 0 for none.
        lecam_weight: 0 for none.
        names: of the judges in the log where there are several, their numbers by default.
    """

    updates: Tensor

    def __init__(
        self,
        panel: DiscriminatorPanel,
        *,
        loss: AdversarialLoss = "hinge",
        r1_weight: float = 0.0,
        r1_every: int = 16,
        lecam_weight: float = 0.0,
        names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.panel, self.game = panel, GAMES[loss]
        several = len(panel.judges) > 1  # summed, a judge that has won would hide behind another that has not
        self.terms = [f"discriminator.{name}" for name in names or range(len(panel.judges))]
        self.terms = self.terms if several else ["discriminator"]
        self.r1_weight, self.r1_every, self.lecam_weight = r1_weight, r1_every, lecam_weight
        self.lecam = nn.ModuleList(LeCam() for _ in panel.judges) if lecam_weight > 0 else None
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def forward(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """Terms for videos `b 3 t h w`, of each judge its own; `fake` must be detached."""
        batch = real.shape[0]
        logits = [features[-1].split(batch) for features in self.panel(torch.cat([real, fake.to(real.dtype)]))]
        terms = {name: self.game.discriminator(*pair) for name, pair in zip(self.terms, logits, strict=True)}
        if self.lecam is not None:
            kept = [lecam(*pair) for lecam, pair in zip(self.lecam, logits)]
            terms["discriminator_lecam"] = self.lecam_weight * torch.stack(kept).sum()
        if self.r1_weight > 0 and self.updates % self.r1_every == 0:
            real = real.detach().requires_grad_()
            slopes = [gradient_penalty(features[-1], real) for features in self.panel(real)]
            terms["discriminator_r1"] = self.r1_weight * self.r1_every * torch.stack(slopes).sum()
        self.updates += 1
        return terms


def load_perceptual(network: PerceptualNetwork, path: Path) -> FrameDistance:
    """The frozen distance whose weights lie at `path`; ValueError when they are not those of that network."""
    if network == "squeezenet":
        return SqueezeNetDistance.from_file(path)
    nets: dict[str, LpipsNet] = {"lpips-alex": "alex", "lpips-vgg": "vgg", "lpips-squeeze": "squeeze"}
    return LpipsDistance.from_file(path, net=nets[network])
