"""From known pixels and a mask to known tokens: frame prediction, interpolation, in- and outpainting alike."""

import warnings
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from vidgen.conditioning.condition import TokenState
from vidgen.latents import NO_PLACE, Latents, LatentSpec, VideoSize


class Encodes(Protocol):
    """The one method of a tokenizer that is needed here."""

    def encode(self, video: Tensor) -> Latents: ...


def known_from_video(tokenizer: Encodes, video: Tensor, mask: Tensor) -> tuple[Latents, Tensor]:
    """Tokens of the condition video and the state of each.

    Args:
        tokenizer: encodes the condition video.
        video: `b 3 t h w` in [-1, 1]; pixels outside `mask` are ignored.
        mask: `b 1 t h w` bool, True where a pixel is known.

    Unknown pixels take the value of the nearest earlier known frame at the same place, else of the nearest later
    one, else gray (the "edge" padding of MAGVIT).
    """
    latents = tokenizer.encode(fill_unknown(video, mask))
    return latents, token_states(mask, latents.spec)


def check_polarity(video: Tensor, mask: Tensor, *, whole: bool) -> None:
    """Refuse a mask (bool, as the video or 1 along an axis) that is of no use, and warn of one that looks inverted.

    Known pixels that are all the same number, beside others that are not, are most likely a hole that was blanked.

    Args:
        whole: the video has all frames that are asked for.

    Raises:
        ValueError: no pixel is known, or all pixels of a whole video are.
    """
    advice = "true or 1 means known, false or 0 means to be made; where a tool marks what to make, invert its mask"
    if not mask.any():
        raise ValueError(f"the mask says that no pixel is known, and the video would be ignored: {advice}")
    if whole and mask.all():
        raise ValueError(f"the mask says that all pixels are known, and nothing is left to make: {advice}")
    mask = mask.expand_as(video)
    known, others = video[mask], video[~mask]
    if known.min() == known.max() and len(others) > 0 and others.min() < others.max():
        message = f"all known pixels are {known[0].item():g} and the others differ: is the mask inverted? {advice}"
        warnings.warn(message, stacklevel=4)


def fill_unknown(video: Tensor, mask: Tensor) -> Tensor:
    """Fill unknown pixels along time from the nearest known frame before, else after; gray where there is none."""
    filled = torch.where(mask, video, torch.zeros_like(video))
    seen = mask.clone()
    last = video.shape[2] - 1
    for t, neighbour in [(t, t - 1) for t in range(1, last + 1)] + [(t, t + 1) for t in range(last - 1, -1, -1)]:
        filled[:, :, t] = torch.where(seen[:, :, t], filled[:, :, t], filled[:, :, neighbour])
        seen[:, :, t] |= seen[:, :, neighbour]
    return filled


def token_states(mask: Tensor, spec: LatentSpec) -> Tensor:
    """`b 1 t h w -> b n`: KNOWN where all pixels of a token are known, UNKNOWN where none, PARTIAL between.

    A token without a place on an axis covers that whole axis. Pixels that only pad the video do not count.
    """
    frames, height, width = mask.shape[2:]
    rows = []
    for part in spec.parts:
        strides = dict(zip(part.axes, part.stride, strict=True))
        lead = strides["t"] - 1 if part.first_frame_alone else 0
        window = (strides.get("t", frames), strides.get("h", height), strides.get("w", width))
        missing = [-extent % step for extent, step in zip((lead + frames, height, width), window, strict=True)]
        padding = (0, missing[2], 0, missing[1], lead, missing[0])  # padding is neither known nor unknown
        any_known = F.max_pool3d(F.pad(mask.float(), padding), window) > 0
        any_unknown = F.max_pool3d(F.pad((~mask).float(), padding), window) > 0
        state = torch.where(any_unknown, int(TokenState.PARTIAL), int(TokenState.KNOWN))
        state = torch.where(any_known, state, int(TokenState.UNKNOWN))
        rows.append(rearrange(state, "b 1 t h w -> b (t h w)").repeat(1, part.count))
    return torch.cat(rows, dim=1)


def known_prefix(latents: Latents, frames: Tensor) -> Tensor:
    """State of each token when the first `frames` (`b` long) frames are known: `b n`, for training on prefixes.

    Only for causal tokenizers, whose tokens of the known frames do not depend on the rest.
    """
    if not latents.spec.causal:
        raise ValueError("a prefix of tokens stands for a prefix of frames only with a causal tokenizer")
    last = last_frames(latents.spec, latents.size).to(frames.device)
    return torch.where(last[None] < frames[:, None], int(TokenState.KNOWN), int(TokenState.UNKNOWN))


def last_frames(spec: LatentSpec, size: VideoSize) -> Tensor:
    """`n` long: the last frame that each token covers."""
    coordinates = spec.coordinates(size)
    number, frame = coordinates[:, 0], coordinates[:, 2]
    # with a lone first frame a row's coordinate is its last frame already, otherwise its first
    reach = torch.tensor([0 if p.first_frame_alone or "t" not in p.axes else p.stride[0] - 1 for p in spec.parts])
    last = torch.where(frame == NO_PLACE, size[0] - 1, frame + reach[number])
    return last.clamp(max=size[0] - 1)
