"""Properties of `AttentionSpec` and `attention3d`: one rule, many masks, every backend equal to the reference."""

import copy
import itertools
import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from torch import Tensor

from vidgen.kernels import AttentionSpec, attention3d, explain
from vidgen.kernels.backends import BACKENDS
from vidgen.kernels.masks import CACHED_MASKS, _stored_dense_mask
from vidgen.kernels.windows import separate_windows

GRIDS = [(3, 5, 4), (1, 1, 1), (5, 3, 7)]
Place = tuple[int, int, int]


# ------------------------------------------------------------------- the patterns again, written as loops over places
# Each entry: how to build the spec, and an independent statement of which grid place sees which.


def _clamped_window(query: int, key: int, size: int, window: int) -> bool:
    start = min(max(query - window // 2, 0), size - window)
    return key in range(start, start + window)


def _window_number(place: int, size: int, window: int, shifted: bool) -> int:
    borders = list(range(window // 2 if shifted and window < size else window, size, window))
    return sum(place >= border for border in borders)


def _tiles_near(query: int, key: int, tile: int, reach: int) -> bool:
    return abs(query // tile - key // tile) <= reach


def _dilated_window(query: int, key: int, size: int, window: int, dilation: int) -> bool:
    row = [place for place in range(size) if place % dilation == query % dilation]
    at = row.index(query)
    start = min(max(at - window // 2, 0), len(row) - window)
    return key in row[start : start + window]


def _odd_up_to(size: int) -> int:
    return 3 if size >= 3 else 1


PATTERNS: dict[str, tuple[Callable[[Place, int], AttentionSpec], Callable[[Place, Place, Place], bool]]] = {
    "full": (lambda g, p: AttentionSpec.full(g, p), lambda q, k, g: True),
    "factorised_spatial": (lambda g, p: AttentionSpec.factorised_spatial(g, prefix=p), lambda q, k, g: q[0] == k[0]),
    "factorised_temporal": (
        lambda g, p: AttentionSpec.factorised_temporal(g, prefix=p),
        lambda q, k, g: q[1:] == k[1:],
    ),
    "factorised_temporal_causal": (
        lambda g, p: AttentionSpec.factorised_temporal(g, causal=True, prefix=p),
        lambda q, k, g: q[1:] == k[1:] and k[0] <= q[0],
    ),
    "swin3d": (
        lambda g, p: AttentionSpec.swin3d(g, (2, 2, 3), prefix=p),
        lambda q, k, g: all(a // w == b // w for a, b, w in zip(q, k, (2, 2, 3))),
    ),
    "swin3d_shifted_ragged": (
        lambda g, p: AttentionSpec.swin3d(g, (2, 3, 4), shifted=True, prefix=p),
        lambda q, k, g: all(
            _window_number(a, n, w, True) == _window_number(b, n, w, True) for a, b, w, n in zip(q, k, (2, 3, 4), g)
        ),
    ),
    "neighborhood": (
        lambda g, p: AttentionSpec.neighborhood(g, tuple(map(_odd_up_to, g)), prefix=p),
        lambda q, k, g: all(_clamped_window(a, b, n, _odd_up_to(n)) for a, b, n in zip(q, k, g)),
    ),
    "neighborhood_causal_time": (
        lambda g, p: AttentionSpec.neighborhood(
            g, (2, None, 4), causal=(True, False, False), edge="shrink", prefix=p, prefix_mode="self"
        ),
        lambda q, k, g: q[0] - 1 <= k[0] <= q[0] and q[2] - 2 <= k[2] <= q[2] + 1,
    ),
    "dilated_neighborhood": (
        lambda g, p: AttentionSpec.dilated_neighborhood(
            g, (1, 1, 2 if g[2] >= 4 else 1), dilation=(1, 1, 2 if g[2] >= 4 else 1), prefix=p
        ),
        lambda q, k, g: q[:2] == k[:2] and (_dilated_window(q[2], k[2], g[2], 2, 2) if g[2] >= 4 else q[2] == k[2]),
    ),
    "dilated_whole_axis": (
        lambda g, p: AttentionSpec.dilated_neighborhood(g, (None, 1, None), dilation=(2, 1, 3), prefix=p),
        lambda q, k, g: (q[0] - k[0]) % 2 == 0 and q[1] == k[1] and (q[2] - k[2]) % 3 == 0,
    ),
    "sliding_tile": (
        lambda g, p: AttentionSpec.sliding_tile(g, (2, 6, 6), tile=(2, 2, 2), edge="shrink", prefix=p),
        lambda q, k, g: all(_tiles_near(a, b, 2, r) for a, b, r in zip(q, k, (0, 1, 1))),
    ),
    "frame_causal": (
        lambda g, p: AttentionSpec.frame_causal(g, prefix=p),
        lambda q, k, g: k[0] <= q[0],
    ),
    "frame_causal_groups": (
        lambda g, p: AttentionSpec.frame_causal(g, group=2, prefix=p, prefix_mode="causal"),
        lambda q, k, g: k[0] // 2 <= q[0] // 2,
    ),
    "frame_causal_window": (
        lambda g, p: AttentionSpec.frame_causal_window(g, 1, sink_frames=1, prefix=p, prefix_mode="kv_only"),
        lambda q, k, g: k[0] <= q[0] and (k[0] >= q[0] - 1 or k[0] == 0),
    ),
    "frame_causal_window_groups": (
        lambda g, p: AttentionSpec.frame_causal_window(g, 2, group=2, prefix=p),
        lambda q, k, g: q[0] // 2 - 1 <= k[0] // 2 <= q[0] // 2,
    ),
    "sequence_causal": (
        lambda g, p: AttentionSpec.sequence(g[0] * g[1], True, prefix=p),
        lambda q, k, g: k[0] <= q[0],
    ),
    "sequence": (lambda g, p: AttentionSpec.sequence(g[0] * g[1], prefix=p), lambda q, k, g: True),
    "all_causal_with_causal_prefix": (
        lambda g, p: AttentionSpec(grid=(g[0], 1, 1), causal=(True, False, False), prefix=p, prefix_mode="causal"),
        lambda q, k, g: k[0] <= q[0],
    ),
    "spatial_windows_frame_causal": (
        lambda g, p: AttentionSpec(
            grid=g,
            window=(None, (0, 0), (0, 0)),
            granularity=(1, 2, 3),
            causal=(True, False, False),
            prefix=p,
            prefix_mode="self",
        ),
        lambda q, k, g: k[0] <= q[0] and q[1] // 2 == k[1] // 2 and q[2] // 3 == k[2] // 3,
    ),
    "sinks_over_all_frames": (
        lambda g, p: AttentionSpec(grid=g, window=(None, (0, 0), None), sink_frames=9, prefix=p, prefix_mode="self"),
        lambda q, k, g: True,
    ),
}


def _mask_by_loops(spec: AttentionSpec, sees: Callable[[Place, Place, Place], bool]) -> Tensor:
    places = list(itertools.product(*map(range, spec.grid)))
    mask = torch.zeros(spec.query_prefix + len(places), spec.prefix + len(places), dtype=torch.bool)
    for row in range(mask.shape[0]):
        for column in range(mask.shape[1]):
            i, j = row - spec.query_prefix, column - spec.prefix
            if i < 0:
                reach = {"bidir": mask.shape[1], "self": spec.prefix, "causal": row + 1, "kv_only": 0}
                mask[row, column] = column < reach[spec.prefix_mode]
            else:
                mask[row, column] = j < 0 or sees(places[i], places[j], spec.grid)
    return mask


def _specs() -> list:
    return [
        pytest.param(name, grid, prefix, id=f"{name}-{'x'.join(map(str, grid))}-prefix{prefix}")
        for name in PATTERNS
        for grid in GRIDS
        for prefix in (0, 3)
    ]


def _inputs(
    spec: AttentionSpec, *, dtype: torch.dtype = torch.float32, heads: int = 2, kv_heads: int = 2
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v and a gradient for the output, all `b h n d` with b = 2, d = 8."""
    generator = torch.Generator().manual_seed(spec.num_queries)
    sizes = [(heads, spec.num_queries), (kv_heads, spec.num_keys), (kv_heads, spec.num_keys), (heads, spec.num_queries)]
    tensors = [torch.randn(2, h, n, 8, generator=generator).to(dtype) for h, n in sizes]
    return tensors[0].requires_grad_(), tensors[1].requires_grad_(), tensors[2].requires_grad_(), tensors[3]


def _relative_error(ours: Tensor, reference: Tensor) -> float:
    """RMS of the difference over RMS of the reference; scale-free."""
    difference = (ours.double() - reference.double()).square().mean().sqrt()
    # a gradient that is zero in exact arithmetic (one visible key) leaves only rounding to compare with
    return float(difference.detach() / reference.detach().double().square().mean().sqrt().clamp(min=1e-2))


def _output_and_gradients(spec: AttentionSpec, inputs: tuple[Tensor, ...], backend: str) -> list[Tensor]:
    q, k, v, gradient = inputs
    output = attention3d(q, k, v, spec, backend=backend)
    return [output, *torch.autograd.grad(output, (q, k, v), gradient)]


# ------------------------------------------------------------------------------------------------------- the masks


@pytest.mark.parametrize(("name", "grid", "prefix"), _specs())
def test_dense_mask_equals_loops_over_places(name: str, grid: Place, prefix: int) -> None:
    build, sees = PATTERNS[name]
    spec = build(grid, prefix)
    expected = _mask_by_loops(spec, sees)
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


def test_flex_attention_block_mask_holds_the_same_pairs() -> None:
    from torch.nn.attention.flex_attention import create_mask

    spec = AttentionSpec.frame_causal_window((3, 5, 4), 1, sink_frames=1, prefix=3)
    mask = create_mask(spec.mask_mod(), None, None, spec.num_queries, spec.num_keys, device="cpu")
    assert torch.equal(mask[0, 0], spec.dense_mask())


# ---------------------------------------------------------------------------------------------------- the backends


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("name", "grid", "prefix"), _specs())
def test_every_backend_equals_the_reference_forward_and_backward(
    name: str, grid: Place, prefix: int, dtype: torch.dtype
) -> None:
    spec = PATTERNS[name][0](grid, prefix)
    inputs = _inputs(spec, dtype=dtype)
    expected = _output_and_gradients(spec, inputs, "reference")
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 8e-3}[dtype]
    served = []
    for backend in ("sdpa_dense", "sdpa_reshape", "auto"):
        if backend != "auto" and BACKENDS[backend].unsupported(*inputs[:3], spec, return_lse=False):
            continue
        served.append(backend)
        results = _output_and_gradients(spec, inputs, backend)
        for i, (result, reference) in enumerate(zip(results, expected, strict=True)):
            assert result.dtype == dtype
            assert result.isfinite().all()
            assert _relative_error(result, reference) <= tolerance * (1 if i == 0 else 2), (backend, i)
    assert {"sdpa_dense", "auto"} <= set(served)


SEPARATE = [
    "full",
    "factorised_spatial",
    "factorised_temporal",
    "factorised_temporal_causal",
    "swin3d",
    "swin3d_shifted_ragged",
    "all_causal_with_causal_prefix",
    "spatial_windows_frame_causal",
    "sinks_over_all_frames",
]


@pytest.mark.parametrize("name", SEPARATE)
def test_separate_windows_are_reshaped_and_need_no_mask_over_all_tokens(name: str) -> None:
    spec = PATTERNS[name][0]((5, 3, 7), 3)
    q, k, v, _ = _inputs(spec)
    assert BACKENDS["sdpa_reshape"].unsupported(q, k, v, spec, return_lse=False) is None
    assert "backend sdpa_reshape" in explain(spec, q, k, v)


def test_shifted_windows_at_ragged_borders_are_short_and_cover_the_grid_once() -> None:
    spec = AttentionSpec.swin3d((5, 3, 7), (2, 3, 4), shifted=True)
    batches = separate_windows(spec)
    assert not isinstance(batches, str)
    covered = sum(
        batch.count[0] * batch.size[0] * batch.count[1] * batch.size[1] * batch.count[2] * batch.size[2]
        for batch in batches
    )
    assert covered == spec.num_queries
    assert {batch.size for batch in batches} == {(1, 3, 2), (1, 3, 4), (1, 3, 1), (2, 3, 2), (2, 3, 4), (2, 3, 1)}


@pytest.mark.parametrize("backend", ["reference", "sdpa_dense", "sdpa_reshape"])
def test_grouped_queries_equal_repeated_keys_and_values(backend: str) -> None:
    spec = AttentionSpec.swin3d((3, 5, 4), (2, 2, 3), prefix=3)
    q, k, v, _ = _inputs(spec, heads=6, kv_heads=2)
    repeated = [tensor.repeat_interleave(3, dim=1) for tensor in (k, v)]
    torch.testing.assert_close(
        attention3d(q, k, v, spec, backend=backend), attention3d(q, *repeated, spec, backend=backend)
    )


def test_the_two_layouts_give_the_same_output_transposed() -> None:
    spec = AttentionSpec.frame_causal((3, 5, 4), prefix=3)
    q, k, v, _ = _inputs(spec)
    swapped = [tensor.transpose(1, 2) for tensor in (q, k, v)]
    output = attention3d(*swapped, spec, layout="bnhd")
    torch.testing.assert_close(output.transpose(1, 2), attention3d(q, k, v, spec), rtol=0, atol=0)


def test_log_sum_exp_merges_attention_over_two_halves_of_the_keys() -> None:
    whole_spec = AttentionSpec(grid=(1, 3, 4), kv_frames=2)
    q, k, v, _ = _inputs(whole_spec)
    whole, lse = attention3d(q, k, v, whole_spec, return_lse=True)
    halves = [
        attention3d(q, k[:, :, half], v[:, :, half], AttentionSpec.full((1, 3, 4)), return_lse=True)
        for half in (slice(0, 12), slice(12, 24))
    ]
    weights = [(half_lse - lse).exp()[..., None] for _, half_lse in halves]
    torch.testing.assert_close(sum(w * output for w, (output, _) in zip(weights, halves)), whole)
    torch.testing.assert_close(sum(weights), torch.ones_like(lse)[..., None])


def test_scale_multiplies_the_scores() -> None:
    spec = AttentionSpec.full((1, 2, 3))
    q, k, v, _ = _inputs(spec)
    torch.testing.assert_close(attention3d(q, k, v, spec, scale=0.5), attention3d(q * 0.5, k, v, spec, scale=1.0))


def test_autocast_takes_queries_and_keys_in_another_dtype_than_values() -> None:
    spec = AttentionSpec.factorised_spatial((2, 3, 4))
    q, k, v, _ = _inputs(spec)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention3d(q, k, v.bfloat16(), spec).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="cast them to one dtype"):
        attention3d(q, k, v.bfloat16(), spec)


# ------------------------------------------------------------------------------------------- decoding with a cache


@pytest.mark.parametrize(
    "spec",
    [
        AttentionSpec.frame_causal((5, 3, 2)),
        AttentionSpec.frame_causal((5, 3, 2), prefix=3),
        AttentionSpec.frame_causal_window((5, 3, 2), 1, sink_frames=1, prefix=3, prefix_mode="causal"),
        AttentionSpec.factorised_temporal((5, 3, 2), causal=True, prefix=2),
        AttentionSpec.sequence(7, True),
        AttentionSpec.sequence(7, True, prefix=3),
        AttentionSpec.neighborhood((5, 3, 2), (2, 3, 1), causal=(True, False, False)),
    ],
    ids=lambda spec: "-".join(map(str, spec.grid)) + f"-{spec.prefix_mode}{spec.prefix}-{spec.window[0]}",
)
@pytest.mark.parametrize(("offset", "frames"), [(0, 2), (2, 1), (3, 2)])
def test_decoding_frames_from_a_cache_gives_the_rows_of_the_full_result(
    spec: AttentionSpec, offset: int, frames: int
) -> None:
    q, k, v, _ = _inputs(spec)
    full = attention3d(q, k, v, spec, backend="reference")
    step = spec.decode(frames, offset=offset)
    area = spec.grid[1] * spec.grid[2]
    rows = slice(spec.query_prefix + offset * area, spec.query_prefix + (offset + frames) * area)
    seen = slice(0, spec.prefix + (offset + frames) * area)
    for backend in ("reference", "sdpa_dense", "auto"):
        output = attention3d(q[:, :, rows], k[:, :, seen], v[:, :, seen], step, backend=backend)
        torch.testing.assert_close(output, full[:, :, rows])
    assert step.pairs() == int(step.dense_mask().sum())


def test_decoding_one_frame_or_one_token_needs_no_mask() -> None:
    assert AttentionSpec.frame_causal((9, 3, 2), prefix=3).decode(1, offset=4).sees_everything
    assert AttentionSpec.sequence(9, True, prefix=3).decode(1, offset=4).sees_everything
    assert AttentionSpec.frame_causal((8, 3, 2), group=2).decode(2, offset=4).sees_everything


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


def test_the_mask_cache_stays_bounded_and_serves_training_after_inference_mode() -> None:
    for n in range(2, 2 * CACHED_MASKS):
        spec = AttentionSpec.frame_causal((n, 2, 1))
        q, k, v, gradient = _inputs(spec)
        with torch.inference_mode():
            attention3d(q, k, v, spec)
        attention3d(q, k, v, spec).backward(gradient)
    assert _stored_dense_mask.cache_info().currsize <= CACHED_MASKS


@pytest.mark.parametrize(
    "name",
    [
        "sequence_causal",
        *(pytest.param(name, marks=pytest.mark.slow) for name in PATTERNS if name != "sequence_causal"),
    ],
)
def test_attention_compiles_to_one_graph(name: str) -> None:
    torch._dynamo.reset()
    spec = PATTERNS[name][0]((3, 2, 2), 2)
    q, k, v, gradient = _inputs(spec)
    # the graph is what matters here; "aot_eager" traces forward and backward without compiling C++
    compiled = torch.compile(lambda *tensors: attention3d(*tensors, spec), backend="aot_eager", fullgraph=True)
    output = compiled(q, k, v)
    torch.testing.assert_close(output, attention3d(q, k, v, spec))
    output.backward(gradient)
    assert q.grad is not None and q.grad.isfinite().all()


def test_a_spec_built_inside_a_compiled_forward_follows_the_shape() -> None:
    torch._dynamo.reset()

    def forward(q: Tensor) -> Tensor:
        return attention3d(q, q, q, AttentionSpec.frame_causal((q.shape[2] // 2, 2, 1)))

    compiled = torch.compile(forward, backend="eager", fullgraph=True, dynamic=False)
    for frames in (2, 3):
        q = torch.randn(1, 2, 2 * frames, 8, generator=torch.Generator().manual_seed(frames))
        torch.testing.assert_close(compiled(q), forward(q))


def test_explain_works_on_meta_tensors_and_names_backend_reasons_and_cost() -> None:
    spec = AttentionSpec.neighborhood((30, 48, 80), (17, 25, 25), prefix=0)
    q = torch.empty(1, 24, spec.num_queries, 128, device="meta", dtype=torch.bfloat16)
    text = explain(spec, q, q, q)
    assert "115200 queries" in text
    assert "backend sdpa_dense" in text
    assert "windows (8, 8) along time overlap" in text
    assert "FlexAttention has no backward on meta" in text
    assert spec.density() == pytest.approx(17 * 25 * 25 / 115200)


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AttentionSpec(grid=(1, 2)), "grid must be a tuple of three integers"),
        (lambda: AttentionSpec(grid=(1, 0, 2)), "grid along height must be at least 1, got 0"),
        (lambda: AttentionSpec(grid=[1, 1, 2]), "grid must be a tuple"),
        (lambda: AttentionSpec(grid=(2, 2, 2), window=((1, -1), None, None)), "window along time must be None or"),
        (lambda: AttentionSpec(grid=(2, 2, 2), edge="wrap"), "edge must be one of shrink, clamp, got 'wrap'"),
        (lambda: AttentionSpec(grid=(2, 2, 2), prefix=-1), "prefix must be at least 0, got -1"),
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
        (lambda: AttentionSpec.neighborhood((3, 5, 4), (3, 3, 5)), "holds 5 positions, more than the 4"),
        (
            lambda: AttentionSpec.dilated_neighborhood((3, 5, 4), (1, 3, 1), dilation=(1, 2, 1)),
            "holds 3 positions, more than the 2",
        ),
        (
            lambda: AttentionSpec.sliding_tile((4, 4, 4), (4, 2, 2), tile=(2, 2, 2)),
            "window 4 along time must be an odd number of tiles of 2; use ",
        ),
        (
            lambda: AttentionSpec.sliding_tile((5, 4, 4), (2, 2, 2), tile=(2, 2, 2)),
            "grid 5 along time is not a whole number of tiles of 2",
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


def test_inputs_that_do_not_fit_are_refused_with_the_argument_named() -> None:
    spec = AttentionSpec.full((2, 3, 4), prefix=2)
    q, k, v, _ = _inputs(spec)
    for arguments, keywords, message in [
        ((q[:, :, 1:], k, v), {}, r"q has 25 tokens but the spec has 26 queries \(2 prefix \+ grid 2x3x4\)"),
        ((q, k[:, :, 1:], v), {}, "k has 25 tokens but the spec has 26 keys"),
        ((q, k, v[:1]), {}, "v has batch 1, q has 2"),
        ((q, k[:, :1], v), {}, "equally many heads, a divisor of q's 2; got 1 and 2"),
        ((q[..., :4], k, v), {}, "q and k need equal head sizes, got 4 and 8"),
        ((q[0], k, v), {}, "4 dimensions"),
        ((q, k.to("meta"), v), {}, "k is on meta, q on cpu"),
        ((q, k, v), {"layout": "nbhd"}, 'layout must be "bhnd" or "bnhd"'),
        ((q, k, v), {"backend": "triton"}, "unknown attention backend 'triton'; known are auto, reference"),
        ((q, k, v), {"backend": "flex"}, "flex cannot serve this call: FlexAttention has no backward on cpu"),
        ((q, k, v), {"backend": "sdpa_dense", "return_lse": True}, "does not return the log-sum-exp"),
    ]:
        with pytest.raises(ValueError, match=message):
            attention3d(*arguments, spec, **keywords)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (AttentionSpec.neighborhood((3, 5, 4), (3, 3, 3)), "windows (1, 1) along height overlap"),
        (AttentionSpec.frame_causal((3, 5, 4)), "one window that needs a mask"),
        (
            AttentionSpec.dilated_neighborhood((3, 5, 4), (None, None, None), dilation=(1, 1, 2)),
            "dilation 2 along width",
        ),
        (AttentionSpec(grid=(3, 5, 4), window=((0, 0), None, None), sink_frames=1), "sink frames join windows"),
        (
            AttentionSpec(grid=(3, 5, 4), window=((0, 0), None, None), granularity=(2, 1, 1), edge="clamp"),
            "the last window along time is moved inside",
        ),
        (
            AttentionSpec(
                grid=(4, 5, 4), window=((0, 0), None, None), granularity=(2, 1, 1), causal=(True, False, False)
            ),
            "the time axis is causal and cut into windows",
        ),
        (
            AttentionSpec(grid=(1, 5, 4), window=((0, 0), None, None), q_frame_offset=1, kv_frames=2),
            "different sizes along time",
        ),
    ],
)
def test_reshaping_refuses_patterns_that_do_not_fall_apart_and_says_why(spec: AttentionSpec, reason: str) -> None:
    q, k, v, _ = _inputs(spec)
    refusal = BACKENDS["sdpa_reshape"].unsupported(q, k, v, spec, return_lse=False)
    assert refusal is not None and reason in refusal
    expected = attention3d(q, k, v, spec, backend="reference")
    torch.testing.assert_close(attention3d(q, k, v, spec), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("name", PATTERNS)
def test_flex_equals_the_reference_on_cuda(name: str) -> None:
    spec = PATTERNS[name][0]((5, 9, 7), 3)
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 2, spec.num_queries, 32), (1, 2, spec.num_keys, 32), (1, 2, spec.num_keys, 32)]
    q, k, v = (torch.randn(shape, generator=generator).cuda().requires_grad_() for shape in shapes)
    inputs = (q, k, v, torch.randn(shapes[0], generator=generator).cuda())
    expected = _output_and_gradients(spec, inputs, "reference")
    for result, reference in zip(_output_and_gradients(spec, inputs, "flex"), expected, strict=True):
        assert _relative_error(result, reference) <= 5e-3  # TF32 products
