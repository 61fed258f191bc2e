"""Which blocks of keys each block of queries meets: interval arithmetic along the axes, never token by token."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from vidgen.kernels.axis import AxisRule
from vidgen.kernels.spec import AttentionSpec
from vidgen.kernels.tiling import Tiling

NONE, PARTIAL, FULL = 0, 1, 2


@dataclass(frozen=True, eq=False)
class BlockRows:
    """For each block of one side the blocks of the other side that it meets, as two lists; int32 throughout.

    Block i fully sees blocks `full[full_start[i] : full_start[i + 1]]`; `partial` likewise holds those that need the
    rule token by token.
    """

    full_start: Tensor
    full: Tensor
    partial_start: Tensor
    partial: Tensor
    order: Tensor
    """The blocks with the longest lists first: a launch in this order leaves no long block for the end."""


@dataclass(frozen=True, eq=False)
class BlockLists:
    """Visible pairs of blocks in both directions: queries walk over keys, and keys over queries (for dK and dV)."""

    queries: Tiling
    keys: Tiling
    by_query: BlockRows
    by_key: BlockRows

    @property
    def num_full(self) -> int:
        """Pairs of blocks in which every token of the query block sees every token of the key block."""
        return self.by_query.full.numel()

    @property
    def num_partial(self) -> int:
        """Pairs of blocks in which some tokens may be hidden."""
        return self.by_query.partial.numel()

    @property
    def executed_pairs(self) -> int:
        """Query-key pairs that a kernel computes, the hidden ones in visited blocks included."""
        return (self.num_full + self.num_partial) * self.queries.block * self.keys.block


@lru_cache(maxsize=64)
def block_lists(spec: AttentionSpec, queries: Tiling, keys: Tiling, device: torch.device) -> BlockLists:
    """The block lists of `spec` with its queries and keys cut as the tilings say, on `device`."""
    with torch.inference_mode(False):
        return lists_of(block_map(spec, queries, keys), queries, keys, device)


def lists_of(seen: Tensor, queries: Tiling, keys: Tiling, device: torch.device) -> BlockLists:
    """The lists of a map as `block_map` gives it, or of one chosen by other means (content-adaptive sparsity)."""
    return BlockLists(queries, keys, _rows(seen, device), _rows(seen.T.contiguous(), device))


def block_map(spec: AttentionSpec, queries: Tiling, keys: Tiling) -> Tensor:
    """What each query block (row) sees of each key block (column): uint8, 0 nothing, 1 some, 2 every token.

    Exact for grid tiles without dilation, sinks and windows on causal axes; elsewhere a block that sees nothing may be
    called partial, and a full one partial, never the other way round. Empty slots count as neither, but a key block
    with fewer than `capacity` tokens is never full: a kernel may skip the mask in full blocks.
    """
    text_rows, text_columns = queries.prefix_blocks(spec.query_prefix), keys.prefix_blocks(spec.prefix)
    row_count = queries.num_blocks(spec.grid, prefix=spec.query_prefix)
    seen = torch.full((row_count, keys.num_blocks(spec.kv_grid, prefix=spec.prefix)), FULL, dtype=torch.uint8)
    seen[text_rows:, text_columns:] = _grid_map(spec, queries.boxes(spec.grid), keys.boxes(spec.kv_grid))
    if spec.prefix_mode != "bidir":
        seen[:text_rows, text_columns:] = NONE
    seen[:text_rows, :text_columns] = _text_map(spec, queries.capacity, keys.capacity)
    return seen.minimum(FULL - keys.ragged(spec.kv_grid, prefix=spec.prefix).byte())


def run_map(spec: AttentionSpec, block: int) -> Tensor:
    """`block_map` for runs of all tokens, text and grid without a gap, as FlexAttention cuts them."""
    runs = Tiling(block=block)
    shape = (-(-spec.num_queries // block), -(-spec.num_keys // block))
    some, every = torch.zeros(shape, dtype=torch.bool), torch.ones(shape, dtype=torch.bool)
    # where text and grid meet in a block, it belongs to both
    rows, columns = spec.query_prefix // block, spec.prefix // block
    text = _text_map(spec, block, block)
    for place, seen in (
        (
            (slice(rows, None), slice(columns, None)),
            _grid_map(
                spec,
                runs.boxes(spec.grid, skipped=spec.query_prefix % block),
                runs.boxes(spec.kv_grid, skipped=spec.prefix % block),
            ),
        ),
        ((slice(rows, None), slice(text.shape[1])), torch.tensor(FULL)),
        ((slice(text.shape[0]), slice(columns, None)), torch.tensor(FULL if spec.prefix_mode == "bidir" else NONE)),
        ((slice(text.shape[0]), slice(text.shape[1])), text),
    ):
        some[place] |= seen > NONE
        every[place] &= seen == FULL
    if spec.num_keys % block:
        every[:, -1] = False
    return _level(some, every)


def _text_map(spec: AttentionSpec, query_block: int, key_block: int) -> Tensor:
    """`block_map` between the blocks that hold text."""
    first_query = torch.arange(0, spec.query_prefix, query_block)[:, None]
    first_key = torch.arange(0, spec.prefix, key_block)[None, :]
    if spec.prefix_mode != "causal":
        return torch.full((len(first_query), first_key.shape[1]), FULL, dtype=torch.uint8)
    some = first_key <= torch.clamp(first_query + query_block, max=spec.prefix) - 1
    every = torch.clamp(first_key + key_block, max=spec.prefix) - 1 <= first_query
    return _level(some, every)


def _grid_map(spec: AttentionSpec, queries: tuple[Tensor, Tensor], keys: tuple[Tensor, Tensor]) -> Tensor:
    """`block_map` between boxes of the grid: visible = in the past along all axes, and near along all or a sink."""
    query_first, query_last = queries
    query_first[0] += spec.q_frame_offset
    query_last[0] += spec.q_frame_offset
    key_first, key_last = keys
    past = near = torch.tensor(FULL, dtype=torch.uint8)
    for axis in range(3):
        # blocks share few intervals along an axis: relate those, then spread the answer over the blocks
        query, query_at = torch.stack([query_first[axis], query_last[axis]]).unique(dim=1, return_inverse=True)
        key, key_at = torch.stack([key_first[axis], key_last[axis]]).unique(dim=1, return_inverse=True)
        ends = (query[0][:, None], query[1][:, None], key[0][None, :], key[1][None, :])
        rule = spec.axis(axis)
        past = past.minimum(_past(rule, *ends)[query_at][:, key_at])
        near = near.minimum(_near(rule, *ends)[query_at][:, key_at])
    sink = _level(key_first[0] < spec.sink_frames, key_last[0] < spec.sink_frames)
    return past.minimum(near.maximum(sink))


def axis_map(rule: AxisRule, query_first: Tensor, query_last: Tensor, key_first: Tensor, key_last: Tensor) -> Tensor:
    """`block_map` along one axis, for intervals of queries and keys with inclusive ends, broadcast together."""
    ends = (query_first, query_last, key_first, key_last)
    return _past(rule, *ends).minimum(_near(rule, *ends))


def _level(some: Tensor, every: Tensor) -> Tensor:
    return some.byte() + (some & every).byte()


def _past(rule: AxisRule, query_first: Tensor, query_last: Tensor, key_first: Tensor, key_last: Tensor) -> Tensor:
    """What causality along an axis leaves of key intervals to query intervals (inclusive ends, broadcast): exact."""
    group = rule.causal_group
    if not rule.causal:
        return torch.full(torch.broadcast_shapes(query_first.shape, key_first.shape), FULL, dtype=torch.uint8)
    return _level(key_first // group <= query_last // group, key_last // group <= query_first // group)


def _near(rule: AxisRule, query_first: Tensor, query_last: Tensor, key_first: Tensor, key_last: Tensor) -> Tensor:
    """What the window along an axis leaves of key intervals to query intervals: exact but for dilated windows."""
    # a multiple of the dilation lies among the distances, which are the integers from nearest to farthest
    farthest, nearest = key_last - query_first, key_first - query_last
    some = farthest // rule.dilation * rule.dilation >= nearest
    if rule.dilation > 1:
        single = (query_first == query_last) & (key_first == key_last)
        every = single & rule.in_window(query_first, key_first)
    else:
        every = torch.ones_like(some)
    if rule.window is None:
        return _level(some, every)
    # Starts never fall from one query to the next and rise by no more than the window's width, so the windows of an
    # interval of queries cover a stretch without gaps, and what they share lies between the last start and first stop.
    low, high = (_window_start(rule, query, longest) for query, longest in ((query_first, False), (query_last, True)))
    some = some & (key_last // rule.dilation >= low) & (key_first // rule.dilation < high + rule.width)
    if rule.dilation == 1:
        every = (key_first >= high) & (key_last < low + rule.width)
    return _level(some, every)


def _window_start(rule: AxisRule, query: Tensor, longest: bool) -> Tensor:
    """First key of the window in steps of the dilation, as if the residue class were the shortest or longest one."""
    start = rule.window_start(query)
    if not rule.clamped:
        return start
    length = -(-rule.size // rule.dilation) if longest else rule.size // rule.dilation
    return start.clamp(max=length - rule.width).clamp(min=0)


def _rows(seen: Tensor, device: torch.device) -> BlockRows:
    def listed(level: int) -> tuple[Tensor, Tensor]:
        members = seen == level
        start = torch.nn.functional.pad(members.sum(dim=1).cumsum(0), (1, 0))
        return start.int().to(device), members.nonzero()[:, 1].int().to(device)

    order = (seen > NONE).sum(dim=1).argsort(descending=True, stable=True)
    (full_start, full), (partial_start, partial) = listed(FULL), listed(PARTIAL)
    return BlockRows(full_start, full, partial_start, partial, order.int().to(device))
