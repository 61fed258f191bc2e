"""How much moves in a video: displacement of the fastest blocks, and the change from frame to frame."""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from vidgen.eval.pixels import in_colour, to_levels
from vidgen.eval.prompt_score import OfPrompt, PromptScore

SHORT_SIDE = 128
BLOCK, REACH = 8, 7
FASTEST = 0.05
EXPLAINED = 8.0  # levels
PENALTY = 0.25  # levels a pixel of displacement: flat areas and straight edges would otherwise match anywhere
FAST_KEY, CHANGE_KEY = f"motion.fastest5.block{BLOCK}r{REACH}", "motion.change.rgb"


class Motion(PromptScore):
    """``motion.fastest5.block8r7`` and ``motion.change.rgb``; more is neither better nor worse.

    The first is the mean displacement of the fastest 5 % of the blocks of each frame, in percent of the shorter side a
    frame: VBench's dynamic degree (Huang et al. 2024) with block matching for a flow network. Larger frames are
    averaged down to a shorter side of 128 pixels, where 7 pixels along each axis are the most it sees. The second is
    the mean absolute change in levels of 255, in which noise and flicker count too.
    """

    keys = frozenset({FAST_KEY, CHANGE_KEY})
    missing = f"motion needs two frames, and sides of {BLOCK} pixels"

    def of_prompt(self, prompt: str, videos: Sequence[Tensor]) -> dict[str, OfPrompt]:
        if any(video.shape[1] < 2 or min(video.shape[-2:]) < BLOCK for video in videos):
            return {}
        levels = [to_levels(video).float() for video in videos]
        scores = {
            FAST_KEY: [fastest_percent(video) for video in levels],
            CHANGE_KEY: [float(video.diff(dim=1).abs().mean()) for video in levels],
        }
        return {key: OfPrompt(sum(of_videos) / len(of_videos), len(of_videos)) for key, of_videos in scores.items()}


def fastest_percent(levels: Tensor) -> float:
    """Of float ``3 t h w`` levels 0…255, t of at least 2."""
    luma = rearrange(in_colour(levels[None], "grey"), "1 1 t h w -> t 1 h w")
    short = min(luma.shape[-2:])
    if short > SHORT_SIDE:
        luma = functional.interpolate(luma, [round(side * SHORT_SIDE / short) for side in luma.shape[-2:]], mode="area")
    moved = block_displacements(luma).flatten(1)
    fastest = moved.topk(max(1, int(FASTEST * moved.shape[1])), dim=1).values
    return float(fastest.mean()) / min(luma.shape[-2:]) * 100


def block_displacements(luma: Tensor) -> Tensor:
    """How far each block of frames 1… of ``t 1 h w`` lay from its best match in the frame before: ``t-1 rows columns``.

    The best match has the least mean absolute difference plus a penalty on its distance, in pixels. Blocks that even it
    does not explain (what enters the frame, noise) count as 0.
    """
    now, before = luma[1:], functional.pad(luma[:-1], (REACH,) * 4, mode="replicate")
    height, width = now.shape[-2:]
    places = [(dy, dx) for dy in range(-REACH, REACH + 1) for dx in range(-REACH, REACH + 1)]
    least, moved = torch.tensor(torch.inf), torch.tensor(0.0)
    for dy, dx in places:
        length = (dy * dy + dx * dx) ** 0.5
        match = before[..., REACH + dy : REACH + dy + height, REACH + dx : REACH + dx + width]
        cost = functional.avg_pool2d((now - match).abs(), BLOCK)[:, 0] + PENALTY * length
        moved = torch.where(cost < least, length, moved)
        least = torch.minimum(cost, least)
    return moved * (least - PENALTY * moved <= EXPLAINED)
