"""A timeline of prompts, `[(0, "…"), (24, "…")]`: which text holds for which frames (Phenaki, TALC)."""

from typing import Any, TypeGuard

import torch
from einops import rearrange
from torch import Tensor

from vidgen.conditioning import TextStates
from vidgen.conditioning.condition import OPEN_END

Timeline = list[tuple[int, str]]


def is_timeline(prompt: Any) -> TypeGuard[Timeline]:
    return isinstance(prompt, list) and bool(prompt) and all(isinstance(entry, tuple) for entry in prompt)


def check_timeline(timeline: Timeline, num_frames: int) -> None:
    """ValueError unless it starts at frame 0, goes on in order, and ends within the video."""
    for entry in timeline:
        if len(entry) != 2 or not isinstance(entry[0], int) or not isinstance(entry[1], str):
            raise ValueError(f"an entry of a timeline is (first frame, prompt), got {entry!r}")
    frames = [frame for frame, _ in timeline]
    if frames[0] != 0:
        raise ValueError(f"a timeline starts at frame 0, got frame {frames[0]}; say what the first frames show")
    if frames != sorted(set(frames)):
        raise ValueError(f"the frames of a timeline must rise from entry to entry, got {frames}; sort the entries")
    if frames[-1] >= num_frames:
        raise ValueError(f"the timeline's last prompt starts at frame {frames[-1]} of a video of {num_frames} frames")


def side_by_side(text: TextStates) -> TextStates:
    """The states of several prompts as those of one sample."""
    states = rearrange(text.states, "p l d -> 1 (p l) d")
    return TextStates(states, rearrange(text.mask, "p l -> 1 (p l)"))


def frame_ranges(prompt: Any, states: Tensor) -> Tensor | None:
    """`Condition.frames` of the states `b l d` that `side_by_side` made of a timeline; `None` for other prompts."""
    if not is_timeline(prompt):
        return None
    firsts = [frame for frame, _ in prompt]
    ranges = torch.tensor(list(zip(firsts, [*firsts[1:], OPEN_END], strict=True)), device=states.device)
    states_each = states.shape[1] // len(prompt)
    return ranges.repeat_interleave(states_each, dim=0).expand(states.shape[0], -1, -1)


def excerpt(prompt: Any, first: int, end: int) -> Any:
    """What a prompt says about the frames `first` to `end`, counted from `first`; one text where one text holds."""
    if not is_timeline(prompt):
        return prompt
    ends = [*(frame for frame, _ in prompt[1:]), end]
    entries = [
        (max(frame - first, 0), text)
        for (frame, text), until in zip(prompt, ends, strict=True)
        if frame < end and until > first
    ]
    return entries if len(entries) > 1 else entries[0][1]
