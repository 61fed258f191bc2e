"""The Triton kernels of the ops against their torch forms in float64; test_ops_triton.py runs it in its own process.

On a GPU if there is one, else in Triton's interpreter (TRITON_INTERPRET=1), which takes CPU tensors.
"""

import pytest
import torch
from torch import Tensor

from vidgen.kernels.ops.dispatch import takes_triton
from vidgen.kernels.ops.modulation import (
    gated_residual,
    gated_residual_reference,
    modulate,
    modulate_reference,
)
from vidgen.kernels.ops.nearest_code import nearest_code_reference, vq_assign
from vidgen.kernels.ops.norm_silu import norm_silu_cache, norm_silu_cache_reference
from vidgen.kernels.ops.qk_norm_rope import norm_rope_reference, qk_norm_rope3d

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# Memory that a kernel forgets to write is NaN.
torch.use_deterministic_algorithms(True, warn_only=True)
torch.utils.deterministic.fill_uninitialized_memory = True

# RMS error over RMS, and twice that for gradients; bfloat16 too: the kernels compute in float32 whatever they load
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 4e-3}


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def check(op, reference, inputs: list[Tensor], *, tolerance: float) -> None:
    """Outputs and gradients of `op` against those of `reference` in float64."""
    ours = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    truth = [tensor.detach().double().requires_grad_() for tensor in inputs]
    out, expected = op(*ours), reference(*truth)
    assert out.dtype == inputs[0].dtype and out.shape == expected.shape
    assert error(out, expected) <= tolerance
    incoming = drawn(*out.shape, seed=9).to(out.dtype)
    gradients = torch.autograd.grad(out, ours, incoming)
    wanted = torch.autograd.grad(expected, truth, incoming.double())
    for gradient, truth_gradient, tensor in zip(gradients, wanted, inputs):
        assert gradient.dtype == tensor.dtype and gradient.shape == tensor.shape
        assert error(gradient, truth_gradient) <= 2 * tolerance


def error(value: Tensor, truth: Tensor) -> float:
    value, truth = value.detach().double(), truth.detach()
    return float((value - truth).square().mean().sqrt() / truth.square().mean().sqrt())


