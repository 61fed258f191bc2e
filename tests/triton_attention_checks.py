"""The Triton attention against the float64 reference; test_triton_interpret.py and test_kernels_gpu.py run this file.

On a GPU if there is one, else in the interpreter of Triton (TRITON_INTERPRET=1), which takes CPU tensors. Both need
their own process: Triton reads its switch when a kernel is defined. The interpreter takes a hundredth of a second for a
pair of blocks, so the default tier meets every clause of the rule once and small; what repeats them is slow.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_blocks import specs
from torch import Tensor

from vidgen.kernels import AttentionSpec, attention3d
from vidgen.kernels.backends import BACKENDS, reference
from vidgen.kernels.blocks import NONE, PARTIAL, block_map, lists_of
from vidgen.kernels.masks import dense_mask
from vidgen.kernels.tiling import Tiling
from vidgen.kernels.triton import launch
from vidgen.kernels.triton.configs import AttentionConfig, config_for
from vidgen.kernels.triton.operators import attention

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
# RMS error over RMS of the float64 reference; gradients may have twice that
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
# the interpreter computes bfloat16 wrongly, and float16 slowly
DTYPES = (
    [torch.float32, torch.bfloat16, torch.float16]
    if ON_GPU
    else [torch.float32, pytest.param(torch.float16, marks=pytest.mark.slow)]
)

SPECS = {
    "full": AttentionSpec.full((2, 4, 6), prefix=3),
    "sequence_causal": AttentionSpec.sequence(45, True, prefix=7),
    "frame_causal": AttentionSpec.frame_causal((3, 4, 5), prefix=17),
    "frame_causal_groups": AttentionSpec.frame_causal((4, 3, 5), group=2, prefix=3, prefix_mode="causal"),
    "frame_causal_window": AttentionSpec.frame_causal_window((5, 3, 4), 1, sink_frames=1, prefix=3),
    "decode": AttentionSpec.frame_causal_window((5, 3, 4), 1, sink_frames=1, prefix=3).decode(2, offset=3),
    "window_clamped": AttentionSpec.neighborhood((3, 5, 4), (1, 3, 3), prefix=3),
    "window_shrunk": AttentionSpec.neighborhood((3, 5, 4), (2, 3, 3), edge="shrink", causal=(False, True, False)),
    "dilated": AttentionSpec.dilated_neighborhood((1, 5, 6), (None, 2, 3), dilation=(1, 2, 2), prefix=3),
    "sliding_tile": AttentionSpec.sliding_tile((2, 8, 8), (2, 12, 12), tile=(2, 4, 4), edge="shrink"),
    "swin_shifted": AttentionSpec.swin3d((3, 5, 7), (2, 3, 4), shifted=True, prefix=3),
    "text_sees_where_rows_are_causal": AttentionSpec(grid=(2, 4, 5), causal=(False, True, True), prefix=3),
}


# The patterns of the default tier: with the sliding tile below they have every clause of the rule.
QUICK = ("frame_causal_groups", "decode", "window_shrunk", "sequence_causal", "dilated")


def named(*quick: str) -> list:
    """Every pattern as a parameter; all but `quick` in the slow tier."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in SPECS]


@pytest.fixture(autouse=True)
def _unwritten_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


def draw(
    spec: AttentionSpec, *, heads: int = 1, key_heads: int = 1, head: int = 32, dtype=torch.float32
) -> list[Tensor]:
    """q, k, v that ask for gradients, and gradients for the output and the log-sum-exp."""
    generator = torch.Generator().manual_seed(spec.num_queries)
    shapes = [
        (1, heads, spec.num_queries, head),
        *[(1, key_heads, spec.num_keys, head)] * 2,
        (1, heads, spec.num_queries, head),
        (1, heads, spec.num_queries),
    ]
    q, k, v, d_output, d_lse = (torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes)
    return [q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), d_output, d_lse.float()]


def error(value: Tensor, truth: Tensor) -> float:
    """RMS of the difference over RMS of the truth; where that is nearly nothing (one visible key), over 0.01."""
    difference = (value.detach().double() - truth.detach().double()).square().mean().sqrt()
    return float(difference / truth.detach().double().square().mean().sqrt().clamp(min=1e-2))


