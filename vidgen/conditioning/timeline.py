"""A timeline of prompts, `[(0, "…"), (24, "…")]`: which text holds for which frames (Phenaki, TALC)."""

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from einops import rearrange
from torch import Tensor

from vidgen.conditioning.condition import OPEN_END
from vidgen.conditioning.text import TextEncoder, TextStates

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
    states_each = states.shape[1] // len(prompt)
    ranges = torch.tensor(ranges_of(prompt), device=states.device)
    return ranges.repeat_interleave(states_each, dim=0).expand(states.shape[0], -1, -1)


def ranges_of(timeline: Timeline) -> list[tuple[int, int]]:
    """First frame of each entry and one past its last."""
    firsts = [frame for frame, _ in timeline]
    return list(zip(firsts, [*firsts[1:], OPEN_END], strict=True))


def encode_prompts(encoder: TextEncoder, prompts: Sequence[str | Timeline]) -> tuple[TextStates, Tensor | None]:
    """States of prompts, some of which may be timelines, a sample each; and `Condition.frames`, `None` without any."""
    timelines = [prompt if is_timeline(prompt) else [(0, str(prompt))] for prompt in prompts]
    text = encoder.encode([entry for timeline in timelines for _, entry in timeline])
    entries = max(map(len, timelines))
    if entries == 1:
        return text, None
    rows = [row for row, timeline in enumerate(timelines) for _ in timeline]
    places = [place for timeline in timelines for place in range(len(timeline))]
    states = text.states.new_zeros(len(prompts), entries, *text.states.shape[1:])
    mask = text.mask.new_zeros(len(prompts), entries, *text.mask.shape[1:])
    frames = torch.zeros(len(prompts), entries, text.mask.shape[1], 2, dtype=torch.long, device=mask.device)
    states[rows, places], mask[rows, places] = text.states, text.mask
    ranges = torch.tensor([its for timeline in timelines for its in ranges_of(timeline)], device=mask.device)
    frames[rows, places] = ranges[:, None]
    return TextStates(states.flatten(1, 2), mask.flatten(1, 2)), frames.flatten(1, 2)


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
