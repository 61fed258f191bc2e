"""How close a reconstruction is to its original, pixel by pixel: PSNR and SSIM with their conventions in the key.

Both first round the two videos to 8 bits, as any file or screen would: reconstructions are scored as they are seen.
"""

import math
from typing import Self

import torch
from torch import Tensor

from vidgen.eval.metric import PairedFrameMean
from vidgen.eval.perceptual import FrameDistance

PSNR_CAP = 100.0
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5


def to_levels(video: Tensor) -> Tensor:
    """[-1, 1] (clipped) -> 0..255 in float64, rounded to whole levels."""
    return ((video.double() + 1) * 127.5).round().clamp(0, 255)


class Psnr(PairedFrameMean):
    """Peak signal-to-noise ratio in dB over RGB, 8-bit levels, two ways of pooling.

    ``psnr.rgb.frame_mean.cap100``: the mean over frames of each frame's PSNR, equal frames count as 100 dB.
    ``psnr.rgb.global``: from the squared error of all frames together (at most 100); bad frames weigh more.
    """

    key = "psnr.rgb.frame_mean.cap100"

    def __init__(self) -> None:
        super().__init__()
        self.squared_error = 0  # sums of squared level differences are whole numbers, so they stay exact
        self.samples = 0

    def frame_scores(self, video: Tensor, reference: Tensor) -> Tensor:
        squared = (to_levels(video) - to_levels(reference)).square().sum(dim=(1, 3, 4))
        samples = video[:, :, 0].numel() // video.shape[0]
        self.squared_error += int(squared.sum())
        self.samples += samples * squared.numel()
        return (10 * torch.log10(255**2 * samples / squared)).clamp(max=PSNR_CAP)

    def merge(self, other: Self) -> None:
        super().merge(other)
        self.squared_error += other.squared_error
        self.samples += other.samples

    def compute(self) -> dict[str, float]:
        pooled = PSNR_CAP
        if self.squared_error:
            pooled = min(PSNR_CAP, 10 * math.log10(255**2 * self.samples / self.squared_error))
        return {**super().compute(), "psnr.rgb.global": pooled}

    def state_dict(self) -> dict[str, Tensor]:
        sums = {"squared_error": torch.tensor(self.squared_error), "samples": torch.tensor(self.samples)}
        return {**super().state_dict(), **sums}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.squared_error, self.samples = int(state["squared_error"]), int(state["samples"])


class Ssim(PairedFrameMean):
    """``ssim.rgb.gauss11.valid``: structural similarity (Wang et al. 2004), mean over frames.

    Gaussian window 11x11 with sigma 1.5, population covariance, only places where the window fits, each RGB channel by
    itself, K1 0.01, K2 0.03, 8-bit levels, no downsampling. Frames need at least 11 pixels a side.
    """

    key = "ssim.rgb.gauss11.valid"

    def frame_scores(self, video: Tensor, reference: Tensor) -> Tensor:
        if min(video.shape[-2:]) < SSIM_WINDOW:
            raise ValueError(
                f"SSIM needs frames of at least {SSIM_WINDOW} pixels a side, got {video.shape[-2]}x{video.shape[-1]}"
            )
        frames = [self._frame(a, b) for a, b in zip(video.unbind(2), reference.unbind(2), strict=True)]
        return torch.stack(frames, dim=1)

    @staticmethod
    def _frame(a: Tensor, b: Tensor) -> Tensor:
        """``b c h w`` twice -> ``b``; frame by frame, so that memory does not grow with the clip."""
        a, b = to_levels(a) / 255, to_levels(b) / 255
        mean_a, mean_b, mean_aa, mean_bb, mean_ab = _window_means(torch.stack([a, b, a * a, b * b, a * b]))
        c1, c2 = 0.01**2, 0.03**2
        covariance = mean_ab - mean_a * mean_b
        variances = mean_aa - mean_a.square() + mean_bb - mean_b.square()
        luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
        return (luminance * (2 * covariance + c2) / (variances + c2)).mean(dim=(1, 2, 3))


def _window_means(maps: Tensor) -> Tensor:
    """Gaussian means of ``… h w`` where the window fits: ``… h-10 w-10``.

    Shifted sums instead of a convolution: a float64 depthwise convolution is 5 times slower on CPU, and on CUDA
    convolutions may run in TF32.
    """
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    weights = torch.softmax(-offsets.square() / (2 * SSIM_SIGMA**2), dim=0).tolist()
    for axis in (-2, -1):
        extent = maps.shape[axis] - SSIM_WINDOW + 1
        total = maps.narrow(axis, 0, extent) * weights[0]
        for shift, weight in enumerate(weights[1:], start=1):
            total.add_(maps.narrow(axis, shift, extent), alpha=weight)
        maps = total
    return maps


class PerceptualScore(PairedFrameMean):
    """The mean over frames of a perceptual distance; the key is the distance's. No rounding to 8 bits."""

    def __init__(self, distance: FrameDistance) -> None:
        super().__init__()
        self.distance = distance
        self.key = distance.key

    def frame_scores(self, video: Tensor, reference: Tensor) -> Tensor:
        frames = [
            self.distance(a, b)
            for a, b in zip(video.float().split(4, dim=2), reference.float().split(4, dim=2), strict=True)
        ]
        return torch.cat(frames, dim=1)

    def empty(self) -> "PerceptualScore":
        return PerceptualScore(self.distance)
