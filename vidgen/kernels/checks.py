"""What is refused: contradictory patterns and tensors that do not fit, each with the nearest thing that would do."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vidgen.kernels.axis import AXES

if TYPE_CHECKING:
    from vidgen.kernels.spec import AttentionSpec

EDGES = ("shrink", "clamp")
PREFIX_MODES = ("bidir", "self", "causal", "kv_only")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# ------------------------------------------------------------------------------------------------------- patterns


def check_spec(spec: "AttentionSpec") -> None:
    """ValueError unless the fields have the right types, agree with each other and all do something."""
    for name in ("grid", "granularity", "dilation"):
        check_triple(name, getattr(spec, name), smallest=1)
    check_triple("shift", spec.shift, smallest=0)
    if not isinstance(spec.window, tuple) or len(spec.window) != 3:
        raise ValueError(f"window must be a tuple of three entries (time, height, width), got {spec.window!r}")
    for axis, window in zip(AXES, spec.window, strict=True):
        if window is None:
            continue
        if not (isinstance(window, tuple) and len(window) == 2 and all(isinstance(side, int) for side in window)):
            raise ValueError(f"window along {axis} must be None or two integers (left, right), got {window!r}")
        if min(window) < 0:
            nearest = (max(0, window[0]), max(0, window[1]))
            raise ValueError(f"window along {axis} must not be negative, got {window}; use {nearest}")
    if not isinstance(spec.causal, tuple) or list(map(type, spec.causal)) != [bool] * 3:
        raise ValueError(f"causal must be a tuple of three booleans, got {spec.causal!r}")
    _check_choice("edge", spec.edge, EDGES)
    _check_choice("prefix_mode", spec.prefix_mode, PREFIX_MODES)
    for name, smallest in (("causal_group", 1), ("prefix", 0), ("sink_frames", 0), ("q_frame_offset", 0)):
        value = getattr(spec, name)
        if not isinstance(value, int) or value < smallest:
            raise ValueError(f"{name} must be an integer of at least {smallest}, got {value!r}")
    _check_time(spec)
    for axis in range(3):
        _check_axis(spec, axis)
    if spec.sink_frames and spec.window == (None, None, None) and spec.dilation == (1, 1, 1):
        raise ValueError(f"sink_frames {spec.sink_frames} does nothing without a window; give a window or use 0")


def _check_time(spec: "AttentionSpec") -> None:
    frames, last = spec.grid[0], spec.q_frame_offset + spec.grid[0]
    if spec.kv_frames is None and spec.q_frame_offset:
        raise ValueError(f"q_frame_offset {spec.q_frame_offset} needs kv_frames; give kv_frames={last} or more")
    if spec.kv_frames is not None and spec.kv_frames < last:
        raise ValueError(
            f"kv_frames {spec.kv_frames} ends before the last query frame (offset {spec.q_frame_offset} + {frames} "
            f"frames); give kv_frames={last} or more"
        )
    if spec.causal_group > 1 and not spec.causal[0]:
        raise ValueError(f"causal_group {spec.causal_group} needs causal time; set causal=(True, …) or use 1")
    if spec.causal[0] and spec.prefix and spec.prefix_mode == "bidir":
        raise ValueError(
            'prefix_mode "bidir" with causal time lets the text carry later frames to earlier ones in the next '
            'layer; use "self", "causal" or "kv_only"'
        )


def _check_axis(spec: "AttentionSpec", axis: int) -> None:
    rule, name = spec.axis(axis), AXES[axis]
    if spec.shift[axis] >= rule.granularity:
        raise ValueError(
            f"shift {spec.shift[axis]} along {name} must be smaller than the granularity {rule.granularity}; "
            f"use {spec.shift[axis] % rule.granularity}"
        )
    if rule.window is None:
        if rule.granularity > 1:
            raise ValueError(
                f"granularity {rule.granularity} along {name} does nothing without a window; give a window or use 1"
            )
        return
    if spec.shift[axis] and spec.edge == "clamp":
        raise ValueError(f'shift along {name} leaves short groups at the borders; use edge="shrink"')
    if rule.causal and rule.window[1] and spec.causal_group == 1:
        raise ValueError(
            f"window {rule.window} along the causal axis {name} reaches into the future; use ({rule.window[0]}, 0)"
        )
    shortest_class = rule.size // rule.dilation
    if rule.clamped and rule.dilation > rule.size:
        raise ValueError(
            f"dilation {rule.dilation} along {name} is larger than the grid, {rule.size}; use at most {rule.size}"
        )
    if rule.clamped and rule.width > shortest_class:
        raise ValueError(
            f"window along {name} holds {rule.width} positions, more than the {shortest_class} that the grid has "
            f'(size {rule.size}, dilation {rule.dilation}); use at most {shortest_class} or edge="shrink"'
        )


def check_window(window: Any) -> None:
    """ValueError unless `window` is three sizes along the axes, each None or an integer of at least 1."""
    if not isinstance(window, tuple) or len(window) != 3:
        raise ValueError(f"window must be a tuple of three sizes (time, height, width), got {window!r}")
    for axis, size in zip(AXES, window, strict=True):
        if size is not None and not (isinstance(size, int) and size >= 1):
            raise ValueError(f"window along {axis} must be None or an integer of at least 1, got {size!r}")


def check_tiles(grid: Any, window: Any, tile: Any, edge: str) -> None:
    """ValueError unless a window is an odd number of tiles, and fits the grid where it may not be cut."""
    for name, value in (("grid", grid), ("window", window), ("tile", tile)):
        check_triple(name, value, smallest=1)
    for name, length, size, step in zip(AXES, grid, window, tile, strict=True):
        if size % (2 * step) != step:
            nearest = max(1, round((size / step - 1) / 2) * 2 + 1) * step
            if edge == "clamp":
                nearest = min(nearest, _odd_tiles(length, step))
            raise ValueError(f"window {size} along {name} must be an odd number of tiles of {step}; use {nearest}")
        if edge == "clamp" and length % step:
            raise ValueError(f'grid {length} along {name} is not a whole number of tiles of {step}; use edge="shrink"')
        if edge == "clamp" and size > length:
            raise ValueError(
                f"window {size} along {name} is larger than the grid, {length}; use {_odd_tiles(length, step)} or "
                'edge="shrink"'
            )


def _odd_tiles(length: int, step: int) -> int:
    """The longest window of an odd number of tiles that fits."""
    return max(1, (length // step - 1) // 2 * 2 + 1) * step


def check_triple(name: str, value: Any, *, smallest: int) -> None:
    """ValueError unless `value` is a tuple of three integers, none below `smallest`."""
    if not isinstance(value, tuple) or len(value) != 3 or not all(isinstance(size, int) for size in value):
        raise ValueError(f"{name} must be a tuple of three integers (time, height, width), got {value!r}")
    for axis, size in zip(AXES, value, strict=True):
        if size < smallest:
            raise ValueError(f"{name} along {axis} must be at least {smallest}, got {size}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


# -------------------------------------------------------------------------------------------------------- tensors


def check_tensors(q: Tensor, k: Tensor, v: Tensor, spec: "AttentionSpec") -> None:
    """ValueError unless q `b h n d`, k `b g m d` and v `b g m e` fit the pattern and each other."""
    _check_tokens("q", q, "queries", spec.num_queries, spec.query_prefix, spec.grid)
    for name, tensor in (("k", k), ("v", v)):
        _check_tokens(name, tensor, "keys", spec.num_keys, spec.prefix, spec.kv_grid)
        if tensor.shape[0] != q.shape[0]:
            raise ValueError(f"{name} has batch {tensor.shape[0]}, q has {q.shape[0]}; they must be equal")
        if tensor.device != q.device:
            raise ValueError(f"{name} is on {tensor.device}, q on {q.device}; move them to one device")
        if tensor.dtype != q.dtype:
            raise ValueError(f"{name} is {tensor.dtype}, q is {q.dtype}; cast them to one dtype")
    if q.dtype not in DTYPES:
        raise ValueError(f"q, k and v are {q.dtype}; use float32, bfloat16, float16 or float64")
    if k.shape[1] != v.shape[1] or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"k and v need equally many heads, a divisor of q's {q.shape[1]}; got {k.shape[1]} and {v.shape[1]}, use "
            f"{max(heads for heads in range(1, k.shape[1] + 1) if q.shape[1] % heads == 0)}"
        )
    if q.shape[3] != k.shape[3]:
        raise ValueError(f"q and k need equal head sizes, got {q.shape[3]} and {k.shape[3]}")


def head_size_reason(q: Tensor, v: Tensor, sizes: tuple[int, ...]) -> str | None:
    """Why a kernel for these head sizes cannot take q and v, with the next size that it can."""
    head = max(q.shape[-1], v.shape[-1])
    if q.shape[-1] == v.shape[-1] and head in sizes:
        return None
    larger = [size for size in sizes if size >= head]
    way_out = f"pad with zeros to {larger[0]}" if larger else f"use more heads of {sizes[-1]}"
    return (
        f"it takes equal head sizes of {', '.join(map(str, sizes))} for q, k and v; got {q.shape[-1]} and "
        f"{v.shape[-1]} (v): {way_out}"
    )


def _check_tokens(name: str, tensor: Tensor, role: str, expected: int, prefix: int, grid: tuple[int, int, int]) -> None:
    given = tensor.shape[2]
    if given == expected:
        return
    frames, rest = divmod(given - prefix, grid[1] * grid[2])
    fits = f"; a grid of {frames}x{grid[1]}x{grid[2]} would hold them" if frames > 0 and not rest else ""
    raise ValueError(
        f"{name} has {given} tokens but the spec has {expected} {role} "
        f"({prefix} prefix + grid {'x'.join(map(str, grid))}){fits}"
    )