def test_the_ops_take_the_kernels():
    assert takes_triton(torch.zeros(1, device=DEVICE))


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("channels, tokens, ordered", [(16, 37, False), (12, 21, True)])
def test_norm_and_rotation_equal_their_torch_form(dtype, channels, tokens, ordered):
    joint = drawn(2, tokens, 3 * 2 * channels, seed=0, dtype=dtype)
    q = joint.view(2, tokens, 3, 2, channels)[:, :, 0].transpose(1, 2)  # a strided view, as from a joint projection
    weight = 1 + 0.3 * drawn(channels, seed=1)
    angle = drawn(tokens, channels // 2, seed=2)
    order = None
    if ordered:
        permutation = torch.randperm(tokens, generator=torch.Generator().manual_seed(3))
        order = torch.cat([permutation[:5], torch.tensor([-1, -1]), permutation[5:], torch.tensor([-1])]).to(DEVICE)

    def op(x: Tensor, weight: Tensor) -> Tensor:
        out, same = qk_norm_rope3d(
            x, x[:, :1], weight_q=weight, weight_k=weight, cosines=angle.cos(), sines=angle.sin(), order=order
        )
        assert torch.equal(out[:, :1], same)
        return out

    def reference(x: Tensor, weight: Tensor) -> Tensor:
        return norm_rope_reference(x, weight, angle.double().cos(), angle.double().sin(), order, 1e-6)

    check(op, reference, [q, weight], tolerance=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("groups", [1, 3, 12])
def test_modulation_equals_its_torch_form(dtype, norm, groups):
    x = 0.5 + drawn(2, 12, 40, seed=0, dtype=dtype)
    shift, scale = drawn(2, groups, 2, 40, seed=1, dtype=dtype).unbind(dim=2)
    check(
        lambda x, shift, scale: modulate(x, shift, scale, norm=norm),
        lambda x, shift, scale: modulate_reference(x, shift, scale, norm=norm, eps=1e-6),
        [x, shift, scale],
        tolerance=TOLERANCE[dtype],
    )


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("groups", [1, 3, 12])
def test_gated_residual_equals_its_torch_form(dtype, groups):
    inputs = [drawn(2, 12, 40, seed=seed, dtype=dtype) for seed in (0, 1)]
    inputs.append(drawn(2, groups, 40, seed=2, dtype=dtype))
    check(gated_residual, gated_residual_reference, inputs, tolerance=TOLERANCE[dtype])


def test_a_modulation_of_many_tokens_is_summed_over_all_tiles():
    x, modulation = drawn(1, 900, 300, seed=0), drawn(1, 1, 300, seed=1)
    check(
        lambda x, shift: modulate(x, shift, shift),
        lambda x, shift: modulate_reference(x, shift, shift, norm="layer", eps=1e-6),
        [x, modulation],
        tolerance=1e-6,
    )


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("at_start, cached", [(2, False), (0, False), (0, True)])
def test_norm_and_activation_land_behind_the_cache(dtype, at_start, cached):
    x = drawn(2, 36, 3, 5, 5, seed=0, dtype=dtype)
    weight = 1 + 0.3 * drawn(36, seed=1)
    inputs = [x, weight] + ([drawn(2, 36, 2, 5, 5, seed=2, dtype=dtype)] if cached else [])
    check(
        lambda x, weight, before=None: norm_silu_cache(x, weight, before=before, at_start=at_start),
        lambda x, weight, before=None: norm_silu_cache_reference(x, weight, before=before, at_start=at_start, eps=1e-6),
        inputs,
        tolerance=TOLERANCE[dtype],
    )


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("width", [5, 40])
def test_the_nearest_code_is_found(width, cosine):
    x, codebook = drawn(70, width, seed=0), drawn(300, width, seed=1)
    codes = torch.nn.functional.normalize(codebook, dim=-1) if cosine else codebook
    lengths = codes.new_zeros(300) if cosine else codes.square().sum(dim=-1)
    expected = nearest_code_reference(x.double(), codes.double(), lengths.double())
    assert torch.equal(vq_assign(x, codebook, cosine=cosine), expected)


def test_the_lowest_of_equal_codes_wins():
    codebook = drawn(4, 8, seed=0).repeat(80, 1)
    assert vq_assign(codebook, codebook).max() < 4


def registered_ops() -> dict[str, tuple]:
    """Name of every registered op -> arguments to try it with."""
    norm_rope = (drawn(1, 2, 6, 8, seed=0), drawn(8, seed=1), drawn(6, 4, seed=2), drawn(6, 4, seed=3), None, 1e-6)
    modulation = (drawn(1, 4, 8, seed=0), drawn(1, 2, 8, seed=1), drawn(1, 2, 8, seed=2))
    residual = (drawn(1, 4, 8, seed=0), drawn(1, 4, 8, seed=1), drawn(1, 2, 8, seed=2))
    video = (drawn(1, 4, 2, 3, 3, seed=0), drawn(4, seed=1))
    before = drawn(1, 4, 2, 3, 3, seed=2)
    return {
        "norm_rope": differentiable(norm_rope, 2),
        "norm_rope_backward": (norm_rope[0], *norm_rope),
        "modulate": (*differentiable(modulation, 3), True, 1e-6),
        "modulate_backward": (modulation[0], *modulation, True, 1e-6),
        "gated_residual": differentiable(residual, 3),
        "gated_residual_backward": residual,
        "norm_silu_cache": (*differentiable((*video, before), 3), 0, 1e-6),
        "norm_silu_cache_backward": (drawn(1, 4, 4, 3, 3, seed=3), *video, 2, 1e-6),
        "nearest_code": (drawn(5, 4, seed=0), drawn(6, 4, seed=1), drawn(6, seed=2)),
    }


def differentiable(arguments: tuple, count: int) -> tuple:
    return (*(tensor.clone().requires_grad_() for tensor in arguments[:count]), *arguments[count:])


@pytest.mark.parametrize("name", list(registered_ops()))
def test_registration_passes_opcheck(name):
    torch.library.opcheck(getattr(torch.ops.vidgen, name).default, registered_ops()[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ops_compile_without_a_graph_break(dtype):
    def block(x: Tensor, shift: Tensor, scale: Tensor, weight: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
        y = modulate(x, shift, scale)
        q, k = qk_norm_rope3d(
            y[:, None], y[:, None], weight_q=weight, weight_k=weight, cosines=angle.cos(), sines=angle.sin()
        )
        y = gated_residual(x, (q + k)[:, 0], scale)
        video = norm_silu_cache(y.mT.reshape(1, 8, 2, 1, 3), weight, at_start=1)
        return video.square().sum(), vq_assign(y, y[0])

    inputs = [drawn(1, 6, 8, seed=0), drawn(1, 1, 8, seed=1), drawn(1, 1, 8, seed=2), drawn(8, seed=3)]
    inputs = [*(tensor.to(dtype).requires_grad_() for tensor in inputs[:3]), inputs[3].requires_grad_()]
    angle = drawn(6, 4, seed=4)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    (total, nearest), (expected_total, expected_nearest) = compiled(*inputs, angle), block(*inputs, angle)
    assert torch.equal(nearest, expected_nearest)
    for ours, expected in zip(torch.autograd.grad(total, inputs), torch.autograd.grad(expected_total, inputs)):
        torch.testing.assert_close(ours, expected)
