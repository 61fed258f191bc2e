"""What the clips of a training step look like: single frames or videos, at which resolution, which frames hidden."""

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from vidgen.nn.random import Generators, rand
from vidgen.training.order import seed_of

SHAPE = 31  # keeps this stream of random numbers apart


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """Images and videos mixed (OmniTokenizer, Open-Sora), images first, several resolutions; a function of the step.

    Args:
        seed: of the draws, which are the same on every process.
        image_share: share of the steps whose clips are single frames.
        images_until: every step before this one is of single frames.
        sides: shorter sides that clips are scaled down to, one drawn each step; () leaves them.
        sides_from: every step before this one has the smallest of them.
    """

    seed: int
    image_share: float = 0.0
    images_until: int = 0
    sides: tuple[int, ...] = ()
    sides_from: int = 0

    def shaped(self, video: Tensor, *, step: int, generators: Generators) -> Tensor:
        """`b 3 t h w` as the step wants it; which frame of a clip is its image depends on its generator."""
        draw = np.random.default_rng(seed_of(self.seed, SHAPE, step))
        as_image = draw.random() < self.image_share or step < self.images_until
        if self.sides:
            drawn = self.sides[draw.integers(len(self.sides))]
            video = scaled(video, side=drawn if step >= self.sides_from else min(self.sides))
        if not as_image:
            return video
        chosen = (rand((len(video),), generators) * video.shape[2]).long().tolist()
        return torch.stack([clip[:, frame : frame + 1] for clip, frame in zip(video, chosen, strict=True)])


def scaled(video: Tensor, *, side: int) -> Tensor:
    """`b c t h w` with the shorter side scaled to `side`, antialiased."""
    ratio = side / min(video.shape[-2:])
    if ratio == 1:
        return video
    size = [max(1, round(extent * ratio)) for extent in video.shape[-2:]]
    frames = rearrange(video, "b c t h w -> (b t) c h w")
    frames = F.interpolate(frames, size=size, mode="bilinear", antialias=True)
    return rearrange(frames, "(b t) c h w -> b c t h w", b=len(video))


def without_frames(video: Tensor, *, share: float, generators: Generators) -> Tensor:
    """`b 3 t h w` with `share` of each clip's frames grey, at least one of them, and one not (MotionAura's masking)."""
    count = min(max(1, round(share * video.shape[2])), video.shape[2] - 1)
    order = rand((len(video), video.shape[2]), generators, like=video).argsort(dim=1)
    hidden = order.argsort(dim=1) < count
    return video.masked_fill(hidden[:, None, :, None, None], 0.0)
