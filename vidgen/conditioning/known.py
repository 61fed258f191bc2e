"""From known pixels and a mask to known tokens: frame prediction, interpolation, in- and outpainting alike."""

from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from vidgen.conditioning.condition import TokenState
from vidgen.latents import NO_PLACE, Latents, LatentSpec


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


def fill_unknown(video: Tensor, mask: Tensor) -> Tensor:
    """Fill unknown pixels along time from the nearest known frame before, then after; gray where there is none."""
    filled = torch.where(mask, video, torch.zeros_like(video))
    seen = mask.clone()
    frames = video.shape[2]
    for t in [*range(1, frames), *range(frames - 2, -1, -1)]:
        source = t - 1 if t > 0 and bool(seen[:, :, t - 1].any()) and not bool(seen[:, :, t].all()) else t
        neighbours = [source] if source != t else []
        neighbours += [t + 1] if t + 1 < frames else []
        for neighbour in neighbours:
            takes = ~seen[:, :, t] & seen[:, :, neighbour]
            filled[:, :, t] = torch.where(takes, filled[:, :, neighbour], filled[:, :, t])
            seen[:, :, t] |= takes
    return filled


def token_states(mask: Tensor, spec: LatentSpec) -> Tensor:
    """`b 1 t h w -> b n`: KNOWN where all pixels of a token are known, UNKNOWN where none, PARTIAL between.

    A token without a place on an axis covers that whole axis. Pixels that only pad the video do not count.
    """
    frames, height, width = mask.shape[2:]
    rows = []
    for part in spec.parts:
        known = mask.float()
        valid = torch.ones_like(known)
        strides = dict(zip(part.axes, part.stride, strict=True))
        if part.first_frame_alone:
            lead = strides["t"] - 1
            known, valid = F.pad(known, (0, 0, 0, 0, lead, 0)), F.pad(valid, (0, 0, 0, 0, lead, 0))
        window = (strides.get("t", known.shape[2]), strides.get("h", height), strides.get("w", width))
        missing = [-extent % stride for extent, stride in zip(known.shape[2:], window, strict=True)]
        padding = (0, missing[2], 0, missing[1], 0, missing[0])
        covered = F.avg_pool3d(F.pad(known, padding), window)
        possible = F.avg_pool3d(F.pad(valid, padding), window)
        state = torch.full_like(covered, TokenState.PARTIAL)
        state[covered == 0] = TokenState.UNKNOWN
        state[(covered >= possible - 1e-6) & (possible > 0)] = TokenState.KNOWN
        rows.append(rearrange(state, "b 1 t h w -> b (t h w)").repeat(1, part.count))
    return torch.cat(rows, dim=1).long()


def known_prefix(latents: Latents, frames: Tensor) -> Tensor:
    """State of each token when the first `frames` (`b` long) frames are known: `b n`, for training on prefixes.

    Only for causal tokenizers, whose tokens of the known frames do not depend on the rest.
    """
    if not latents.spec.causal:
        raise ValueError("a prefix of tokens stands for a prefix of frames only with a causal tokenizer")
    frame = latents.spec.coordinates(latents.size)[:, 2].to(frames.device)
    known = (frame[None] < frames[:, None]) & (frame != NO_PLACE)[None]
    return torch.where(known, int(TokenState.KNOWN), int(TokenState.UNKNOWN))
