"""Do the plain torch forms of the ops compute what they say, in every dtype, without large matrices or graph breaks?"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vidgen.kernels import (
    binary_code_distribution,
    binary_entropy_stats,
    code_entropy,
    gated_residual,
    gated_silu,
    masked_attention,
    modulate,
    norm_rope,
    norm_silu_cache,
    qk_norm_rope3d,
    qkv_norm_rope,
    vq_assign,
)
from vidgen.kernels.ops.gated_silu import gated_silu_reference
from vidgen.kernels.ops.linear_attention import gated_linear_attention
from vidgen.kernels.ops.modulation import gated_residual_reference, modulate_reference
from vidgen.kernels.ops.norm_silu import norm_silu_cache_reference
from vidgen.kernels.ops.qk_norm_rope import norm_rope_reference
from vidgen.nn.norms import ChannelRMSNorm, RMSNorm
from vidgen.nn.positions import rotate


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def naive_entropies(z: Tensor, inv_temperature: float, scale: float) -> tuple[Tensor, Tensor]:
    """Softmax over the table of all codes, in float64."""
    bits = z.shape[-1]
    table = (torch.arange(2**bits)[:, None] >> torch.arange(bits - 1, -1, -1)) & 1
    codes = scale * (2.0 * table.double() - 1.0)
    distance = (z.double()[:, None] - codes).square().sum(dim=-1)
    probability = (-inv_temperature * distance).softmax(dim=-1)
    mean = probability.mean(dim=0)
    return torch.special.entr(probability).sum(dim=-1).mean(), torch.special.entr(mean).sum()


# rounding and memory of all of them


def rms_error(value: Tensor, truth: Tensor) -> float:
    """RMS of the difference over RMS of the truth."""
    value = value.detach()
    return float((value.double() - truth.detach()).square().mean().sqrt() / truth.detach().square().mean().sqrt())


def turns_of(x: Tensor) -> tuple[Tensor, Tensor]:
    angle = drawn(x.shape[2], x.shape[3] // 2, seed=9)
    angle = angle.double() if x.dtype == torch.float64 else angle
    return angle.cos(), angle.sin()


# op, the same in float64, shapes of what it takes; those called "weight" stay in float32, as in a layer
IN_16_BITS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], dict[str, tuple[int, ...]]]] = {
    "norm_rope": (
        lambda x, weight: norm_rope(x, weight, cosines=turns_of(x)[0], sines=turns_of(x)[1]),
        lambda x, weight: norm_rope_reference(x, weight, *turns_of(x), None, 1e-6),
        {"x": (2, 3, 60, 32), "weight": (32,)},
    ),
    **{
        f"modulate_{norm}": (
            lambda x, shift, scale, norm=norm: modulate(x, shift, scale, norm=norm),
            lambda x, shift, scale, norm=norm: modulate_reference(x, shift, scale, norm=norm, eps=1e-6),
            {"x": (2, 60, 64), "shift": (2, 3, 64), "scale": (2, 3, 64)},
        )
        for norm in ("layer", "rms")
    },
    "gated_residual": (
        gated_residual,
        gated_residual_reference,
        {"x": (2, 60, 64), "branch": (2, 60, 64), "gate": (2, 3, 64)},
    ),
    "norm_silu_cache": (
        lambda x, weight, before: norm_silu_cache(x, weight, before=before),
        lambda x, weight, before: norm_silu_cache_reference(x, weight, before=before, at_start=0, eps=1e-6),
        {"x": (2, 48, 3, 6, 6), "weight": (48,), "before": (2, 48, 2, 6, 6)},
    ),
    "gated_linear_attention": (
        lambda q, k, v, decay: gated_linear_attention(q, k, v, F.logsigmoid(decay))[0],
        lambda q, k, v, decay: linear_attention_by_pairs(q, k, v, F.logsigmoid(decay)),
        {"q": (1, 2, 70, 16), "k": (1, 2, 70, 16), "v": (1, 2, 70, 16), "decay": (1, 2, 70)},
    ),
}


def linear_attention_by_pairs(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    total = log_decay.cumsum(dim=2)
    between = (total.unsqueeze(3) - total.unsqueeze(2)).tril()
    return ((q @ k.mT) * between.exp()).tril() @ v


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", IN_16_BITS)
def test_in_16_bits_every_plain_form_is_near_float64(name, dtype):
    tolerance = {torch.float16: 1e-3, torch.bfloat16: 4e-3}[dtype]
    op, reference, shapes = IN_16_BITS[name]
    ours = [
        drawn(*shape, seed=seed).to(torch.float32 if argument == "weight" else dtype).requires_grad_()
        for seed, (argument, shape) in enumerate(shapes.items())
    ]
    truth = [tensor.detach().double().requires_grad_() for tensor in ours]
    output, expected = op(*ours), reference(*truth)
    assert output.dtype == dtype
    assert rms_error(output.detach(), expected.detach()) <= tolerance
    incoming = drawn(*output.shape, seed=8).to(dtype)
    gradients = torch.autograd.grad(output, ours, incoming)
    wanted = torch.autograd.grad(expected, truth, incoming.double())
    errors = [rms_error(gradient, value) for gradient, value in zip(gradients, wanted)]
    assert max(errors) <= 2 * tolerance, errors


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_codes_and_entropies_of_16_bits_are_those_of_float64(dtype):
    z, codebook = drawn(200, 8).to(dtype), drawn(50, 8, seed=1).to(dtype)
    assert torch.equal(vq_assign(z, codebook), torch.cdist(z.double(), codebook.double()).argmin(dim=-1))
    for value, truth in zip(binary_entropy_stats(z, 0.7), naive_entropies(z, 0.7, 1.0)):
        assert value.item() == pytest.approx(truth.item(), rel=1e-5)


class LargestTensor(TorchDispatchMode):
    """Notes the bytes of the largest tensor that is made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        sizes = (tensor.numel() * tensor.element_size() for tensor in tree_leaves(made) if isinstance(tensor, Tensor))
        self.bytes = max(self.bytes, *sizes, 0)
        return made


