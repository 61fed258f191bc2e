"""Properties of the call `attention3d`: layouts, scale, log-sum-exp, decoding, compiling, choosing, bad input."""

from collections.abc import Callable

import pytest
import torch
from attention_patterns import PATTERNS, make_inputs
from torch import Tensor
from torch._dynamo.backends.debugging import aot_eager
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention.flex_attention import flex_attention

from vidgen.kernels import AttentionSpec, attention3d, explain
from vidgen.kernels.backends import BACKENDS, flex, reference
from vidgen.kernels.choice import choose, cpu_cost
from vidgen.kernels.flat_spec import numbers_of
from vidgen.kernels.masks import CACHED_MASKS, _stored_dense_mask


def described(spec: AttentionSpec, device: str, *, heads: int = 4, head_dim: int = 64) -> list[Tensor]:
    """q, k and v that say they are on a device, and take no memory."""
    tensors = []
    for tokens in (spec.num_queries, spec.num_keys, spec.num_keys):
        shape = torch.empty(1, heads, tokens, head_dim, device="meta", dtype=torch.bfloat16)
        tensors.append(FakeTensor(FakeTensorMode(), shape, torch.device(device)))
    return tensors


def test_the_two_layouts_give_the_same_output_transposed() -> None:
    spec = AttentionSpec.frame_causal((3, 5, 4), prefix=3)
    q, k, v, _ = make_inputs(spec)
    swapped = [tensor.transpose(1, 2) for tensor in (q, k, v)]
    output = attention3d(*swapped, spec, layout="bnhd")
    torch.testing.assert_close(output.transpose(1, 2), attention3d(q, k, v, spec), rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["reference", "halo"])
def test_log_sum_exp_merges_attention_over_two_halves_of_the_keys(backend: str) -> None:
    whole_spec = AttentionSpec(grid=(1, 3, 4), kv_frames=2)
    q, k, v, _ = make_inputs(whole_spec)
    q, k, v = q.detach(), k.detach(), v.detach()
    whole, lse = attention3d(q, k, v, whole_spec, backend=backend, return_lse=True)
    halves = [
        attention3d(q, k[:, :, half], v[:, :, half], AttentionSpec.full((1, 3, 4)), backend=backend, return_lse=True)
        for half in (slice(0, 12), slice(12, 24))
    ]
    weights = [(half_lse - lse).exp()[..., None] for _, half_lse in halves]
    torch.testing.assert_close(sum(w * output for w, (output, _) in zip(weights, halves)), whole)
    torch.testing.assert_close(sum(weights), torch.ones_like(lse)[..., None])


@pytest.mark.parametrize("name", PATTERNS)
def test_log_sum_exp_is_that_of_the_visible_scores_and_follows_gradients_where_they_are_wanted(name: str) -> None:
    spec = PATTERNS[name][0]((3, 5, 4), 3)
    q, k, v, _ = make_inputs(spec)
    scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~spec.dense_mask(), float("-inf"))
    expected = scores.logsumexp(dim=-1)
    with torch.no_grad():
        _, lse = attention3d(q, k, v, spec, return_lse=True)
    torch.testing.assert_close(lse, expected)
    _, lse = attention3d(q, k, v, spec, return_lse=True)
    (gradient,) = torch.autograd.grad(lse.sum(), q)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), q)[0])


def test_scale_multiplies_the_scores() -> None:
    spec = AttentionSpec.full((1, 2, 3))
    q, k, v, _ = make_inputs(spec)
    torch.testing.assert_close(attention3d(q, k, v, spec, scale=0.5), attention3d(q * 0.5, k, v, spec, scale=1.0))


@pytest.mark.parametrize("backend", ["reference", "sdpa_dense", "halo", "auto"])
@pytest.mark.parametrize("scale", [-0.5, 0.0])
def test_a_scale_of_zero_or_below_is_served_with_its_gradients(scale: float, backend: str) -> None:
    spec = AttentionSpec.frame_causal((3, 2, 2))
    q, k, v, gradient = make_inputs(spec)
    output = attention3d(q, k, v, spec, scale=scale, backend=backend)
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~spec.dense_mask(), float("-inf"))
    expected = scores.softmax(dim=-1) @ v
    torch.testing.assert_close(output, expected)
    for ours, theirs in zip(
        torch.autograd.grad(output, (q, k, v), gradient), torch.autograd.grad(expected, (q, k, v), gradient)
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), float("-inf")])
def test_a_scale_that_is_not_finite_is_refused(scale: float) -> None:
    spec = AttentionSpec.full((1, 2, 3))
    q, k, v, _ = make_inputs(spec)
    with pytest.raises(ValueError, match=rf"scale must be a finite number, got {scale}; leave it out for .* = 0.3536"):
        attention3d(q, k, v, spec, scale=scale)


