"""Block lists against dense masks: nothing visible is missed, nothing hidden is called full."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidgen.kernels import AttentionSpec
from vidgen.kernels.blocks import FULL, NONE, PARTIAL, block_lists, block_map
from vidgen.kernels.tile_choice import choose_tilings
from vidgen.kernels.tiling import Tiling, token_index

CPU = torch.device("cpu")


def axis_windows(draw: st.DrawFn, size: int, causal: bool) -> tuple:
    """Window, granularity, dilation and shift of one axis, legal for an axis that may be clamped."""
    if draw(st.booleans()):
        return None, 1, draw(st.sampled_from([1, 1, 2])), 0
    dilation = draw(st.sampled_from([1, 1, 2])) if size >= 2 else 1
    length = size // dilation
    granularity = draw(st.integers(1, min(3, length)))
    left = draw(st.integers(0, length - granularity))
    right = 0 if causal else draw(st.integers(0, length - granularity - left))
    return (left, right), granularity, dilation, draw(st.integers(0, granularity - 1))


@st.composite
def specs(draw: st.DrawFn) -> AttentionSpec:
    grid = draw(st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)))
    causal = draw(
        st.tuples(st.booleans(), st.sampled_from([False, False, True]), st.sampled_from([False, False, True]))
    )
    axes = [axis_windows(draw, size, past) for size, past in zip(grid, causal)]
    window, granularity, dilation, shift = (tuple(values) for values in zip(*axes))
    edge = draw(st.sampled_from(["shrink", "clamp"]))
    if edge == "clamp":
        shift = tuple(0 if near is not None else value for near, value in zip(window, shift))
    prefix = draw(st.sampled_from([0, 3, 9]))
    modes = ["self", "causal", "kv_only"] + ([] if causal[0] else ["bidir"])
    sinks = draw(st.integers(0, 2)) if any(window) or max(dilation) > 1 else 0
    spec = AttentionSpec(
        grid=grid,
        window=window,
        granularity=granularity,
        dilation=dilation,
        shift=shift,
        edge=edge,
        causal=causal,
        causal_group=draw(st.integers(1, 3)) if causal[0] else 1,
        prefix=prefix,
        prefix_mode=draw(st.sampled_from(modes)),
        sink_frames=sinks,
    )
    if causal[0] and draw(st.booleans()):
        offset = draw(st.integers(0, 3))
        spec = replace(spec, q_frame_offset=offset, kv_frames=grid[0] + offset + draw(st.integers(0, 1)))
    return spec


tilings = st.one_of(
    st.builds(lambda block: Tiling(block=block), st.integers(1, 16)),
    st.builds(
        lambda tile, spare: Tiling(block=tile[0] * tile[1] * tile[2] + spare, tile=tile),
        st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)),
        st.integers(0, 3),
    ),
)


def is_exact(spec: AttentionSpec, queries: Tiling, keys: Tiling) -> bool:
    """Whether `block_map` promises the smallest lists."""
    return (
        queries.tile is not None
        and keys.tile is not None
        and spec.dilation == (1, 1, 1)
        and spec.sink_frames == 0
        and not any(causal and window for causal, window in zip(spec.causal, spec.window))
    )


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(specs(), tilings, tilings)
def test_block_maps_miss_no_visible_pair_and_call_nothing_full_that_is_not(
    spec: AttentionSpec, queries: Tiling, keys: Tiling
) -> None:
    mask = spec.dense_mask()
    rows = queries.tokens(spec.grid, prefix=spec.query_prefix)
    columns = keys.tokens(spec.kv_grid, prefix=spec.prefix)
    seen = block_map(spec, queries, keys)
    assert seen.shape == (len(rows), len(columns))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            visible = mask[row[row >= 0]][:, column[column >= 0]]
            whole = int((column >= 0).sum()) == keys.capacity
            if visible.any():
                assert seen[i, j] != NONE
            if seen[i, j] == FULL:
                assert visible.all() and whole
            if is_exact(spec, queries, keys):
                exact = FULL if visible.all() and whole else PARTIAL if visible.any() else NONE
                assert seen[i, j] == exact


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(specs(), tilings, tilings)
def test_lists_and_their_transposes_hold_the_same_pairs_as_the_map(
    spec: AttentionSpec, queries: Tiling, keys: Tiling
) -> None:
    seen = block_map(spec, queries, keys)
    lists = block_lists(spec, queries, keys, CPU)
    for rows, expected in ((lists.by_query, seen), (lists.by_key, seen.T)):
        again = torch.zeros_like(expected)
        for level, start, members in (
            (FULL, rows.full_start, rows.full),
            (PARTIAL, rows.partial_start, rows.partial),
        ):
            assert members.dtype == start.dtype == torch.int32
            for i in range(len(expected)):
                again[i, members[start[i] : start[i + 1]].long()] = level
        assert torch.equal(again, expected)
        lengths = (expected > NONE).sum(dim=1)[rows.order.long()]
        assert torch.equal(lengths, lengths.sort(descending=True).values)
    visited = (lists.num_full + lists.num_partial) * queries.block * keys.block
    assert lists.executed_pairs == visited >= spec.pairs()


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(tilings, st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 7)), st.integers(0, 9))
def test_every_token_has_one_slot_and_the_boxes_hold_their_tokens(tiling: Tiling, grid: tuple, prefix: int) -> None:
    tokens = tiling.tokens(grid, prefix=prefix)
    count = prefix + grid[0] * grid[1] * grid[2]
    assert tokens.shape == (tiling.num_blocks(grid, prefix=prefix), tiling.block)
    assert torch.equal(tokens[tokens >= 0].sort().values, torch.arange(count))
    assert torch.equal(tiling.ragged(grid, prefix=prefix), (tokens >= 0).sum(dim=1) < tiling.capacity)
    text = tiling.prefix_blocks(prefix)
    assert (tokens[:text] < prefix).all()
    first, last = tiling.boxes(grid)
    for block, low, high in zip(tokens[text:], first.T, last.T):
        place = torch.stack(torch.unravel_index(block[block >= 0] - prefix, grid))
        assert (place >= low[:, None]).all() and (place <= high[:, None]).all()
    index = token_index(tiling, grid, prefix, CPU).view(tokens.shape)
    assert torch.equal(index[tokens >= 0], tokens[tokens >= 0]) and (index >= 0).all()


def test_a_sliding_tile_pattern_cut_along_its_tiles_has_no_partial_block() -> None:
    spec = AttentionSpec.sliding_tile((6, 16, 16), (6, 12, 12), tile=(2, 4, 4))
    lists = block_lists(spec, Tiling(block=32, tile=(2, 4, 4)), Tiling(block=16, tile=(1, 4, 4)), CPU)
    assert lists.num_partial == 0
    assert lists.executed_pairs == spec.pairs()


def test_tiles_of_120_tokens_in_blocks_of_128_cut_wan_without_ragged_blocks() -> None:
    tiling = Tiling(block=128, tile=(3, 10, 4))
    assert tiling.num_blocks((21, 30, 52), prefix=0) == 7 * 3 * 13
    assert not tiling.ragged((21, 30, 52), prefix=0).any()


def test_the_lists_of_115200_tokens_take_well_under_a_second() -> None:
    import time

    spec = AttentionSpec.neighborhood((30, 48, 80), (18, 24, 24))
    tiling = Tiling(block=128, tile=(2, 8, 8))
    began = time.process_time()
    lists = block_lists(spec, tiling, tiling, CPU)
    assert time.process_time() - began < 1
    assert 0 < lists.num_full < lists.num_partial


def test_a_tile_larger_than_its_block_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tile \(2, 8, 8\) must hold between 1 and 64 tokens"):
        Tiling(block=64, tile=(2, 8, 8))


@pytest.mark.parametrize(
    ("spec", "tile"),
    [
        (AttentionSpec.full((16, 16, 16)), None),
        (AttentionSpec.frame_causal((21, 30, 52)), None),
        (AttentionSpec.sequence(4096, True), None),
        (AttentionSpec.sliding_tile((30, 48, 80), (18, 24, 24), tile=(6, 8, 8)), (2, 8, 8)),
        (AttentionSpec.sliding_tile((21, 30, 52), (9, 30, 20), tile=(3, 10, 4)), (3, 10, 4)),
    ],
    ids=["full", "frame_causal", "sequence", "hunyuan_tiles", "wan_tiles"],
)
def test_patterns_are_cut_into_tiles_only_where_that_saves_work(spec: AttentionSpec, tile: tuple | None) -> None:
    queries, keys = choose_tilings(spec, 128, 128)
    if tile is None:
        assert queries == keys == Tiling(block=128)
        return
    # other tiles of as many tokens may divide the groups as well; what matters is that nothing needs a mask
    lists = block_lists(spec, queries, keys, CPU)
    wanted = block_lists(spec, Tiling(block=128, tile=tile), Tiling(block=128, tile=tile), CPU)
    assert lists.num_partial == wanted.num_partial == 0
    assert lists.executed_pairs <= wanted.executed_pairs


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(specs(), st.sampled_from([(16, 16), (32, 16), (8, 32)]))
def test_the_chosen_cut_fits_its_blocks_and_is_cheaper_than_runs_where_it_is_not_runs(
    spec: AttentionSpec, blocks: tuple[int, int]
) -> None:
    cut = choose_tilings(spec, *blocks)
    assert [tiling.block for tiling in cut] == list(blocks)
    if cut[0].tile is None or spec.sink_frames or spec.prefix:
        return  # prefix and sinks are left out of the comparison

    def cost(tilings: tuple[Tiling, Tiling]) -> float:
        seen = block_map(spec, *tilings)
        return float((seen == FULL).sum() + 1.5 * (seen == PARTIAL).sum())

    assert cost(cut) <= cost((Tiling(block=blocks[0]), Tiling(block=blocks[1])))