@contextmanager
def memory_counted() -> Iterator[tuple[LargestTensor, list[int]]]:
    """The largest tensor, and the bytes of each that is kept for the backward pass; inside nothing is computed."""
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with FakeTensorMode(), LargestTensor() as largest, hooks:
        yield largest, kept


@pytest.mark.parametrize("cosine", [False, True])
def test_assigning_codes_never_makes_the_table_of_all_distances(cosine):
    vectors, codes = 4096, 65536
    with memory_counted() as (largest, kept):
        ids = vq_assign(torch.randn(vectors, 8), torch.randn(codes, 8), cosine=cosine)
    assert ids.shape == (vectors,) and kept == []
    assert largest.bytes == 4 * 2**22  # the table has 64 times that


def test_entropies_of_18_bits_take_no_table_of_samples_times_codes():
    samples = 65536
    with memory_counted() as (largest, kept):
        z = torch.randn(samples, 18, requires_grad=True)
        per_sample, codebook = binary_entropy_stats(z, 1.0)
        (per_sample - codebook).backward()
    assert largest.bytes <= 4 * 2**22  # one half-code factor; the table has 64 GiB
    assert sum(kept) <= 12 * 4 * samples * 18, sum(kept)  # what has the size of z; the factors are made again


# entropy of binary codes


@pytest.mark.parametrize("bits", [1, 2, 5, 8])
def test_binary_entropies_and_gradients_equal_the_table_of_all_codes(bits):
    z = drawn(40, bits).requires_grad_()
    ours, truth = binary_entropy_stats(z, 0.7, scale=0.9), naive_entropies(z, 0.7, 0.9)
    for value, expected in zip(ours, truth):
        assert value.item() == pytest.approx(expected.item(), abs=1e-6)
        gradient, wanted = (torch.autograd.grad(term, z, retain_graph=True)[0] for term in (value, expected))
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-7)


def test_groups_add_up_the_entropies_of_their_own_bits():
    z = drawn(30, 6)
    whole = sum(binary_entropy_stats(part, 1.0)[1] for part in z.split(2, dim=-1))
    torch.testing.assert_close(binary_entropy_stats(z, 1.0, groups=3)[1], whole)
    for groups in (4, 0, -2):
        with pytest.raises(ValueError, match=rf"groups: {groups} do not divide 6 bits; use a divisor of 6"):
            binary_entropy_stats(z, 1.0, groups=groups)


def test_codebook_entropy_has_no_cap_below_that_of_all_codes():
    value = binary_entropy_stats(torch.zeros(4, 18), 1.0)[1]
    assert value.item() == pytest.approx(18 * math.log(2), rel=1e-6)


def test_codes_rarer_than_one_in_100_000_still_have_gradients():
    z = (0.1 * drawn(64, 18)).requires_grad_()
    (gradient,) = torch.autograd.grad(binary_entropy_stats(z, 0.5)[1], z)
    assert gradient.isfinite().all() and (gradient != 0).all()