def test_queries_that_see_nothing_give_zero_minus_infinity_and_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No spec has such queries; the rule is for masks that are more than a spec."""
    spec = AttentionSpec.frame_causal((3, 2, 2))
    q, k, v, gradient = make_inputs(spec)
    seeing, seeing_lse = attention3d(q, k, v, spec, backend="reference", return_lse=True)
    blind = torch.zeros(spec.num_queries, dtype=torch.bool)
    blind[[0, 5]] = True
    mask = spec.dense_mask() & ~blind[:, None]
    monkeypatch.setattr(reference, "dense_mask", lambda spec, device: mask)
    output, lse = attention3d(q, k, v, spec, backend="reference", return_lse=True)
    assert (output[:, :, blind] == 0).all() and (lse[:, :, blind] == -torch.inf).all()
    torch.testing.assert_close(output[:, :, ~blind], seeing[:, :, ~blind])
    torch.testing.assert_close(lse[:, :, ~blind], seeing_lse[:, :, ~blind])
    gradients = torch.autograd.grad([output, lse], (q, k, v), [gradient, torch.ones_like(lse)])
    shown = [gradient.masked_fill(blind[:, None], 0.0), (~blind).float().expand_as(lse)]
    for ours, theirs in zip(gradients, torch.autograd.grad([seeing, seeing_lse], (q, k, v), shown)):
        torch.testing.assert_close(ours, theirs)


def test_autocast_takes_queries_and_keys_in_another_dtype_than_values() -> None:
    spec = AttentionSpec.factorised_spatial((2, 3, 4))
    q, k, v, _ = make_inputs(spec)
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
    q, k, v, _ = make_inputs(spec)
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


def test_the_mask_cache_stays_bounded_and_serves_training_after_inference_mode() -> None:
    for n in range(2, 2 * CACHED_MASKS):
        spec = AttentionSpec.frame_causal((n, 2, 1))
        q, k, v, gradient = make_inputs(spec)
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
    q, k, v, gradient = make_inputs(spec)
    # the graph is what matters here; "aot_eager" traces forward and backward without compiling C++
    compiled = torch.compile(lambda *tensors: attention3d(*tensors, spec), backend="aot_eager", fullgraph=True)
    output = compiled(q, k, v)
    torch.testing.assert_close(output, attention3d(q, k, v, spec))
    output.backward(gradient)
    assert q.grad is not None and q.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["windows", "products"])
def test_auto_takes_the_same_backend_under_compile(dtype: torch.dtype) -> None:
    """`halo` and `matmul` are loops in Python: the one is an operator under compile, the other has one round there."""
    torch._dynamo.reset()
    windows = dtype == torch.float32
    spec = AttentionSpec.neighborhood((16, 16, 16), (5, 5, 5)) if windows else AttentionSpec.sequence(12, True)
    q, k, v, gradient = make_inputs(spec, dtype=dtype, heads=1, kv_heads=1)
    assert choose(q, k, v, spec, return_lse=False) == ("halo" if windows else "matmul")
    graphs = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        graphs.append(graph.code)
        return aot_eager(graph, inputs)

    compiled = torch.compile(lambda *tensors: attention3d(*tensors, spec), backend=keep, fullgraph=True)
    outputs = [attend(q, k, v) for attend in (compiled, lambda *tensors: attention3d(*tensors, spec))]
    assert len(graphs) == 1 and ("vidgen.halo_attention" in graphs[0]) == windows
    gradients = [torch.autograd.grad(output, (q, k, v), gradient) for output in outputs]
    tolerance = {"rtol": 0.0, "atol": 0.0} if windows else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(*outputs, **tolerance)
    torch.testing.assert_close(*gradients, **tolerance)


def test_the_operator_of_windows_is_registered_rightly() -> None:
    spec = AttentionSpec.neighborhood((3, 5, 4), (3, 3, 3), prefix=3)
    q, k, v, _ = make_inputs(spec, kv_heads=1)
    torch.library.opcheck(torch.ops.vidgen.halo_attention.default, (q, k, v, numbers_of(spec), 0.3))


def test_compiled_windows_of_open_sizes_and_their_log_sum_exp_equal_the_reference() -> None:
    torch._dynamo.reset()

    def forward(q: Tensor, backend: str) -> tuple[Tensor, Tensor]:
        spec = AttentionSpec.neighborhood((q.shape[2] // 16, 4, 4), (3, 3, 3))
        return attention3d(q, q, q, spec, backend=backend, return_lse=True)

    compiled = torch.compile(forward, backend="eager", fullgraph=True, dynamic=True)
    for frames in (4, 5):
        q = torch.randn(1, 2, 16 * frames, 8, generator=torch.Generator().manual_seed(frames))
        torch.testing.assert_close(compiled(q, "halo"), forward(q, "reference"))


@pytest.fixture
def flex_graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """The graphs that compiled FlexAttention is given from now on; they are run as they are."""
    torch._dynamo.reset()
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(flex_attention, dynamic=False, backend=count)
    monkeypatch.setattr(flex, "_compiled", lambda: compiled)
    return graphs


def test_flex_attention_stays_compiled_however_many_shapes_there_are(
    flex_graphs: list[torch.fx.GraphModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many compilations Dynamo would run it eagerly, and FlexAttention hold all scores."""
    tensors = [torch.randn(1, 1, tokens, 16) for tokens in range(2, 6)]
    with torch._dynamo.config.patch(recompile_limit=2):
        for tensor in [*tensors, *tensors]:
            flex.compiled_flex_attention(tensor, tensor, tensor)
    assert len(flex_graphs) == len(tensors)
    monkeypatch.setattr(flex, "MOST_COMPILATIONS", len(tensors))
    with pytest.raises(FailOnRecompileLimitHit):
        flex.compiled_flex_attention(*3 * [torch.randn(1, 1, 50, 16)])


