"""Structural similarity (Wang et al. 2004) in the conventions in use, and its multi-scale form (Wang et al. 2003).

``gauss11.valid``: Gaussian window 11×11 with sigma 1.5, population covariance, only places where the window fits
(pytorch_msssim, piq, cv2 scripts). ``uniform7.sample``: flat window 7×7, sample covariance (scikit-image's default,
hence TokenBench). ``pool256``: frames are first averaged over squares of ``max(1, round(shorter side / 256))`` pixels
(piq, hence VidTok). Each channel by itself, K1 0.01, K2 0.03, mean over frames.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from vidgen.eval.metric import PairedFrameMean
from vidgen.eval.pixels import Colour, check_pair, convention, frame_pieces, levels_of_pair
from vidgen.eval.protocol import Quantise

Window = Literal["gauss11.valid", "uniform7.sample"]
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, section 3.2


def window_weights(window: Window) -> list[float]:
    """One side of the separable window; its weights sum to 1."""
    if window == "uniform7.sample":
        return [1 / 7] * 7
    offsets = torch.arange(11, dtype=torch.float64) - 5
    return torch.softmax(-offsets.square() / (2 * 1.5**2), dim=0).tolist()


class Ssim(PairedFrameMean):
    """``ssim.<colour>.<window>``: the mean over frames. Frames need at least the window's size.

    Args:
        pool: average frames down to about 256 pixels first.
    """

    def __init__(
        self,
        *,
        colour: Colour = "rgb",
        window: Window = "gauss11.valid",
        pool: bool = False,
        quantise: Quantise = "round",
    ) -> None:
        super().__init__()
        self.colour: Colour = colour
        self.window: Window = window
        self.quantise: Quantise = quantise
        self.pool = pool
        self.weights = window_weights(window)
        self.smallest_side = len(self.weights)
        self.key = f"ssim.{convention(colour, window, *(['pool256'] if pool else []), quantise=quantise)}"

    def frame_scores(self, video: Tensor, reference: Tensor) -> Tensor:
        check_pair(video, reference, key=self.key, smallest_side=self.smallest_side)
        side = max(1, round(min(video.shape[-2:]) / 256)) if self.pool else 1
        samples = len(self.weights) ** 2
        unbiased = samples / (samples - 1) if self.window == "uniform7.sample" else 1.0
        scores = []
        for a, b in frame_pieces(video, reference):
            planes = levels_of_pair(a, b, quantise=self.quantise, colour=self.colour)
            channels = []
            for p, q in zip(*(x.unbind(1) for x in planes), strict=True):  # one channel at a time stays in the cache
                if side > 1:
                    p, q = (functional.avg_pool2d(x, side) for x in (p, q))
                luminance, structure = similarity_maps(p, q, self.weights, unbiased=unbiased)
                channels.append((luminance * structure).mean(dim=(-2, -1)))
            scores.append(torch.stack(channels).mean(dim=0))
        return torch.cat(scores, dim=1)


class MsSsim(PairedFrameMean):
    """``msssim.<colour>.gauss11``: five scales, each half the size of the one before; sides of at least 161 pixels.

    Odd sides are padded with zeros before they are halved, and negative similarities count as 0, as in pytorch_msssim.
    """

    smallest_side = 161

    def __init__(self, *, colour: Colour = "rgb", quantise: Quantise = "round") -> None:
        super().__init__()
        self.colour: Colour = colour
        self.quantise: Quantise = quantise
        self.weights = window_weights("gauss11.valid")
        self.key = f"msssim.{convention(colour, 'gauss11', quantise=quantise)}"

    def frame_scores(self, video: Tensor, reference: Tensor) -> Tensor:
        check_pair(video, reference, key=self.key, smallest_side=self.smallest_side)
        scores = []
        for a, b in frame_pieces(video, reference):
            p, q = levels_of_pair(a, b, quantise=self.quantise, colour=self.colour)
            product = torch.ones(p.shape[:3], dtype=p.dtype, device=p.device)  # b c t
            for scale, weight in enumerate(SCALE_WEIGHTS):
                luminance, structure = similarity_maps(p, q, self.weights)
                last = scale == len(SCALE_WEIGHTS) - 1
                term = (luminance * structure if last else structure).mean(dim=(-2, -1))
                product *= term.clamp(min=0) ** weight
                if not last:
                    p, q = (_halved(x) for x in (p, q))
            scores.append(product.mean(dim=1))
        return torch.cat(scores, dim=1)


def similarity_maps(a: Tensor, b: Tensor, weights: list[float], *, unbiased: float = 1.0) -> tuple[Tensor, Tensor]:
    """Luminance and contrast-structure maps of levels ``… h w``, where the window fits.

    Only the sum of the two variances is needed, so four means suffice: of ``a + b``, ``a - b`` and their squares.
    """
    total, difference = a + b, a - b
    mean_t, mean_d, mean_tt, mean_dd = (
        window_means(x, weights) for x in (total, difference, total.square(), difference.square())
    )
    square_t, square_d = mean_t.square_(), mean_d.square_()
    variance_t, variance_d = mean_tt.sub_(square_t).mul_(unbiased), mean_dd.sub_(square_d).mul_(unbiased)
    # With t = a + b and d = a - b: 4 mean_a mean_b = t² - d², 2 (mean_a² + mean_b²) = t² + d², variances alike.
    luminance = (square_t - square_d + 2 * C1).div_(square_t + square_d + 2 * C1)
    structure = (variance_t - variance_d + 2 * C2).div_(variance_t + variance_d + 2 * C2)
    return luminance, structure


def window_means(maps: Tensor, weights: list[float]) -> Tensor:
    """Means of ``… h w`` under a separable window where it fits.

    Shifted sums instead of a convolution: on CPU more than ten times faster than a depthwise convolution, and on CUDA
    convolutions may run in TF32.
    """
    for axis in (-2, -1):
        extent = maps.shape[axis] - len(weights) + 1
        total = maps.narrow(axis, 0, extent) * weights[0]
        for shift, weight in enumerate(weights[1:], start=1):
            total.add_(maps.narrow(axis, shift, extent), alpha=weight)
        maps = total
    return maps


def _halved(frames: Tensor) -> Tensor:
    """``b c t h w`` -> averages of 2×2 squares; zeros join on both sides of an odd extent."""
    padding = (frames.shape[-2] % 2, frames.shape[-1] % 2)
    pooled = functional.avg_pool2d(frames.flatten(0, 2), 2, padding=padding)
    return pooled.unflatten(0, frames.shape[:3])