def test_entropies_of_certain_bits_are_zero_and_their_gradients_finite():
    z = (1e4 * drawn(16, 10).sign()).requires_grad_()
    per_sample, codebook = binary_entropy_stats(z, 100.0)
    assert per_sample == 0 and codebook.item() == pytest.approx(math.log(16), rel=1e-6)
    assert torch.autograd.grad(per_sample - codebook, z)[0].isfinite().all()


def test_chunks_of_samples_change_nothing(monkeypatch):
    z = drawn(300, 10).requires_grad_()
    whole = torch.autograd.grad(binary_entropy_stats(z, 1.0)[1], z)[0]
    monkeypatch.setattr("vidgen.kernels.ops.binary_entropy.FACTOR_ENTRIES", 32 * 50)
    chunked = torch.autograd.grad(binary_entropy_stats(z, 1.0)[1], z)[0]
    torch.testing.assert_close(chunked, whole, rtol=1e-4, atol=1e-8)


def test_code_distributions_of_two_processes_average_to_that_of_the_batch():
    z = drawn(50, 7)
    halves = [binary_code_distribution(half, 2.0) for half in z.chunk(2)]
    whole = binary_code_distribution(z, 2.0)
    torch.testing.assert_close((halves[0] + halves[1]) / 2, whole)
    torch.testing.assert_close(code_entropy(whole), binary_entropy_stats(z, 2.0)[1])
    assert whole.sum().item() == pytest.approx(1.0, rel=1e-6)


def test_the_first_channel_is_the_highest_bit_of_a_code():
    distribution = binary_code_distribution(torch.tensor([[9.0, -9.0, 9.0]]), 10.0)
    assert distribution[0, 0b101].item() == pytest.approx(1.0)