def check(spec: AttentionSpec, tensors: list[Tensor]) -> list[float]:
    """Output, log-sum-exp, dQ, dK and dV against the reference, with gradients from both outputs; the five errors."""
    q, k, v, d_output, d_lse = tensors
    scale = 1.3 * q.shape[-1] ** -0.5
    assert BACKENDS["triton"].unsupported(q, k, v, spec, return_lse=True) is None
    results = []
    for attend in (BACKENDS["triton"].attend, reference.attend):
        output, lse = attend(q, k, v, spec, scale=scale, return_lse=True)
        assert output.dtype == q.dtype and lse is not None and lse.dtype == torch.float32
        results.append([output, lse, *torch.autograd.grad([output, lse], [q, k, v], [d_output, d_lse])])
    errors = [error(ours, truth) for ours, truth in zip(*results, strict=True)]
    assert all(value <= TOLERANCE[q.dtype] * (1 if i < 2 else 2) for i, value in enumerate(errors)), errors
    return errors


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch):
    """Make the kernels use these tilings (and these kernel settings) instead of those that are chosen."""

    def use(*, query: tuple | None, key: tuple | None, descriptors: bool = False) -> None:
        monkeypatch.setattr(
            launch,
            "choose_tilings",
            lambda spec, query_block, key_block: (
                Tiling(block=query_block, tile=smaller(query, query_block)),
                Tiling(block=key_block, tile=smaller(key, key_block)),
            ),
        )
        if descriptors:
            monkeypatch.setattr("vidgen.kernels.triton.operators.config_for", lambda q: with_descriptors(config_for(q)))

    return use


