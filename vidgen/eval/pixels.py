"""What the pixel scores look at: checked levels 0…255 of a video and its original, in the colours that a key names."""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from vidgen.eval.protocol import Quantise

Colour = Literal["rgb", "y601", "grey"]
# ITU-R BT.601: luma in the studio range 16…235 as image restoration papers take it, and grey in the full range.
STUDIO_LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)
GREY = (0.299, 0.587, 0.114)
OUT_OF_RANGE = 1.01  # an original in [-1, 1] may be off by rounding
MISTAKEN_RANGE = 8.0  # a decoder may overshoot and is clipped; beyond this it is not in [-1, 1] at all
PIECE_PIXELS = 2**17  # frames are scored in pieces of about this size, which stay in the processor's cache


def check_pair(video: Tensor, reference: Tensor, *, key: str, smallest_side: int = 1) -> None:
    """ValueError unless both are ``b 3 t h w`` of one shape, finite, in range and large enough for ``key``."""
    if video.shape != reference.shape or video.ndim != 5 or video.shape[1] != 3:
        raise ValueError(
            f"{key} expects a video and its original, both b 3 t h w of the same size and length, "
            f"got {tuple(video.shape)} and {tuple(reference.shape)}"
        )
    if min(video.shape[-2:]) < smallest_side:
        raise ValueError(
            f"{key} needs frames of at least {smallest_side} pixels a side, got {video.shape[-2]}x{video.shape[-1]}"
        )
    for name, pixels, limit in (("video", video, MISTAKEN_RANGE), ("original", reference, OUT_OF_RANGE)):
        check_range(pixels, limit=limit, name=f"{key}: the {name}")


def check_range(pixels: Tensor, *, limit: float, name: str) -> None:
    """ValueError unless ``pixels`` are uint8 levels, or floats without NaN that lie within ±``limit``."""
    if pixels.dtype == torch.uint8 or pixels.numel() == 0:
        return
    if not pixels.is_floating_point():
        raise ValueError(f"{name} holds {pixels.dtype}; expected floats in [-1, 1] or uint8 levels 0…255")
    low, high = (float(bound) for bound in torch.aminmax(pixels))
    if not -limit <= low <= high <= limit:
        advice = (
            "the frames hold NaN" if low != low else "for levels 0…255 pass uint8, or divide by 127.5 and subtract 1"
        )
        raise ValueError(f"{name} ranges from {low:.4g} to {high:.4g}, expected floats in [-1, 1]; {advice}")


def to_levels(pixels: Tensor, quantise: Quantise = "round") -> Tensor:
    """Floats in [-1, 1] (clipped) or uint8 -> float64 levels 0…255, whole ones unless ``quantise`` is "none"."""
    if pixels.dtype == torch.uint8:
        return pixels.double()
    levels = ((pixels.float() + 1) * 127.5).clamp_(0, 255)
    if quantise == "round":
        levels = levels.round_()
    elif quantise == "floor":
        levels = levels.floor_()
    return levels.double()


def levels_of_pair(video: Tensor, reference: Tensor, *, quantise: Quantise, colour: Colour) -> tuple[Tensor, Tensor]:
    """Levels of both in the channels that are scored; "floor" cuts off the video, and the original keeps its levels."""
    of_reference: Quantise = "round" if quantise == "floor" else quantise
    return in_colour(to_levels(video, quantise), colour), in_colour(to_levels(reference, of_reference), colour)


def in_colour(levels: Tensor, colour: Colour) -> Tensor:
    """RGB levels ``b 3 …`` -> the channels that are scored, ``b c …``."""
    if colour == "rgb":
        return levels
    red, green, blue = levels.unbind(1)
    if colour == "y601":
        luma = 16 + STUDIO_LUMA[0] * red + STUDIO_LUMA[1] * green + STUDIO_LUMA[2] * blue
    else:
        luma = GREY[0] * red + GREY[1] * green + GREY[2] * blue
    return luma[:, None]


def frame_pieces(*videos: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Equally long videos ``b c t h w`` cut along time into small pieces."""
    pixels = videos[0].shape[0] * videos[0].shape[-2] * videos[0].shape[-1]
    frames = max(1, PIECE_PIXELS // pixels)
    yield from zip(*(video.split(frames, dim=2) for video in videos))


def convention(colour: Colour, *rest: str, quantise: Quantise) -> str:
    """The part of a key behind the score's name."""
    rounding = () if quantise == "round" else ("float",) if quantise == "none" else (quantise,)
    return ".".join((colour, *rest, *rounding))