def test_bf16_and_autocast_compute_entropies_in_float32():
    z = drawn(20, 6).bfloat16()
    expected = binary_entropy_stats(z.float(), 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = binary_entropy_stats(z, 1.0)
    assert [value.dtype for value in ours] == [torch.float32] * 2
    torch.testing.assert_close(ours, expected)


# nearest code


@pytest.mark.parametrize("cosine", [False, True])
def test_the_nearest_code_of_every_vector_is_found_across_blocks_of_codes(monkeypatch, cosine):
    monkeypatch.setattr("vidgen.kernels.ops.nearest_code.CODES", 64)
    monkeypatch.setattr("vidgen.kernels.ops.nearest_code.DISTANCES", 64 * 10)
    x, codebook = drawn(3, 41, 5), drawn(301, 5, seed=1)
    ids = vq_assign(x, codebook, cosine=cosine)
    if cosine:
        expected = (F.normalize(x.double(), dim=-1) @ F.normalize(codebook.double(), dim=-1).T).argmax(dim=-1)
    else:
        expected = torch.cdist(x.double(), codebook.double()).argmin(dim=-1)
    assert ids.shape == (3, 41) and torch.equal(ids, expected)


def test_codes_are_their_own_nearest_and_the_first_of_equals_wins():
    codebook = drawn(100, 8)
    assert torch.equal(vq_assign(codebook, codebook), torch.arange(100))
    assert torch.equal(vq_assign(codebook, torch.cat([codebook, codebook])), torch.arange(100))
    assert torch.equal(vq_assign(codebook.bfloat16(), codebook.bfloat16()), torch.arange(100))


def test_vectors_of_another_width_than_the_codes_and_a_codebook_without_codes_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(10, 5\)"):
        vq_assign(drawn(3, 4), drawn(10, 5))
    with pytest.raises(ValueError, match=r"a codebook of at least one code, got shape \(0, 4\)"):
        vq_assign(drawn(3, 4), drawn(0, 4))


# norm and rotation of queries and keys


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_and_rotation_equal_the_separate_layers_bit_by_bit(dtype):
    q, k = drawn(2, 3, 10, 8).to(dtype), drawn(2, 1, 10, 8, seed=1).to(dtype)
    norm_q, norm_k = RMSNorm(8), RMSNorm(8)
    norm_q.weight.data, norm_k.weight.data = drawn(8, seed=2), drawn(8, seed=3)
    angle = drawn(10, 4, seed=4)
    turns = angle.cos(), angle.sin()
    ours = qk_norm_rope3d(q, k, weight_q=norm_q.weight, weight_k=norm_k.weight, cosines=angle.cos(), sines=angle.sin())
    assert torch.equal(ours[0], rotate(norm_q(q), *turns))
    assert torch.equal(ours[1], rotate(norm_k(k), *turns))


def heads_one_by_one(qkv, weight_q, weight_k, cosines, sines):
    q, k, v = qkv.unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    q, k = (norm_rope_reference(x, weight, cosines, sines, None, 1e-6) for x, weight in ((q, weight_q), (k, weight_k)))
    return q, k, v


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trained", [True, False])
def test_heads_out_of_one_projection_are_those_of_separate_steps(dtype, trained):
    qkv, weights = drawn(2, 7, 3 * 2 * 8).to(dtype).requires_grad_(trained), (drawn(8, seed=1), drawn(8, seed=2))
    angle = drawn(7, 4, seed=3)
    call = {"cosines": angle.cos(), "sines": angle.sin()}
    found = qkv_norm_rope(qkv, weight_q=weights[0], weight_k=weights[1], heads=2, **call)
    exact = heads_one_by_one(qkv.double(), *(x.double() for x in (*weights, *call.values())))
    plain = heads_one_by_one(qkv, *weights, *call.values())
    for ours, theirs, truth in zip(found, plain, exact, strict=True):
        assert ours.shape == (2, 2, 7, 8) and ours.dtype == dtype
        assert rms_error(ours, truth) <= 1.3 * rms_error(theirs, truth) + 1e-7


def test_gradients_of_heads_out_of_one_projection_are_exact():
    qkv, angle = drawn(2, 5, 3 * 2 * 4).double().requires_grad_(), drawn(5, 2, seed=1).double()
    weights = [drawn(4, seed=seed).double().requires_grad_() for seed in (2, 3)]
    weights[0].data[1] = 0.0

    def heads(qkv, weight_q, weight_k):
        angles = {"cosines": angle.cos(), "sines": angle.sin()}
        return qkv_norm_rope(qkv, weight_q=weight_q, weight_k=weight_k, heads=2, **angles)

    assert torch.autograd.gradcheck(heads, (qkv, *weights))


def test_gated_silu_is_its_plain_form_with_its_gradient():
    x = drawn(3, 5, 12)
    assert torch.equal(gated_silu(x), gated_silu_reference(x))
    assert torch.equal(gated_silu(x.requires_grad_()), gated_silu_reference(x))
    assert torch.autograd.gradcheck(gated_silu, (drawn(3, 4).double().requires_grad_(),))


@pytest.mark.parametrize("kind", ["all", "words", "tokens", "bias", "none"])
def test_masked_attention_trains_in_bf16_as_the_fused_call_does(kind):
    tensors = [drawn(2, 3, count, 8, seed=seed) for seed, count in enumerate((20, 6, 6))]
    mask = {
        "all": torch.ones(2, 1, 1, 6, dtype=torch.bool),
        "words": torch.arange(6) < torch.tensor([2, 5]).view(2, 1, 1, 1),
        "tokens": (drawn(2, 1, 20, 6, seed=5) > 0) | (torch.arange(6) == 0),
        "bias": drawn(1, 3, 20, 6, seed=6),
        "none": None,
    }[kind]
    upstream = drawn(2, 3, 20, 8, seed=7)

    def trained(attend, dtype):
        inputs = [x.to(dtype).requires_grad_() for x in tensors]
        bias = mask.to(dtype) if mask is not None and mask.is_floating_point() else mask
        out = attend(*inputs, bias)
        return out, *torch.autograd.grad(out, inputs, upstream.to(dtype))

    truth = trained(F.scaled_dot_product_attention, torch.float64)
    fused = trained(F.scaled_dot_product_attention, torch.bfloat16)
    for found, theirs, exact in zip(trained(masked_attention, torch.bfloat16), fused, truth, strict=True):
        assert found.dtype == torch.bfloat16
        assert rms_error(found, exact) <= 1.3 * rms_error(theirs, exact) + 1e-4
    for found, exact in zip(trained(masked_attention, torch.float32), truth, strict=True):
        assert rms_error(found, exact) < 1e-5


def test_order_moves_tokens_and_pads_with_zeros():
    q, weight, angle = drawn(1, 2, 5, 4), torch.ones(4), drawn(5, 2, seed=1)
    options = {"weight_q": weight, "weight_k": weight, "cosines": angle.cos(), "sines": angle.sin()}
    plain = qk_norm_rope3d(q, q, **options)[0]
    ordered = qk_norm_rope3d(q, q, order=torch.tensor([3, -1, 0, 1, 4, 2, -1]), **options)[0]
    assert torch.equal(ordered[:, :, [2, 3, 5, 0, 4]], plain)
    assert (ordered[:, :, [1, 6]] == 0).all()


def test_angles_of_other_tokens_are_refused():
    q, angle = drawn(1, 2, 5, 4), drawn(6, 2)
    with pytest.raises(ValueError, match=r"cosines and sines of shape \(5, 2\), got \(1, 2, 5, 4\), \(6, 2\)"):
        qk_norm_rope3d(q, q, weight_q=torch.ones(4), weight_k=torch.ones(4), cosines=angle, sines=angle)


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ([0, 1, 2, 2, 3], "each token from 0 to 4 once, but 2 comes 2 times"),
        ([0, 1, 2, 3], "each token from 0 to 4 once, but 4 comes 0 times"),
        ([0, 1, 2, 3, 4, 5], "order names token 5; use 0 to 4, and -1 for padding"),
        ([0, 1, -2, 2, 3, 4], "order names token -2; use 0 to 4"),
        ([0.0, 1.0, 2.0, 3.0, 4.0], r"an order `m` of int32 or int64, got torch.float32 \(5,\)"),
        ([[0, 1, 2, 3, 4]], r"an order `m` of int32 or int64, got torch.int64 \(1, 5\)"),
    ],
)
def test_an_order_that_is_no_permutation_with_padding_is_refused(order, reason):
    x, angle = drawn(1, 2, 5, 4), drawn(5, 2)
    with pytest.raises(ValueError, match=reason):
        norm_rope(x, torch.ones(4), cosines=angle, sines=angle, order=torch.tensor(order))


