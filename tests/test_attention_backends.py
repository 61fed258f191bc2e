"""Every backend of `attention3d` equals float64 attention with the dense mask, forward and backward, any pattern."""

from collections.abc import Iterator

import hypothesis.strategies as st
import pytest
import torch
from attention_patterns import (
    PATTERNS,
    Place,
    all_specs,
    make_inputs,
    output_and_gradients,
    relative_error,
)
from hypothesis import HealthCheck, given, settings
from test_blocks import specs
from torch import Tensor

from vidgen.kernels import AttentionSpec, attention3d, explain
from vidgen.kernels.backends import BACKENDS
from vidgen.kernels.windows import separate_windows

CPU_BACKENDS = ("sdpa_dense", "sdpa_reshape", "halo", "matmul")
# RMS of the error over RMS of the reference; gradients get twice as much
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@pytest.fixture(autouse=True, scope="module")
def _unwritten_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


def errors_of_backends(
    spec: AttentionSpec, inputs: tuple[Tensor, ...], backends: tuple[str, ...] = CPU_BACKENDS
) -> dict[str, list[float]]:
    """For each backend that can serve, the errors of the output and the gradients of q, k and v."""
    doubles = tuple(tensor.detach().double().requires_grad_() for tensor in inputs)
    exact = output_and_gradients(spec, doubles, "reference")
    errors = {}
    for backend in backends:
        if BACKENDS[backend].unsupported(*inputs[:3], spec, return_lse=False) is None:
            results = output_and_gradients(spec, inputs, backend)
            assert all(result.dtype == inputs[0].dtype and result.isfinite().all() for result in results), backend
            errors[backend] = [relative_error(result, expected) for result, expected in zip(results, exact)]
    return errors


def assert_accurate(errors: dict[str, list[float]], dtype: torch.dtype) -> None:
    for backend, of_backend in errors.items():
        for i, error in enumerate(of_backend):
            tolerance = TOLERANCE[dtype] * (1 if i == 0 else 2)
            assert error <= tolerance, (backend, i)
            # of a handful of numbers the rounding errors scatter, hence the floor
            assert error <= max(1.5 * errors["sdpa_dense"][i], tolerance / 2), (backend, i)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(("name", "grid", "prefix"), all_specs())
def test_every_backend_equals_float64_attention_forward_and_backward(
    name: str, grid: Place, prefix: int, dtype: torch.dtype
) -> None:
    spec = PATTERNS[name][0](grid, prefix)
    errors = errors_of_backends(spec, make_inputs(spec, dtype=dtype))
    assert_accurate(errors, dtype)
    assert "halo" in errors or name == "sinks_over_all_frames"


@pytest.mark.parametrize(
    ("backend", "spec", "dtype"),
    [
        pytest.param(backend, spec, dtype, id=f"{name}-{str(dtype).removeprefix('torch.')}")
        for name, backend, spec in (
            ("windows", "sdpa_reshape", AttentionSpec.swin3d((5, 12, 14), (2, 5, 5), shifted=True, prefix=7)),
            ("neighbourhood", "halo", AttentionSpec.neighborhood((5, 12, 14), (3, 5, 5), prefix=7)),
            ("frames", "halo", AttentionSpec.frame_causal((5, 12, 14))),
            ("products", "matmul", AttentionSpec.sequence(500, True)),
        )
        for dtype in (TOLERANCE if backend != "matmul" else [torch.bfloat16])
    ],
)
def test_where_rounding_averages_out_no_backend_errs_1_5_times_as_much_as_sdpa(
    backend: str, spec: AttentionSpec, dtype: torch.dtype
) -> None:
    inputs = make_inputs(spec, dtype=dtype, head_size=64)
    errors = errors_of_backends(spec, inputs)
    assert all(ours <= 1.5 * theirs for ours, theirs in zip(errors[backend], errors["sdpa_dense"], strict=True)), errors


