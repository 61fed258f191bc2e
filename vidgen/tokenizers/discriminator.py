"""PatchGAN discriminator for frames or videos: is this patch real (Isola et al. 2017, arXiv 1611.07004)."""

from typing import Literal

from einops import rearrange
from torch import Tensor, nn


class PatchNorm(nn.GroupNorm):
    """Group normalisation of each frame by itself: a frame's verdict never depends on a distant one's contrast."""

    def forward(self, input: Tensor) -> Tensor:
        frames = rearrange(input, "b c t h w -> (b t) c h w")
        return rearrange(super().forward(frames), "(b t) c h w -> b c t h w", t=input.shape[2])


class PatchDiscriminator(nn.Module):
    """Logits for overlapping patches, positive for real.

    Args:
        width: channels of the first layer; doubles with each halving, up to 8-fold.
        layers: halvings of height and width.
        axes: `"frames"` judges each frame alone, `"video"` three to fifteen frames together.
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
        self.smallest_side = 2 ** (layers + 1) + 2 ** (layers - 1)

    def forward(self, video: Tensor) -> Tensor:
        """`b 3 t h w` in [-1, 1] -> logits `b 1 t' h' w'`."""
        return self.features(video)[-1]

    def features(self, video: Tensor) -> list[Tensor]:
        """What the layers make of a video, `b c t h w` each from fine to coarse; the logits come last."""
        if min(video.shape[-2:]) < self.smallest_side:
            raise ValueError(
                f"the discriminator needs frames of at least {self.smallest_side} pixels a side, got "
                f"{video.shape[-2]}x{video.shape[-1]}; train on larger frames or set adversarial_weight to 0"
            )
        found, x = [], video
        for stage in self.stages:
            x = stage(x)
            if isinstance(stage, nn.LeakyReLU):
                found.append(x)
        return [*found, x]


class DiscriminatorPanel(nn.Module):
    """Several discriminators that judge the same video, e.g. its frames and its motion (OmniTokenizer: 2D and 3D)."""

    def __init__(self, *judges: PatchDiscriminator) -> None:
        super().__init__()
        self.judges = nn.ModuleList(judges)

    def forward(self, video: Tensor) -> list[list[Tensor]]:
        """`features` of each judge."""
        return [judge.features(video) for judge in self.judges if isinstance(judge, PatchDiscriminator)]
