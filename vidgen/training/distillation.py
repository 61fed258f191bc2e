"""A teacher's features as a second thing that tokens must tell: semantic distillation (VQ-KD, FQGAN, ImageFolder)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidgen.bottlenecks.record import Passage, outermost_bottlenecks
from vidgen.latents import LatentPart, VideoSize
from vidgen.tokenizers import WrappingTokenizer
from vidgen.tokenizers.base import Tokenizer
from vidgen.tokenizers.losses import distillation

Teacher = Callable[[Tensor], Tensor]
"""Video `b 3 t h w` in [-1, 1] on the device that trains -> features `b d t' h' w'`, or `b d` of whole clips; called
without gradients."""


class Distillation:
    """Predicts a teacher's features from the vectors behind a tokenizer's bottleneck.

    Features on a grid are pooled to the tokens' grid where tokens have one; otherwise clip means are compared.
    Not a module: the teacher is frozen. `head`, a small network that only training has, is trained along.

    Args:
        features: length d of the teacher's features.
        channels: how many of the first channels of a vector have to tell them (a semantic sub-code); None for all.
        width: of the head's hidden layer.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        teacher: Teacher,
        *,
        features: int,
        weight: float,
        channels: int | None = None,
        width: int = 256,
    ) -> None:
        if isinstance(tokenizer, WrappingTokenizer) and tokenizer.freeze_encoder:
            raise ValueError(
                "a teacher teaches the encoder, and freeze_encoder keeps it as it is; set distillation_weight to 0"
            )
        widths = {bottleneck.channels for bottleneck in outermost_bottlenecks(tokenizer)}
        if len(widths) != 1:
            raise ValueError(
                f"distillation needs tokens of one kind, and {type(tokenizer).__name__} has bottlenecks of "
                f"{sorted(widths)} channels; set distillation_weight to 0"
            )
        (available,) = widths
        if channels is not None and not 0 < channels <= available:
            raise ValueError(
                f"expected 1 to {available} channels to distil into, as many as vectors have, got {channels}"
            )
        self.tokenizer, self.teacher, self.weight = tokenizer, teacher, weight
        self.channels = channels or available
        self.head = nn.Sequential(nn.Linear(self.channels, width), nn.GELU(), nn.Linear(width, features))

    def __call__(self, video: Tensor, passages: list[Passage]) -> Tensor:
        """The weighted term for clips `b 3 t h w` and what they became in the bottlenecks."""
        vectors = torch.cat([result.vectors for _, result in passages], dim=1)
        predicted = self.head(vectors[..., : self.channels])
        with torch.no_grad():
            wanted = self.teacher(video)
        if wanted.ndim == 5 and self.tokenizer.spec.is_grid:
            size = (video.shape[2], video.shape[3], video.shape[4])
            wanted = pooled_to(self.tokenizer.spec.parts[0], wanted.float(), size).flatten(2).mT
        else:
            wanted = wanted if wanted.ndim == 2 else wanted.flatten(2).mean(dim=-1)
            predicted = predicted.mean(dim=1)
        return self.weight * distillation(predicted, wanted)


def pooled_to(part: LatentPart, features: Tensor, size: VideoSize) -> Tensor:
    """Features `b d t' h' w'` of videos of `size` -> `b d t h w` on the grid of a part.

    Features of every frame are pooled over the frames that a token stands for: a lone first frame by itself.
    """
    t, h, w = part.grid(size)
    if not (part.first_frame_alone and features.shape[2] == size[0] > 1):
        return F.adaptive_avg_pool3d(features, (t, h, w))
    first, others = features[:, :, :1], features[:, :, 1:]
    return torch.cat([F.adaptive_avg_pool3d(first, (1, h, w)), F.adaptive_avg_pool3d(others, (t - 1, h, w))], dim=2)
