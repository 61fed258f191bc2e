"""From decoded frames to what a feature network sees: clip choice, resize kernels, crops, levels, value range.

Which of these a published script uses moves its number; `protocol.Preprocess` and `protocol.ClipRule` name them, and
this file is what the names mean.
"""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vidgen.eval.protocol import ClipRule, Preprocess, Quantise, Resize


def clip_starts(total: int, rule: ClipRule, generator: torch.Generator) -> list[int]:
    """First frames of the clips that `rule` takes from a video of `total` frames; empty when it is too short.

    Several clips of one video are drawn independently when `offset` is random, and spread evenly otherwise.
    """
    span = clip_span(rule)
    # a whole video is as long as it is, up to a limit; a clip of fixed length fits in or does not
    room = total - span if span is not None and rule.frames is not None else max(0, total - (span or total))
    if room < 0:
        return []
    count = rule.clips_per_video
    if rule.offset == "random":
        return torch.randint(room + 1, (count,), generator=generator).tolist()
    if count == 1:
        return [0 if rule.offset == "first" else room // 2]
    return [room * place // (count - 1) for place in range(count)]


def clip_span(rule: ClipRule) -> int | None:
    """How many consecutive frames a clip reaches over; None is to the end of the video."""
    return rule.max_frames if rule.frames is None else (rule.frames - 1) * rule.stride + 1


def checked_levels(video: Tensor, quantise: Quantise) -> Tensor:
    """uint8, or floats in [-1, 1] -> float32 levels 0…255, rounded as `quantise` says; nothing is clipped unseen.

    Raises:
        ValueError: floats outside [-1, 1], NaN, another type of number.
    """
    if video.dtype == torch.uint8:
        return video.float()
    if not video.is_floating_point():
        raise ValueError(f"expected uint8 levels or floats in [-1, 1], got {video.dtype}; convert the video")
    low, high = (float(edge) for edge in video.aminmax())
    if math.isnan(low) or math.isnan(high):
        raise ValueError("the video has NaN pixels; look at what made it")
    if low < -1.001 or high > 1.001:
        advice = "pass 8-bit levels as uint8" if high > 2 else "clamp it"
        raise ValueError(f"expected floats in [-1, 1], got {low:.4g} to {high:.4g}; {advice}")
    levels = ((video.float() + 1) * 127.5).clamp(0, 255)
    if quantise == "none":
        return levels
    return levels.round() if quantise == "round" else levels.floor()


def preprocess(video: Tensor, steps: Preprocess) -> Tensor:
    """``b 3 t h w``, uint8 or floats in [-1, 1] -> float32 ``b 3 t h' w'`` in `steps.value_range`.

    Raises:
        ValueError: another shape; values outside the range; a kernel that belongs to reading (`swscale`).
    """
    if video.ndim != 5 or video.shape[1] != 3:
        raise ValueError(f"expected a video `b 3 t h w`, got {tuple(video.shape)}")
    batch = len(video)
    frames = rearrange(checked_levels(video, steps.quantise), "b c t h w -> (b t) c h w")
    for resize in steps.resizes:
        frames = resized(frames, resize)
    low, high = steps.value_range
    frames = frames * ((high - low) / 255) + low
    return rearrange(frames, "(b t) c h w -> b c t h w", b=batch)


def resized(frames: Tensor, resize: Resize) -> Tensor:
    """Float ``n 3 h w`` -> ``n 3 h' w'`` by the kernel and fit that `resize` names."""
    height, width = _scaled_size(frames.shape[-2], frames.shape[-1], resize)
    if (height, width) != tuple(frames.shape[-2:]):
        frames = KERNELS[resize.kernel](frames, height, width)
    if resize.fit != "cover":
        return frames
    top, left = (height - resize.height) // 2, (width - resize.width) // 2
    return frames[:, :, top : top + resize.height, left : left + resize.width]


def _scaled_size(height: int, width: int, resize: Resize) -> tuple[int, int]:
    if resize.fit == "squash":
        return resize.height, resize.width
    if resize.fit == "short-side":
        return short_side_size(height, width, side=resize.height)
    scale = max(Fraction(resize.height, height), Fraction(resize.width, width))
    return math.ceil(height * scale), math.ceil(width * scale)


def short_side_size(height: int, width: int, *, side: int) -> tuple[int, int]:
    """Height and width of a frame whose shorter side becomes `side`; the longer one to the nearest pixel."""
    scale = side / min(height, width)
    return round(height * scale), round(width * scale)


def _torch_bilinear(frames: Tensor, height: int, width: int) -> Tensor:
    return functional.interpolate(frames, (height, width), mode="bilinear", align_corners=False)


def _torch_bilinear_antialias(frames: Tensor, height: int, width: int) -> Tensor:
    return functional.interpolate(frames, (height, width), mode="bilinear", align_corners=False, antialias=True)


def _tf1_bilinear(frames: Tensor, height: int, width: int) -> Tensor:
    """TensorFlow 1's resize_bilinear: pixel k of the result lies at k * old / new, without half-pixel centres."""
    return _lerp(_lerp(frames, width, dim=3), height, dim=2)


def _lerp(frames: Tensor, size: int, *, dim: int) -> Tensor:
    old = frames.shape[dim]
    # TensorFlow computes places in float32; more digits give other pixels now and then
    place = torch.arange(size, dtype=torch.float32, device=frames.device) * torch.tensor(old / size)
    low = place.long()
    high = (low + 1).clamp(max=old - 1)
    share = (place - low).view(-1, *(1,) * (3 - dim))
    below, above = frames.index_select(dim, low), frames.index_select(dim, high)
    return below + (above - below) * share


def _pil_bicubic(frames: Tensor, height: int, width: int) -> Tensor:
    """Pillow's antialiased bicubic on float channels, as clean-fid does (Parmar et al. 2022)."""
    channels = rearrange(frames, "n c h w -> (n c) h w").cpu().numpy()
    scaled = [Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC) for one in channels]
    stacked = torch.from_numpy(np.stack([np.asarray(one) for one in scaled])).to(frames.device)
    return rearrange(stacked, "(n c) h w -> n c h w", n=len(frames)).clamp(0, 255)


def _swscale(frames: Tensor, height: int, width: int) -> Tensor:
    raise ValueError("the kernel swscale works while a file is read (vidgen.data.iter_frames), not on tensors")


KERNELS: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "torch-bilinear": _torch_bilinear,
    "torch-bilinear-antialias": _torch_bilinear_antialias,
    "tf1-bilinear": _tf1_bilinear,
    "pil-bicubic": _pil_bicubic,
    "swscale": _swscale,
}
