"""Properties of `AttentionSpec`: one rule, many masks, a plain value, and no contradictions."""

import copy
import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from attention_patterns import GRIDS, PATTERNS, Place, all_specs, make_inputs, mask_by_loops
from hypothesis import given, settings
from test_blocks import specs
from torch import Tensor

from vidgen.kernels import AttentionSpec, attention3d
from vidgen.kernels.masks import FLEX_BLOCK, block_mask

# ------------------------------------------------------------------------------------------------------- the masks


@pytest.mark.parametrize(("name", "grid", "prefix"), all_specs())
def test_dense_mask_equals_loops_over_places(name: str, grid: Place, prefix: int) -> None:
    build, sees = PATTERNS[name]
    spec = build(grid, prefix)
    expected = mask_by_loops(spec, sees)
    assert torch.equal(spec.dense_mask(), expected)
    assert spec.pairs() == int(expected.sum())
    assert spec.density() == pytest.approx(expected.float().mean().item())
    assert spec.sees_everything == bool(expected.all())
    assert spec.flops(2, 8) == 4 * 2 * 8 * int(expected.sum())
    if spec.num_queries == spec.num_keys:
        lower_triangle = torch.ones_like(expected).tril()
        assert not spec.is_linear_causal or torch.equal(expected, lower_triangle)


@pytest.mark.parametrize("name", PATTERNS)
def test_the_rule_says_the_same_of_integers_flat_tensors_and_flex_indices(name: str) -> None:
    spec = PATTERNS[name][0]((2, 3, 4), 2)
    mask = spec.dense_mask()
    query, key = torch.arange(spec.num_queries), torch.arange(spec.num_keys)
    zero = torch.zeros((), dtype=torch.long)
    assert torch.equal(spec.mask_mod()(zero, zero, query[:, None], key[None, :]), mask)
    for i in range(0, spec.num_queries, 3):
        for j in range(0, spec.num_keys, 2):
            assert bool(spec.allowed(spec.query_coordinates(i), spec.key_coordinates(j))) == bool(mask[i, j])


@pytest.mark.parametrize("name", PATTERNS)
def test_every_query_sees_at_least_one_key(name: str) -> None:
    for grid in GRIDS:
        assert PATTERNS[name][0](grid, 3).dense_mask().any(dim=1).all()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(specs())
def test_no_pattern_leaves_a_query_without_keys(spec: AttentionSpec) -> None:
    """Hence no backend meets a row that sees nothing."""
    assert spec.dense_mask().any(dim=1).all()


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 11])
@pytest.mark.parametrize("window", [1, 2, 3, 4, 7])
def test_shifted_windows_have_the_variable_sizes_of_seedvr(size: int, window: int) -> None:
    """SeedVR's window i covers [(i - 1/2) window, (i + 1/2) window), both ends rounded down and cut at the border."""
    spec = AttentionSpec.swin3d((1, size, 1), (1, window, 1), shifted=True)
    half = 0.5 if window < size else 0.0
    windows = [(int((i - half) * window), int((i - half + 1) * window)) for i in range(size + 2)]
    numbers = torch.tensor([[start <= row < stop for start, stop in windows].index(True) for row in range(size)])
    assert torch.equal(spec.dense_mask(), numbers[:, None] == numbers[None, :])


def test_swapped_windows_let_queries_of_one_stream_see_the_same_window_of_the_other() -> None:
    spec = AttentionSpec.swapped_window((4, 5, 6), (2, 3, 3), shifted=True)
    space, time = (make_inputs(spec)[0].detach() + shift for shift in (0.0, 1.0))
    expected = attention3d(
        space, time, time, AttentionSpec.swin3d((4, 5, 6), (2, 3, 3), shifted=True), backend="reference"
    )
    torch.testing.assert_close(attention3d(space, time, time, spec), expected)


def test_flex_attention_block_mask_holds_the_same_pairs() -> None:
    from torch.nn.attention.flex_attention import create_mask

    spec = AttentionSpec.frame_causal_window((3, 5, 4), 1, sink_frames=1, prefix=3)
    mask = create_mask(spec.mask_mod(), None, None, spec.num_queries, spec.num_keys, device="cpu")
    assert torch.equal(mask[0, 0], spec.dense_mask())