def test_an_order_is_looked_at_again_after_it_was_changed_and_for_other_tokens():
    order, angle = torch.arange(5), drawn(6, 2)
    norm_rope(drawn(1, 2, 5, 4), torch.ones(4), cosines=angle[:5], sines=angle[:5], order=order)
    with pytest.raises(ValueError, match="5 comes 0 times"):
        norm_rope(drawn(1, 2, 6, 4), torch.ones(4), cosines=angle, sines=angle, order=order)
    order[0] = 1
    with pytest.raises(ValueError, match="0 comes 0 times"):
        norm_rope(drawn(1, 2, 5, 4), torch.ones(4), cosines=angle[:5], sines=angle[:5], order=order)


@pytest.mark.parametrize("shape", [(2, 5, 4), (1, 1, 2, 5, 4)])
def test_heads_that_are_no_heads_and_weights_of_another_width_are_refused(shape):
    angle = drawn(5, 2)
    with pytest.raises(ValueError, match="expected x `b h n d`, got shape"):
        norm_rope(drawn(*shape), torch.ones(4), cosines=angle, sines=angle)
    with pytest.raises(ValueError, match=r"a weight of shape \(4,\), got \(8,\)"):
        norm_rope(drawn(1, 2, 5, 4), torch.ones(8), cosines=angle, sines=angle)


# modulation


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_modulation_of_each_frame_equals_one_of_each_of_its_tokens(norm):
    x, shift, scale = drawn(2, 12, 8), drawn(2, 3, 8, seed=1), drawn(2, 3, 8, seed=2)
    per_token = [value.repeat_interleave(4, dim=1) for value in (shift, scale)]
    assert torch.equal(modulate(x, shift, scale, norm=norm), modulate(x, *per_token, norm=norm))
    assert torch.equal(gated_residual(x, x + 1, shift), gated_residual(x, x + 1, per_token[0]))


def test_modulation_is_norm_then_scale_then_shift():
    x, shift, scale = drawn(2, 6, 8), drawn(2, 1, 8, seed=1), drawn(2, 1, 8, seed=2)
    wanted = F.layer_norm(x, (8,), eps=1e-6) * (1 + scale) + shift
    torch.testing.assert_close(modulate(x, shift, scale), wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gated_residual(x, shift.expand_as(x), scale), x + scale * shift, rtol=1e-6, atol=1e-6)