@pytest.mark.slow
def test_flex_attention_stays_compiled_however_many_patterns_there_are(flex_graphs: list[torch.fx.GraphModule]) -> None:
    more = range(2, 3 + torch._dynamo.config.recompile_limit)
    for frames in more:
        spec = AttentionSpec.frame_causal((frames, 2, 2))
        q, k, v, _ = (tensor.detach() for tensor in make_inputs(spec, head_size=16))
        output, _ = flex.attend(q, k, v, spec, scale=0.25, return_lse=False)
        torch.testing.assert_close(output, attention3d(q, k, v, spec))
    assert len(flex_graphs) == len(more)


def test_a_spec_built_inside_a_compiled_forward_follows_the_shape() -> None:
    torch._dynamo.reset()

    def forward(q: Tensor) -> Tensor:
        return attention3d(q, q, q, AttentionSpec.frame_causal((q.shape[2] // 2, 2, 1)))

    compiled = torch.compile(forward, backend="eager", fullgraph=True, dynamic=False)
    for frames in (2, 3):
        q = torch.randn(1, 2, 2 * frames, 8, generator=torch.Generator().manual_seed(frames))
        torch.testing.assert_close(compiled(q), forward(q))


# ------------------------------------------------------------------------------------------------------ the choice


def test_explain_names_the_backend_every_reason_and_the_cost_of_a_gpu_that_is_not_there() -> None:
    spec = AttentionSpec.neighborhood((30, 48, 80), (17, 25, 25), prefix=0)
    text = explain(spec, *described(spec, "cuda", heads=24, head_dim=128))
    assert "115200 queries" in text
    assert "backend triton" in text
    assert "windows (8, 8) along time overlap" in text
    assert "flex: could serve, comes later" in text
    assert all(f"  {name}: " in text for name in BACKENDS)
    assert spec.density() == pytest.approx(17 * 25 * 25 / 115200)


def test_a_kernel_that_is_compiled_for_each_pattern_is_not_taken_for_few_keys() -> None:
    spec = AttentionSpec.frame_causal((4, 8, 8))
    text = explain(spec, *described(spec, "cuda"))
    assert "backend sdpa_dense" in text and "256 keys are fewer than 1024" in text
    text = explain(spec, *described(spec, "cuda"), return_lse=True)  # the dense mask returns none
    assert "backend sdpa_dense" not in text and "backend reference" not in text


def test_explain_says_what_is_taken_under_autocast() -> None:
    spec = AttentionSpec.full((4, 8, 8))
    q, k, v = (torch.randn(1, 2, 256, 32) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        text = explain(spec, q, k.bfloat16(), v.bfloat16())
        assert attention3d(q, k.bfloat16(), v.bfloat16(), spec).dtype == torch.bfloat16
    assert text.splitlines()[1:] == explain(spec, q.bfloat16(), k.bfloat16(), v.bfloat16()).splitlines()[1:]


@pytest.mark.parametrize("backend", ["halo", "reference"])
def test_the_log_sum_exp_is_float32_whatever_the_inputs_are(backend: str) -> None:
    spec = AttentionSpec.neighborhood((2, 8, 8), (1, 3, 3))
    q, k, v, _ = (tensor.detach().double() for tensor in make_inputs(spec))
    output, lse = attention3d(q, k, v, spec, backend=backend, return_lse=True)
    assert output.dtype == torch.float64 and lse.dtype == torch.float32


@pytest.mark.parametrize(
    ("spec", "backend"),
    [
        (AttentionSpec.full((16, 16, 16)), "sdpa_reshape"),
        (AttentionSpec.swin3d((16, 16, 16), (4, 8, 8), shifted=True), "sdpa_reshape"),
        (AttentionSpec.neighborhood((16, 16, 16), (5, 5, 5)), "halo"),
        (AttentionSpec.neighborhood((2, 4, 4), (1, 3, 3)), "sdpa_dense"),
        (AttentionSpec.frame_causal((16, 16, 16)), "halo"),
        (AttentionSpec.frame_causal((4, 4, 4)), "sdpa_dense"),
    ],
)
def test_on_a_cpu_windows_are_cut_into_boxes_where_that_saves_work(spec: AttentionSpec, backend: str) -> None:
    assert choose(*described(spec, "cpu"), spec, return_lse=False) == backend
    if backend in ("halo", "sdpa_dense"):
        assert (cpu_cost("halo", spec) < cpu_cost("sdpa_dense", spec)) == (backend == "halo")


@pytest.mark.parametrize(
    "build",
    [
        lambda grid: AttentionSpec.neighborhood(grid, (5, 5, 5)),
        lambda grid: AttentionSpec.dilated_neighborhood(grid, (3, 5, 5), dilation=(1, 2, 2)),
        lambda grid: AttentionSpec.sliding_tile(grid, (4, 12, 12), tile=(4, 4, 4)),
        lambda grid: AttentionSpec.neighborhood(grid, (5, 5, 5), prefix=77),
    ],
)
def test_the_estimated_cost_of_windows_grows_with_the_tokens_and_no_faster(build) -> None:
    few, many = (cpu_cost("halo", build(grid)) for grid in ((16, 16, 16), (64, 16, 16)))
    assert many / few <= 4**1.1


# ------------------------------------------------------------------------------------------------------- bad input


def test_inputs_that_do_not_fit_are_refused_with_the_argument_named() -> None:
    spec = AttentionSpec.full((2, 3, 4), prefix=2)
    q, k, v, _ = make_inputs(spec)
    for arguments, keywords, message in [
        ((q[:, :, 1:], k, v), {}, r"q has 25 tokens but the spec has 26 queries \(2 prefix \+ grid 2x3x4\)"),
        ((q, k[:, :, 1:], v), {}, "k has 25 tokens but the spec has 26 keys"),
        ((q, k, v[:1]), {}, "v has batch 1, q has 2"),
        ((q, k[:, :1], v), {}, "equally many heads, a divisor of q's 2; got 1 and 2, use 1"),
        ((q[..., :4], k, v), {}, "q and k need equal head sizes, got 4 and 8"),
        ((q[0], k, v), {}, "4 dimensions"),
        ((q, k.to("meta"), v), {}, "k is on meta, q on cpu"),
        ((q, k, v), {"layout": "nbhd"}, 'layout must be "bhnd" or "bnhd"'),
        ((q[:, :, :14], k, v), {}, "14 tokens .* a grid of 1x3x4 would hold them"),
        ((q.int(), k.int(), v.int()), {}, "torch.int32; use float32, bfloat16, float16 or float64"),
        ((q, k.half(), v), {}, "k is torch.float16, q is torch.float32"),
        (tuple(x.to(torch.float8_e4m3fn) for x in (q, k, v)), {}, "torch.float8_e4m3fn; use float32, bfloat16"),
        ((q, k, v[..., :4]), {"backend": "halo"}, "halo cannot serve this call: values need the head size of the keys"),
        ((q, k, v), {"backend": "magic"}, "unknown attention backend 'magic'; known are auto, reference"),
        ((q, k, v), {"backend": "flex"}, "flex cannot serve this call: FlexAttention has no backward on cpu"),
        ((q, k, v), {"backend": "sdpa_dense", "return_lse": True}, "does not return the log-sum-exp"),
    ]:
        with pytest.raises(ValueError, match=message):
            attention3d(*arguments, spec, **keywords)
