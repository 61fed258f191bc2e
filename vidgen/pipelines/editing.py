"""Video to video by `strength`: how much of a video's tokens is made anew (SDEdit's idea for every family)."""

import math
from typing import Any

from torch import Tensor

from vidgen.nn.random import Generators, rand


def check_strength(strength: float | None, video: Any, latents: Tensor | None) -> None:
    """ValueError unless `strength` is a share and there is a video that it can apply to."""
    if strength is None:
        return
    if not 0 < strength <= 1:
        raise ValueError(f"strength must lie above 0 (the video as it is) and at most 1 (all anew), got {strength}")
    if video is None:
        raise ValueError("strength says how much of a video is made anew; give the video")
    if latents is not None:
        raise ValueError("with a strength the video gives the latents to start from; give strength or latents")


def remasked(tokens: Tensor, strength: float, generators: Generators) -> Tensor:
    """`b n …` with `redone` tokens of each sample, drawn at random, undecided: -1 (ids) or NaN (reals)."""
    scores = rand(tokens.shape[:2], generators).to(tokens.device)
    undecided = scores.argsort(dim=1).argsort(dim=1) < redone(tokens.shape[1], strength)
    return tokens.masked_fill(undecided.unsqueeze(-1), float("nan") if tokens.is_floating_point() else -1)


def first_tokens(tokens: Tensor, strength: float) -> Tensor:
    """The tokens `b n …` without the last `redone`, to go on from."""
    return tokens[:, : tokens.shape[1] - redone(tokens.shape[1], strength)]


def redone(count: int, strength: float) -> int:
    """How many of `count` tokens are made anew: ⌈strength · count⌉, whatever the last bits of the product say."""
    return math.ceil(round(strength * count, 6))