random_calls = given(
    spec=specs(), heads=st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]), dtype=st.sampled_from(list(TOLERANCE))
)


def check_random_call(spec: AttentionSpec, heads: tuple[int, int], dtype: torch.dtype) -> None:
    errors = errors_of_backends(spec, make_inputs(spec, dtype=dtype, heads=heads[0], kv_heads=heads[1]))
    assert_accurate(errors, dtype)


@settings(max_examples=40, deadline=None, derandomize=True)
@random_calls
def test_every_backend_equals_float64_attention_on_random_patterns(
    spec: AttentionSpec, heads: tuple[int, int], dtype: torch.dtype
) -> None:
    check_random_call(spec, heads, dtype)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@random_calls
def test_every_backend_equals_float64_attention_on_many_random_patterns(
    spec: AttentionSpec, heads: tuple[int, int], dtype: torch.dtype
) -> None:
    check_random_call(spec, heads, dtype)


@pytest.mark.parametrize("backend", ["reference", "sdpa_dense", "sdpa_reshape", "halo"])
def test_grouped_queries_equal_repeated_keys_and_values(backend: str) -> None:
    spec = AttentionSpec.swin3d((3, 5, 4), (2, 2, 3), prefix=3)
    q, k, v, _ = make_inputs(spec, heads=6, kv_heads=2)
    repeated = [tensor.repeat_interleave(3, dim=1) for tensor in (k, v)]
    torch.testing.assert_close(
        attention3d(q, k, v, spec, backend=backend), attention3d(q, *repeated, spec, backend=backend)
    )


# ---------------------------------------------------------------------------------------------- separate windows


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
    q, k, v, _ = make_inputs(spec)
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
    q, k, v, _ = make_inputs(spec)
    refusal = BACKENDS["sdpa_reshape"].unsupported(q, k, v, spec, return_lse=False)
    assert refusal is not None and reason in refusal
    expected = attention3d(q, k, v, spec, backend="reference")
    torch.testing.assert_close(attention3d(q, k, v, spec), expected)


# ------------------------------------------------------------------------------------------------------- on a GPU


def inputs_on_a_gpu(spec: AttentionSpec, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v and a gradient; two heads of queries share one of keys."""
    made = make_inputs(spec, dtype=dtype, heads=4, kv_heads=2, head_size=32)
    q, k, v, gradient = (tensor.detach().cuda() for tensor in made)
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), gradient


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", PATTERNS)
def test_on_a_gpu_sdpa_equals_float64_attention_forward_and_backward(name: str, dtype: torch.dtype) -> None:
    spec = PATTERNS[name][0]((5, 9, 7), 3)
    errors = errors_of_backends(spec, inputs_on_a_gpu(spec, dtype), ("sdpa_dense", "sdpa_reshape"))
    assert_accurate(errors, dtype)
    assert "sdpa_dense" in errors and ("sdpa_reshape" in errors) == (name in (*SEPARATE, "sequence"))


@pytest.mark.gpu
@pytest.mark.parametrize("name", PATTERNS)
def test_on_a_gpu_flex_attention_equals_float64_attention_and_its_log_sum_exp_forward_and_backward(name: str) -> None:
    spec = PATTERNS[name][0]((5, 9, 7), 3)
    q, k, v, gradient = inputs_on_a_gpu(spec, torch.bfloat16)
    results = []
    for backend in ("flex", "reference"):
        output, lse = attention3d(q, k, v, spec, backend=backend, return_lse=True)
        gradients = torch.autograd.grad([output, lse], (q, k, v), [gradient, torch.ones_like(lse)])
        results.append([output, lse, *gradients])
    for i, (ours, truth) in enumerate(zip(*results, strict=True)):
        assert ours.dtype == truth.dtype and ours.isfinite().all()
        assert relative_error(ours, truth) <= TOLERANCE[torch.bfloat16] * (1 if i < 2 else 2), i
