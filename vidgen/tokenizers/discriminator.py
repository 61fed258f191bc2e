"""Discriminators: is this patch of a frame or a video real (PatchGAN), is this clip real (LARP's transformer)?"""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from vidgen.tokenizers.blockwise import pad
from vidgen.tokenizers.holistic import JointTransformer
from vidgen.tokenizers.vit import PatchEmbedding, check_transformer, grid_places

HEAD_CHANNELS = 64


class Discriminator(nn.Module, ABC):
    """Logits for `b 3 t h w` in [-1, 1], positive for real."""

    def forward(self, video: Tensor) -> Tensor:
        return self.features(video)[-1]

    @abstractmethod
    def features(self, video: Tensor) -> list[Tensor]:
        """What the layers make of a video, each `b …`, from fine to coarse; the logits come last."""


class PatchNorm(nn.GroupNorm):
    """Group normalisation of each frame by itself: a frame's verdict never depends on a distant one's contrast."""

    def forward(self, input: Tensor) -> Tensor:
        frames = rearrange(input, "b c t h w -> (b t) c h w")
        return rearrange(super().forward(frames), "(b t) c h w -> b c t h w", t=input.shape[2])


class PatchDiscriminator(Discriminator):
    """Logits `b 1 t' h' w'` of overlapping patches (Isola et al. 2017, arXiv 1611.07004).

    Args:
        width: channels of the first layer; doubles with each halving, up to 8-fold.
        layers: halvings of height and width.
        axes: `"frames"` judges each frame alone, `"video"` frames together, 25 of them with three layers.
    """

    def __init__(self, *, width: int = 32, layers: int = 3, axes: Literal["frames", "video"] = "video") -> None:
        super().__init__()
        in_time = 3 if axes == "video" else 1
        padding = (in_time // 2, 1, 1)
        stages: list[nn.Module] = [nn.Conv3d(3, width, (in_time, 4, 4), (1, 2, 2), padding), nn.LeakyReLU(0.2)]
        channels = width
        for layer in range(1, layers + 1):
            last = layer == layers
            stride = 1 if last else 2
            following = min(width * 2**layer, width * 8)
            time_stride = stride if axes == "video" else 1
            stages += [
                nn.Conv3d(channels, following, (in_time, 4, 4), (time_stride, stride, stride), padding, bias=False),
                PatchNorm(min(8, following), following),
                nn.LeakyReLU(0.2),
            ]
            channels = following
        stages.append(nn.Conv3d(channels, 1, (in_time, 4, 4), 1, padding))
        self.stages = nn.Sequential(*stages)
        self.smallest_side = 3 * 2**layers

    def check_side(self, side: int) -> None:
        """ValueError unless frames with a shorter side of so many pixels can be judged."""
        if side < self.smallest_side:
            raise ValueError(
                f"the discriminator needs frames of at least {self.smallest_side} pixels a side, got {side}; train on "
                "larger frames, with fewer discriminator_layers, or with an adversarial_weight of 0"
            )

    def features(self, video: Tensor) -> list[Tensor]:
        self.check_side(min(video.shape[-2:]))
        found, x = [], video
        for stage in self.stages:
            x = stage(x)
            if isinstance(stage, nn.LeakyReLU):
                found.append(x)
        return [*found, x]


class TransformerDiscriminator(Discriminator):
    """One logit `b 1` a clip, from a token that sees all patches of 4×8×8 pixels (LARP, arXiv 2410.21264, its code).

    Args:
        width, layers: of the transformer; a head has 64 channels.
    """

    patch = (4, 8, 8)

    def __init__(self, *, width: int = 512, layers: int = 12) -> None:
        super().__init__()
        heads = max(1, width // HEAD_CHANNELS)
        check_transformer(width=width, heads=heads, layers=layers)
        self.to_patches = PatchEmbedding(self.patch, width, lone_first=False)
        self.verdict = nn.Parameter(torch.randn(1, width))
        self.transformer = JointTransformer(width, heads, layers=layers)
        self.to_logit = nn.Linear(width, 1)

    def features(self, video: Tensor) -> list[Tensor]:
        t, h, w = (-extent % step for extent, step in zip(video.shape[2:], self.patch, strict=True))
        patches = self.to_patches(pad(video, (t, h, w)))
        places = grid_places((patches.shape[1], patches.shape[2], patches.shape[3]), device=video.device)
        patches = rearrange(patches, "b t h w d -> b (t h w) d")
        verdict = self.verdict.expand(len(video), -1, -1).to(patches.dtype)
        patches, verdict = self.transformer(patches, verdict, places)
        return [patches, self.to_logit(verdict[:, 0])]


class DiscriminatorPanel(nn.Module):
    """Several discriminators that judge the same video, e.g. its frames and its motion (OmniTokenizer: 2D and 3D)."""

    def __init__(self, *judges: Discriminator) -> None:
        super().__init__()
        self.judges = nn.ModuleList(judges)

    def forward(self, video: Tensor) -> list[list[Tensor]]:
        """`features` of each judge."""
        return [judge.features(video) for judge in self.judges if isinstance(judge, Discriminator)]