def test_modulations_that_do_not_divide_the_tokens_are_refused():
    with pytest.raises(ValueError, match="m a divisor of 12 tokens"):
        modulate(drawn(1, 12, 8), drawn(1, 5, 8), drawn(1, 5, 8))
    with pytest.raises(ValueError, match="gate of shape"):
        gated_residual(drawn(2, 12, 8), drawn(2, 12, 8), drawn(1, 1, 8))
    with pytest.raises(ValueError, match=r"expected x `b n d`, got shape \(12, 8\)"):
        modulate(drawn(12, 8), drawn(1, 1, 8), drawn(1, 1, 8))


# norm and activation in front of a causal convolution


def test_the_buffer_holds_the_cache_and_then_the_activated_frames():
    x, before, norm = drawn(2, 6, 3, 4, 4), drawn(2, 6, 2, 4, 4, seed=1), ChannelRMSNorm(6)
    norm.weight.data = drawn(6, seed=2)
    activated = F.silu(norm(x))
    assert torch.equal(norm_silu_cache(x, norm.weight, before=before), torch.cat([before, activated], dim=2))
    started = norm_silu_cache(x, norm.weight, at_start=2)
    assert torch.equal(started, torch.cat([activated[:, :, :1]] * 2 + [activated], dim=2))
    assert torch.equal(norm_silu_cache(x, norm.weight), activated)


@pytest.mark.parametrize(("frames_before", "at_start"), [(2, 0), (None, 2), (None, 0)])
def test_gradients_through_the_buffer_are_exact(frames_before, at_start):
    x, weight = drawn(2, 3, 3, 2, 2).double().requires_grad_(), drawn(3, seed=1).double().requires_grad_()
    before = None if frames_before is None else drawn(2, 3, frames_before, 2, 2, seed=2).double().requires_grad_()
    weight.data[1] = 0.0

    def buffer(x, weight, before):
        return norm_silu_cache(x, weight, before=before, at_start=at_start)

    with torch.no_grad():
        plain = norm_silu_cache_reference(x, weight, before=before, at_start=at_start, eps=1e-6)
        assert torch.equal(norm_silu_cache(x, weight, before=before, at_start=at_start), plain)
    assert torch.equal(buffer(x, weight, before), plain)
    assert torch.autograd.gradcheck(buffer, (x, weight, before))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_buffer_has_the_dtype_of_the_new_frames(dtype):
    x, before = drawn(1, 6, 3, 4, 4).to(dtype), drawn(1, 6, 2, 4, 4, seed=1)
    buffer = norm_silu_cache(x, torch.ones(6), before=before)
    assert buffer.dtype == dtype and torch.equal(buffer[:, :, :2], before.to(dtype))


def test_a_cache_of_another_frame_size_and_padding_of_fewer_than_no_frames_are_refused():
    with pytest.raises(ValueError, match="do not fit in front"):
        norm_silu_cache(drawn(1, 6, 3, 4, 4), torch.ones(6), before=drawn(1, 6, 2, 5, 4))
    with pytest.raises(ValueError, match="at_start counts frames, 0 or more, got -1"):
        norm_silu_cache(drawn(1, 6, 3, 4, 4), torch.ones(6), at_start=-1)


# torch.compile


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ops_compile_without_graph_breaks_and_keep_their_gradients(monkeypatch, dtype):
    monkeypatch.setattr("vidgen.kernels.ops.binary_entropy.FACTOR_ENTRIES", 16 * 10)  # chunks, with checkpoints

    def everything(x: Tensor, weight: Tensor, angle: Tensor) -> Tensor:
        y = modulate(x, x[:, :1], x[:, :1])
        turns = {"cosines": angle.cos(), "sines": angle.sin(), "order": order}
        q, k = qk_norm_rope3d(y[:, None], y[:, None], weight_q=weight, weight_k=weight, **turns)
        y = gated_residual(x, (q + k)[:, 0], x[:, :1])
        video = norm_silu_cache(y.mT.reshape(1, 8, 2, 3, 4), weight, at_start=2)
        per_sample, codebook = binary_entropy_stats(y, 1.0)
        nearest = y[0, vq_assign(y, y[0]).flatten()]
        return video.square().sum() + per_sample - codebook + nearest.sum()

    inputs = [drawn(1, 24, 8).to(dtype).requires_grad_(), drawn(8, seed=1).requires_grad_()]
    angle, order = drawn(24, 4, seed=2), torch.arange(23, -1, -1)
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    ours = torch.autograd.grad(compiled(*inputs, angle), inputs)
    # in 16 bits the plain form adds up the gradients of repeated frames in 16 bits, the eager op in float32
    close = {} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(ours, torch.autograd.grad(everything(*inputs, angle), inputs), **close)