@pytest.mark.parametrize("prefix", [0, 5, FLEX_BLOCK, FLEX_BLOCK + 7])
@pytest.mark.parametrize("name", PATTERNS)
def test_block_lists_for_flex_attention_hide_no_visible_pair_and_mask_every_block_that_needs_it(
    name: str, prefix: int
) -> None:
    spec = PATTERNS[name][0]((5, 9, 10), prefix)
    blocks = block_mask(spec, torch.device("cpu"))
    visited, full = torch.zeros(
        2, -(-spec.num_queries // FLEX_BLOCK), -(-spec.num_keys // FLEX_BLOCK), dtype=torch.bool
    )
    for target, counts, members in (
        (visited, blocks.kv_num_blocks, blocks.kv_indices),
        (full, blocks.full_kv_num_blocks, blocks.full_kv_indices),
    ):
        for row, count in enumerate(counts[0, 0]):
            target[row, members[0, 0, row, :count].long()] = True
    rows, columns = torch.where(spec.dense_mask())
    assert (visited | full)[rows // FLEX_BLOCK, columns // FLEX_BLOCK].all()
    rows, columns = torch.where(~spec.dense_mask())
    assert not full[rows // FLEX_BLOCK, columns // FLEX_BLOCK].any()


def test_block_lists_for_flex_attention_are_made_without_looking_at_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AttentionSpec, "allowed", None)
    spec = AttentionSpec.frame_causal((6, 48, 80), prefix=77)
    blocks = block_mask(spec, torch.device("cpu"))
    assert spec.density() < 1 - blocks.sparsity() / 100 < spec.density() + 0.02


def test_compiled_code_gets_the_same_block_lists_without_looking_at_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    frames = torch.empty(6)

    def lists(x: Tensor) -> list[Tensor]:
        blocks = block_mask(AttentionSpec.frame_causal((x.shape[0], 48, 80), prefix=77), x.device)
        counts = [blocks.kv_num_blocks, blocks.full_kv_num_blocks, blocks.q_num_blocks, blocks.full_q_num_blocks]
        return [*counts, blocks.kv_indices, blocks.full_kv_indices]

    expected = lists(frames)
    monkeypatch.setattr(AttentionSpec, "allowed", None)
    compiled = torch.compile(lists, backend="aot_eager", fullgraph=True, dynamic=True)
    assert all(map(torch.equal, compiled(frames), expected))


# ----------------------------------------------------------------------------------- windows larger than the grid


@pytest.mark.parametrize(
    ("larger", "whole"),
    [
        (AttentionSpec.frame_causal_window((2, 3, 4), 8, sink_frames=1), AttentionSpec.frame_causal((2, 3, 4))),
        (
            AttentionSpec.neighborhood((2, 3, 4), (9, None, None), causal=(True, False, False), edge="shrink"),
            AttentionSpec.frame_causal((2, 3, 4)),
        ),
        (AttentionSpec.swin3d((2, 3, 4), (4, 8, 8), shifted=True), AttentionSpec.full((2, 3, 4))),
        (AttentionSpec.neighborhood((2, 3, 4), (5, 7, 9), edge="shrink"), AttentionSpec.full((2, 3, 4))),
        (
            AttentionSpec.sliding_tile((2, 3, 4), (6, 12, 12), tile=(2, 4, 4), edge="shrink"),
            AttentionSpec.full((2, 3, 4)),
        ),
    ],
    ids=["frames", "causal_axis", "swin", "neighbourhood", "tiles"],
)
def test_a_window_that_is_cut_at_the_border_may_be_larger_than_a_short_clip_and_sees_all_of_it(
    larger: AttentionSpec, whole: AttentionSpec
) -> None:
    """One preset serves clips of every length and streams whose first frames have few before them."""
    assert torch.equal(larger.dense_mask(), whole.dense_mask())
    assert larger.pairs() == whole.pairs()


# ---------------------------------------------------------------------------------------- a value: hash, store, reuse


def test_specs_are_frozen_values_that_hash_copy_and_survive_json() -> None:
    spec = AttentionSpec.frame_causal_window((3, 5, 4), 1, sink_frames=1, prefix=3)
    same = AttentionSpec.frame_causal_window((3, 5, 4), 1, sink_frames=1, prefix=3)
    assert spec == same and hash(spec) == hash(same) and {spec: 1}[same] == 1
    assert spec != replace(spec, sink_frames=2)
    assert copy.deepcopy(spec) == spec  # the same protocol as pickling
    assert AttentionSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    with pytest.raises(FrozenInstanceError):
        spec.prefix = 4  # type: ignore[misc]
    with pytest.raises(ValueError, match=r"unknown AttentionSpec fields \['windows'\]"):
        AttentionSpec.from_dict({"grid": [1, 1, 1], "windows": 3})


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AttentionSpec(grid=(1, 2)), "grid must be a tuple of three integers"),
        (lambda: AttentionSpec(grid=(1, 0, 2)), "grid along height must be at least 1, got 0"),
        (lambda: AttentionSpec(grid=[1, 1, 2]), "grid must be a tuple"),
        (
            lambda: AttentionSpec(grid=(2, 2, 2), window=((1, -1), None, None)),
            r"not be negative, got \(1, -1\); use \(1, 0\)",
        ),
        (
            lambda: AttentionSpec(grid=(2, 2, 2), window=(3, None, None)),
            "window along time must be None or two integers",
        ),
        (
            lambda: AttentionSpec(grid=(2, 2, 2), window=(None, (0.5, 1), None)),
            "window along height must be None or two",
        ),
        (lambda: AttentionSpec(grid=(2, 2, 2), causal=(1, 0, 0)), "causal must be a tuple of three booleans"),
        (lambda: AttentionSpec.full((2, 2, 2), prefix=2.5), "prefix must be an integer of at least 0, got 2.5"),
        (lambda: AttentionSpec.neighborhood((4, 4, 4), (3, 3)), r"three sizes \(time, height, width\), got \(3, 3\)"),
        (lambda: AttentionSpec.neighborhood((4, 4, 4), (3, 0, 3)), "window along height must be None or an integer"),
        (
            lambda: AttentionSpec.dilated_neighborhood((4, 4, 4), (1, 1, 1), dilation=(8, 1, 1)),
            "dilation 8 along time is larger than the grid, 4; use at most 4",
        ),
        (lambda: AttentionSpec(grid=(2, 2, 2), edge="wrap"), "edge must be one of shrink, clamp, got 'wrap'"),
        (lambda: AttentionSpec(grid=(2, 2, 2), prefix=-1), "prefix must be an integer of at least 0, got -1"),
        (lambda: AttentionSpec(grid=(2, 2, 2), q_frame_offset=3), "give kv_frames=5 or more"),
        (lambda: AttentionSpec(grid=(2, 2, 2), q_frame_offset=3, kv_frames=4), "give kv_frames=5 or more"),
        (lambda: AttentionSpec(grid=(2, 2, 2), causal_group=2), "causal_group 2 needs causal time"),
        (lambda: AttentionSpec(grid=(2, 2, 2), sink_frames=1), "sink_frames 1 does nothing without a window"),
        (lambda: AttentionSpec(grid=(4, 4, 4), granularity=(2, 1, 1)), "granularity 2 along time does nothing"),
        (lambda: AttentionSpec(grid=(4, 4, 4), shift=(0, 1, 0)), "shift 1 along height must be smaller than the gran"),
        (
            lambda: AttentionSpec(grid=(4, 4, 4), window=((1, 1), None, None), causal=(True, False, False)),
            r"reaches into the future; use \(1, 0\)",
        ),
        (
            lambda: AttentionSpec.frame_causal((2, 2, 2), prefix=1, prefix_mode="bidir"),
            'prefix_mode "bidir" with causal time',
        ),
        (
            lambda: AttentionSpec.neighborhood((3, 5, 4), (3, 3, 5)),
            "window along width holds 5 positions, more than the 4 .* use at most 4",
        ),
        (
            lambda: AttentionSpec.dilated_neighborhood((3, 5, 4), (1, 3, 1), dilation=(1, 2, 1)),
            "holds 3 positions, more than the 2",
        ),
        (
            lambda: AttentionSpec.sliding_tile((4, 4, 4), (4, 2, 2), tile=(2, 2, 2)),
            "window 4 along time must be an odd number of tiles of 2; use 2",
        ),
        (
            lambda: AttentionSpec.sliding_tile((16, 4, 4), (16, 2, 2), tile=(4, 2, 2)),
            "window 16 along time must be an odd number of tiles of 4; use 12",
        ),
        (
            lambda: AttentionSpec.sliding_tile((5, 4, 4), (2, 2, 2), tile=(2, 2, 2)),
            "grid 5 along time is not a whole number of tiles of 2",
        ),
        (
            lambda: AttentionSpec.sliding_tile((8, 4, 4), (10, 2, 2), tile=(2, 2, 2)),
            'window 10 along time is larger than the grid, 8; use 6 or edge="shrink"',
        ),
        (lambda: AttentionSpec.swin3d((4, 4, 4), (0, 2, 2)), "window along time must be at least 1"),
        (lambda: AttentionSpec.full((4, 4, 4)).decode(1, offset=1), "decode needs a pattern that is causal in time"),
        (
            lambda: AttentionSpec.frame_causal((4, 4, 4), group=2).decode(1, offset=2),
            "whole causal groups of 2 frames",
        ),
    ],
)
def test_contradictory_specs_are_refused_with_the_way_out(build: Callable[[], AttentionSpec], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