def smaller(tile: tuple | None, block: int) -> tuple | None:
    """The tile, or its half along the rows if the block is too small for it."""
    if tile is None or tile[0] * tile[1] * tile[2] <= block:
        return tile
    return (tile[0], -(-tile[1] // 2), tile[2])


def with_descriptors(config: AttentionConfig) -> AttentionConfig:
    names = ("forward", "backward_keys", "backward_queries")
    return replace(config, **{name: replace(getattr(config, name), descriptors=True) for name in names})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", named(*QUICK))
def test_every_pattern_equals_the_reference_forward_and_backward(name: str, dtype: torch.dtype) -> None:
    check(SPECS[name], draw(SPECS[name], dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("heads", "key_heads", "head"),
    [(2, 1, 96), *(pytest.param(2, 2, head, marks=pytest.mark.slow) for head in (64, 128))],
)
def test_grouped_queries_and_all_head_sizes_equal_the_reference(
    heads: int, key_heads: int, head: int, dtype: torch.dtype
) -> None:
    spec = SPECS["decode"]
    check(spec, draw(spec, heads=heads, key_heads=key_heads, head=head, dtype=dtype))


@pytest.mark.parametrize(
    ("name", "descriptors"),
    [
        ("sliding_tile", True),
        pytest.param("sliding_tile", False, marks=pytest.mark.slow),
        pytest.param("frame_causal", True, marks=pytest.mark.slow),
        pytest.param("frame_causal", False, marks=pytest.mark.slow),
        pytest.param("window_clamped", True, marks=pytest.mark.slow),
        pytest.param("window_clamped", False, marks=pytest.mark.slow),
    ],
)
def test_ragged_and_padded_tiles_equal_the_reference(name: str, descriptors: bool, cut) -> None:
    cut(query=(2, 3, 4), key=(1, 4, 4) if name == "sliding_tile" else (2, 3, 2), descriptors=descriptors)
    check(SPECS[name], draw(SPECS[name]))


def test_raster_runs_through_descriptors_equal_the_reference(cut) -> None:
    cut(query=None, key=None, descriptors=True)
    check(SPECS["decode"], draw(SPECS["decode"], head=96))


def test_in_16_bits_the_error_is_near_that_of_pytorch() -> None:
    spec = SPECS["decode"]
    for dtype in (torch.float16, torch.bfloat16) if ON_GPU else (torch.float16,):
        tensors = draw(spec, dtype=dtype)
        ours = check(spec, tensors)
        q, k, v, d_output, _ = tensors
        results = []
        for backend in ("sdpa_dense", "reference"):
            output = attention3d(q, k, v, spec, backend=backend)
            results.append([output, *torch.autograd.grad(output, [q, k, v], d_output)])
        theirs = [error(value, truth) for value, truth in zip(*results, strict=True)]
        assert all(a <= 1.5 * b for a, b in zip([ours[0], *ours[2:]], theirs, strict=True)), (ours, theirs)


@pytest.mark.slow
def test_calling_hidden_blocks_partial_changes_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_partial(spec: AttentionSpec, queries: Tiling, keys: Tiling, device: torch.device):
        return lists_of(torch.full_like(block_map(spec, queries, keys), PARTIAL), queries, keys, device)

    monkeypatch.setattr(launch, "block_lists", all_partial)
    for name in ("window_clamped", "swin_shifted"):
        check(SPECS[name], draw(SPECS[name]))


def test_queries_that_see_nothing_give_zero_and_minus_infinity_and_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """With lists that leave out the keys of the second half, queries that see only those see nothing."""
    spec = AttentionSpec.swin3d((4, 2, 8), (1, 2, 8))  # four windows of 16 tokens

    def first_half(spec: AttentionSpec, queries: Tiling, keys: Tiling, device: torch.device):
        seen = block_map(spec, queries, keys)
        seen[:, 32 // keys.block :] = NONE
        return lists_of(seen, queries, keys, device)

    monkeypatch.setattr(launch, "block_lists", first_half)
    monkeypatch.setattr(launch, "choose_tilings", lambda spec, *blocks: tuple(Tiling(block=b) for b in (32, 16)))
    monkeypatch.setattr("vidgen.kernels.triton.operators.config_for", lambda q: small_blocks(config_for(q)))
    q, k, v, d_output, _ = draw(spec)
    output, lse = attention(q, k, v, spec, 0.2)
    d_q, d_k, d_v = torch.autograd.grad(output, [q, k, v], d_output)
    mask = dense_mask(spec, DEVICE).clone()
    mask[:, 32:] = False
    assert torch.equal(output[:, :, 32:], torch.zeros_like(output[:, :, 32:]))
    assert (lse[:, :, 32:] == float("-inf")).all() and lse[:, :, :32].isfinite().all()
    assert all(torch.equal(gradient[:, :, 32:], torch.zeros_like(gradient[:, :, 32:])) for gradient in (d_q, d_k, d_v))
    scores = (q.double() @ k.double().transpose(-1, -2) * 0.2).masked_fill(~mask, float("-inf"))
    truth = scores[:, :, :32].softmax(-1) @ v.double()
    assert error(output[:, :, :32], truth) <= 1e-5
    wanted = torch.autograd.grad(truth, [q, k, v], d_output[:, :, :32].double())
    assert all(error(a, b) <= 2e-5 for a, b in zip((d_q, d_k, d_v), wanted, strict=True))


def small_blocks(config: AttentionConfig) -> AttentionConfig:
    """Every kernel with 32 queries and 16 keys a block."""
    kernel = replace(config.forward, queries=32, keys=16, warps=4, stages=1, descriptors=False)
    return AttentionConfig(kernel, kernel, kernel)


@pytest.mark.slow
def test_any_strides_are_read_and_the_output_has_those_of_the_queries() -> None:
    spec = SPECS["window_clamped"]
    fused = torch.randn(2, spec.num_queries, 3, 2, 32, device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(0))
    q, k, v = (fused[:, :, i].transpose(1, 2) for i in range(3))
    output = attention3d(q, k, v, spec, backend="triton")
    assert output.stride() == torch.empty_like(q).stride()
    assert error(output, attention3d(q, k, v, spec, backend="reference")) <= 1e-5
    flipped = [tensor.transpose(-1, -2).contiguous().transpose(-1, -2) for tensor in (q, k, v)]
    assert torch.equal(attention3d(*flipped, spec, backend="triton"), output)


def test_gradients_are_the_same_bits_in_every_run() -> None:
    spec = SPECS["window_shrunk"]
    q, k, v, d_output, _ = draw(spec)
    runs = [torch.autograd.grad(attention3d(q, k, v, spec, backend="triton"), [q, k, v], d_output) for _ in range(2)]
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_the_kernels_refuse_a_scale_that_is_not_positive() -> None:
    q, k, v, *_ = draw(SPECS["full"])
    with pytest.raises(ValueError, match="needs a positive scale, got -1; negate q instead"):
        BACKENDS["triton"].attend(q, k, v, SPECS["full"], scale=-1, return_lse=False)


@pytest.mark.slow
def test_the_operator_passes_opcheck_and_compiles_without_graph_breaks() -> None:
    spec = AttentionSpec.frame_causal((2, 2, 4))
    q, k, v, d_output, _ = draw(spec)
    operator = torch.ops.vidgen.triton_attention.default
    from vidgen.kernels.flat_spec import numbers_of

    torch.library.opcheck(operator, (q, k, v, numbers_of(spec), 0.2))
    compiled = torch.compile(
        lambda *qkv: attention3d(*qkv, spec, backend="triton"), backend="aot_eager", fullgraph=True
    )
    output = compiled(q, k, v)
    assert torch.equal(output, attention3d(q, k, v, spec, backend="triton"))
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(output, [q, k, v], d_output))


tiles = st.one_of(st.none(), st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 4)))


@pytest.mark.slow
# in the interpreter float16 takes more than a minute for thirty patterns
@pytest.mark.parametrize("dtype", DTYPES if ON_GPU else [torch.float32], ids=str)
# on a GPU every pattern is compiled, which takes seconds
@settings(
    max_examples=10 if ON_GPU else 30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(specs(), tiles, tiles, st.booleans(), st.sampled_from([(1, 1), (2, 1), (2, 2)]), st.sampled_from([32, 96]))
def test_sweep_of_random_odd_patterns_equals_the_reference(
    cut,
    dtype: torch.dtype,
    spec: AttentionSpec,
    query: tuple | None,
    key: tuple | None,
    descriptors: bool,
    heads: tuple,
    head: int,
) -> None:
    cut(query=query, key=key, descriptors=descriptors)
    check(spec, draw(spec, heads=heads[0], key_heads=heads[1], head=head, dtype=dtype))
