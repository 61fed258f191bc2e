"""Properties of the boxes behind attention on a CPU: every cut shows each query its keys once, nothing is left over."""

import hypothesis.strategies as st
import pytest
import torch
from attention_patterns import PATTERNS, make_inputs, output_and_gradients, relative_error
from hypothesis import given, settings
from test_blocks import specs

from vidgen.kernels import AttentionSpec, attention3d, slabs
from vidgen.kernels.backends import halo
from vidgen.kernels.boxes import BoxPlan, _cut, _lengths, plan_boxes


@st.composite
def cut_specs(draw: st.DrawFn) -> tuple[AttentionSpec, BoxPlan]:
    """A pattern and any of its cuts, not only the cheapest."""
    spec = draw(specs().filter(lambda spec: isinstance(plan_boxes(spec), BoxPlan)))
    cuts = [_cut(spec, axis, draw(st.sampled_from(_lengths(spec, axis)))) for axis in range(3)]
    return spec, BoxPlan(*cuts)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cut_specs())
def test_any_cut_shows_every_query_exactly_the_keys_of_the_pattern(case: tuple[AttentionSpec, BoxPlan]) -> None:
    spec, plan = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slabs, "plan_boxes", lambda _: plan)
        calls = slabs.slabs_of.__wrapped__(spec, torch.float32)
    seen = torch.zeros(spec.num_queries, spec.num_keys, dtype=torch.long)
    query_numbers, key_numbers = torch.arange(spec.num_queries), torch.arange(spec.num_keys)
    for slab in calls:
        queries, keys = query_numbers[slab.queries].view(slab.boxes, -1), key_numbers[slab.keys].view(slab.boxes, -1)
        visible = torch.ones(slab.boxes, queries.shape[1], keys.shape[1], dtype=torch.long)
        if slab.mask is not None:
            visible *= slab.mask[:, 0] == 0
        if slab.repeated is not None:
            visible.flatten(0, 1)[slab.repeated] = 0
        for box in range(slab.boxes):
            where = queries[box][:, None].expand_as(visible[box]), keys[box][None, :].expand_as(visible[box])
            seen.index_put_(where, visible[box], accumulate=True)
    assert torch.equal(seen, spec.dense_mask().long())


@settings(max_examples=30, deadline=None, derandomize=True)
@given(cut_specs())
def test_any_cut_gives_the_same_output_and_gradients(case: tuple[AttentionSpec, BoxPlan]) -> None:
    spec, plan = case
    inputs = make_inputs(spec)
    expected = output_and_gradients(spec, inputs, "reference")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slabs, "plan_boxes", lambda _: plan)
        slabs.slabs_of.cache_clear()
        results = output_and_gradients(spec, inputs, "halo")
    slabs.slabs_of.cache_clear()
    assert all(relative_error(*pair) <= 2e-5 for pair in zip(results, expected))


@pytest.mark.parametrize("name", PATTERNS)
def test_every_element_of_output_and_gradients_is_written(name: str) -> None:
    spec = PATTERNS[name][0]((5, 3, 7), 3)
    if name == "sinks_over_all_frames":
        pytest.skip("sink frames with windows in the frame are no product of stretches")
    inputs = make_inputs(spec)
    expected = output_and_gradients(spec, inputs, "halo")
    torch.use_deterministic_algorithms(True)  # fills every new tensor with NaN
    try:
        poisoned = output_and_gradients(spec, inputs, "halo")
    finally:
        torch.use_deterministic_algorithms(False)
    for result, plain in zip(poisoned, expected):
        torch.testing.assert_close(result, plain, rtol=0, atol=0)


def test_heads_a_few_at_a_time_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = AttentionSpec.neighborhood((4, 8, 9), (3, 3, 3), prefix=2)
    inputs = make_inputs(spec, heads=6, kv_heads=3)
    expected = output_and_gradients(spec, inputs, "halo")
    monkeypatch.setattr(halo, "CHUNK_BYTES", 1)
    for result, together in zip(output_and_gradients(spec, inputs, "halo"), expected):
        torch.testing.assert_close(result, together, rtol=0, atol=0)


def test_the_backward_pass_keeps_no_copies_of_keys_and_values() -> None:
    spec = AttentionSpec.neighborhood((4, 12, 12), (3, 5, 5))
    q, k, v, _ = make_inputs(spec)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        attention3d(q, k, v, spec, backend="halo")
    assert sum(kept) <= 4 * q.numel() + q[..., 0].numel()


def test_memory_order_of_the_inputs_and_of_the_gradient_does_not_matter() -> None:
    spec = AttentionSpec.neighborhood((4, 6, 6), (3, 3, 3))
    q, k, v, gradient = make_inputs(spec)
    expected = output_and_gradients(spec, (q, k, v, gradient), "halo")
    turned = [tensor.detach().transpose(2, 3).contiguous().transpose(2, 3) for tensor in (q, k, v, gradient)]
    strided = (*(tensor.requires_grad_() for tensor in turned[:3]), turned[3])
    for result, plain in zip(output_and_gradients(spec, strided, "halo"), expected):
        torch.testing.assert_close(result, plain)
    (ones,) = torch.autograd.grad(attention3d(q, k, v, spec, backend="halo").sum(), v)  # an expanded gradient
    (same,) = torch.autograd.grad(attention3d(q, k, v, spec, backend="reference").sum(), v)
    torch.testing.assert_close(ones, same)


def test_a_window_that_is_a_product_of_whole_tiles_needs_no_mask_and_its_halo_is_the_window() -> None:
    spec = AttentionSpec.sliding_tile((8, 12, 16), (6, 12, 12), tile=(2, 4, 4))
    cut = BoxPlan(_cut(spec, 0, 2), _cut(spec, 1, 4), _cut(spec, 2, 4))
    assert cut.exact
    assert cut.halo_area() == 12 * 12 and {stretch.key_count for stretch in cut.time.stretches} == {6}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slabs, "plan_boxes", lambda _: cut)
        assert all(slab.mask is None for slab in slabs.slabs_of.__wrapped__(spec, torch.float32))


def test_frames_that_see_whole_frames_are_not_copied() -> None:
    for spec in (
        AttentionSpec.frame_causal((6, 4, 4), prefix=3),
        AttentionSpec.neighborhood((6, 4, 4), (3, None, None)),
    ):
        assert all(isinstance(slab.keys, slice) for slab in slabs.slabs_of(spec, torch.float32))


def test_sinks_in_front_of_windows_within_the_frame_are_refused_with_the_reason() -> None:
    spec = AttentionSpec(grid=(4, 4, 4), window=((1, 0), (1, 1), None), sink_frames=1)
    q, k, v, _ = make_inputs(spec)
    with pytest.raises(ValueError, match="sink frames are seen whole"):
        attention3d(q, k, v, spec, backend="halo")
