"""The calls that compute a plan of boxes, ready to run: which tokens each takes, its mask, and where results belong."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vidgen.kernels.boxes import AxisCut, BoxPlan, Stretch, plan_boxes
from vidgen.kernels.masks import CACHED_MASKS
from vidgen.kernels.spec import AttentionSpec, Triple

Places = slice | Tensor


@dataclass(frozen=True)
class Slab:
    """Boxes that one call computes side by side.

    Args:
        queries, keys: positions in q and k, box by box; a slice where the box is a run of tokens.
        boxes: how many there are.
        mask: additive, `boxes 1 queries keys` or `1 1 queries keys`; None where everything is visible.
        order: where the tokens of the slab stand among `queries`, frame by frame; None for a run.
        repeated: positions among `queries` that come a second time; None for none.
        frames: of the queries, counted from the first one, and of the keys; None for the text.
        rows, columns: of each row and column of boxes.
    """

    queries: Places
    keys: Places
    boxes: int
    mask: Tensor | None
    order: Tensor | None = None
    repeated: Tensor | None = None
    frames: Stretch | None = None
    rows: tuple[Stretch, ...] = ()
    columns: tuple[Stretch, ...] = ()


@lru_cache(maxsize=CACHED_MASKS)
def slabs_of(spec: AttentionSpec, dtype: torch.dtype) -> tuple[Slab, ...]:
    """The text queries, if there are any, then the frames; for a pattern that has boxes."""
    plan = plan_boxes(spec)
    assert isinstance(plan, BoxPlan)  # the backend has seen to that
    masks: dict[Any, Tensor | None] = {}
    # Tensors made under inference_mode could not be used by autograd later.
    with torch.inference_mode(False):
        slabs = [_text_slab(spec, dtype)] if spec.query_prefix else []
        in_frame = [_axis_masks(spec, axis, cut) for axis, cut in ((1, plan.rows), (2, plan.columns))]
        for stretch in plan.time.stretches:
            in_time = _axis_masks(spec, 0, AxisCut((stretch,), False))
            key = (in_time.shape, in_time.numpy().tobytes())
            if key not in masks:
                masks[key] = _additive_mask(in_time, *in_frame, prefix=spec.prefix, dtype=dtype)
            slabs.append(_slab(spec, plan, stretch, masks[key]))
    return tuple(slabs)


def _text_slab(spec: AttentionSpec, dtype: torch.dtype) -> Slab:
    seen = spec.num_keys if spec.prefix_mode == "bidir" else spec.prefix
    mask = None
    if spec.prefix_mode == "causal":
        mask = torch.full((1, 1, spec.prefix, spec.prefix), float("-inf"), dtype=dtype).triu(1)
    return Slab(slice(0, spec.prefix), slice(0, seen), 1, mask)


def _slab(spec: AttentionSpec, plan: BoxPlan, stretch: Stretch, mask: Tensor | None) -> Slab:
    first = spec.q_frame_offset
    frames = range(stretch.queries.start - first, stretch.queries.stop - first, stretch.queries.step)
    rows, columns = plan.rows.stretches, plan.columns.stretches
    queries = _places(
        spec.grid,
        list(frames),
        [list(part.queries) for part in rows],
        [list(part.queries) for part in columns],
    )
    keys = _places(
        spec.kv_grid,
        stretch.key_positions,
        [part.key_positions for part in rows],
        [part.key_positions for part in columns],
    )
    text = torch.arange(spec.prefix).expand(plan.boxes, -1)
    keys = torch.cat([text, keys + spec.prefix], dim=1)
    where_in_video = (Stretch(frames, stretch.keys), rows, columns)
    if plan.boxes == 1 and isinstance(where := _as_run(queries[0] + spec.query_prefix), slice):
        return Slab(where, _as_run(keys[0]), 1, mask, None, None, *where_in_video)
    flat = queries.flatten()
    tokens, inverse = flat.unique(return_inverse=True)
    order = torch.empty_like(tokens).scatter_(0, inverse, torch.arange(len(flat)))
    kept = torch.zeros(len(flat), dtype=torch.bool)
    kept[order] = True
    repeated = None if kept.all() else (~kept).nonzero().flatten()
    return Slab(flat + spec.query_prefix, keys.flatten(), plan.boxes, mask, order, repeated, *where_in_video)


def _places(grid: Triple, frames: list[int], rows: list[list[int]], columns: list[list[int]]) -> Tensor:
    """Raster positions in the grid, `boxes (t y x)`."""
    _, height, width = grid
    time = torch.tensor(frames).view(1, 1, -1, 1, 1)
    row = torch.tensor(rows).view(len(rows), 1, 1, -1, 1)
    column = torch.tensor(columns).view(1, len(columns), 1, 1, -1)
    return ((time * height + row) * width + column).flatten(0, 1).flatten(1)


def _as_run(places: Tensor) -> Places:
    """A slice where the places follow one another, so that nothing is copied."""
    first, last = int(places[0]), int(places[-1])
    follows = bool((places == torch.arange(first, first + len(places))).all())
    return slice(first, last + 1) if follows else places


def _axis_masks(spec: AttentionSpec, axis: int, cut: AxisCut) -> Tensor:
    """Which keys of a stretch its queries see along one axis, bool `stretches queries keys`."""
    rule = spec.axis(axis)
    queries = torch.tensor([list(stretch.queries) for stretch in cut.stretches])[:, :, None]
    keys = torch.tensor([stretch.key_positions for stretch in cut.stretches])[:, None, :]
    near = rule.in_window(queries, keys)
    if axis == 0:
        near = near | (keys < spec.sink_frames)
    return rule.in_past(queries, keys) & near


def _additive_mask(time: Tensor, rows: Tensor, columns: Tensor, *, prefix: int, dtype: torch.dtype) -> Tensor | None:
    """0 where visible and -inf elsewhere, `boxes 1 queries keys`; one for all boxes where they are alike."""
    if bool(time.all()) and bool(rows.all()) and bool(columns.all()):
        return None
    if bool((rows == rows[:1]).all()) and bool((columns == columns[:1]).all()):
        rows, columns = rows[:1], columns[:1]
    in_frame = rows[:, None, :, None, :, None] & columns[None, :, None, :, None, :]  # ny nx y x ky kx
    visible = time[0, None, None, :, None, None, :, None, None] & in_frame[:, :, None, :, :, None]
    visible = visible.flatten(5).flatten(2, 4).flatten(0, 1)
    mask = torch.zeros(*visible.shape[:2], prefix + visible.shape[2], dtype=dtype)
    mask[:, :, prefix:].masked_fill_(~visible, float("-inf"))
    return mask[:, None]


def as_slice(positions: range) -> slice:
    """The same positions as an index."""
    return slice(positions.start, positions.stop, positions.step)
