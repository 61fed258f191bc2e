"""How a pattern falls apart into separate windows, each of which is an attention of its own, or why it does not."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import torch

from vidgen.kernels.axis import AXES, AxisRule
from vidgen.kernels.spec import AttentionSpec, Triple


@dataclass(frozen=True)
class WindowBatch:
    """Equal windows side by side: `count` windows of `size` query tokens along each axis, from `start` on."""

    start: Triple
    count: Triple
    size: Triple
    inside: AttentionSpec | None
    """The pattern inside one window, prefix keys in front; None where everything is visible."""


def separate_windows(spec: AttentionSpec) -> tuple[WindowBatch, ...] | str:
    """The windows in raster order of their places, at most 3 x 3 x 3 batches, or the reason why there are none.

    Prefix queries are left out (they belong to no window); every window sees the prefix keys.
    """
    # Dynamo warns about caches and traces the function itself.
    return _find_windows(spec) if torch.compiler.is_compiling() else _stored_windows(spec)


def _find_windows(spec: AttentionSpec) -> tuple[WindowBatch, ...] | str:
    everything = spec.grid_sees_grid
    if spec.sink_frames and not everything:
        return "sink frames join windows that are otherwise separate"
    segments = []
    for axis, name in enumerate(AXES):
        rule, size = spec.axis(axis), spec.grid[axis]
        first = spec.q_frame_offset if axis == 0 else 0
        if everything or rule.window_covers_axis(first, first + size - 1):
            segments.append([(0, 1, size)])
            continue
        if rule.dilation > 1:
            return f"dilation {rule.dilation} along {name} does not cut the grid into contiguous windows"
        if rule.window != (0, 0):
            return f"windows {rule.window} along {name} overlap"
        if rule.clamped and size % rule.granularity:
            return f"the last window along {name} is moved inside and overlaps its neighbour"
        if rule.causal and rule.granularity > 1:
            return f"the {name} axis is causal and cut into windows"
        if rule.size != size:
            return f"queries and keys have different sizes along {name}, which is cut into windows"
        segments.append(_segments(rule))
    causal = any(spec.causal) and not everything
    batches = []
    for time, row, column in product(*segments):
        start, count, size = zip(time, row, column, strict=True)
        batches.append(WindowBatch(start, count, size, _inside(spec, size) if causal else None))
    return tuple(batches)


_stored_windows = lru_cache(maxsize=256)(_find_windows)


def _segments(rule: AxisRule) -> list[tuple[int, int, int]]:
    """The axis as (start, count, size) of a short first window, the whole windows and a short last window."""
    head = min(rule.shift, rule.size)
    whole = (rule.size - head) // rule.granularity
    tail = head + whole * rule.granularity
    segments = [(0, 1, head), (head, whole, rule.granularity), (tail, 1, rule.size - tail)]
    return [segment for segment in segments if segment[1] * segment[2]]


def _inside(spec: AttentionSpec, size: Triple) -> AttentionSpec | None:
    """Only causality is left of the rule inside a window; an axis cut to windows of one token has not even that."""
    inside = AttentionSpec(
        grid=size,
        causal=spec.causal,
        causal_group=spec.causal_group,
        prefix=spec.prefix,
        prefix_mode="kv_only",
        q_frame_offset=spec.q_frame_offset if size[0] == spec.grid[0] else 0,
        kv_frames=spec.kv_frames if size[0] == spec.grid[0] else None,
    )
    return None if inside.sees_everything else inside
