"""Are the linear mixers one function in all their forms, and is their cost linear in tokens?"""

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from vidgen.eval.flops import count_flops
from vidgen.kernels.ops.linear_attention import (
    _flash_linear_attention,
    bidirectional_linear_attention,
    chunked_linear_attention,
    gated_linear_attention,
    linear_attention_step,
)
from vidgen.nn.linear_mixers import BidirectionalStateSpace, GatedLinearAttention, scan_order


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(tokens: int, *, by_channel: bool, strength: float = 1.0) -> list[Tensor]:
    q, k, v = drawn(2, 3, tokens, 4), drawn(2, 3, tokens, 4, seed=1), drawn(2, 3, tokens, 6, seed=2)
    gate = drawn(2, 3, tokens, 4, seed=3) if by_channel else drawn(2, 3, tokens, seed=3)
    return [q, k, v, strength * torch.nn.functional.logsigmoid(gate)]


def parallel(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    """The whole table of scores, in float64."""
    q, k, v, log_decay = (tensor.double() for tensor in (q, k, v, log_decay))
    log_decay = log_decay if log_decay.ndim == 4 else log_decay.unsqueeze(-1)
    total = log_decay.cumsum(dim=2)
    between = total.unsqueeze(3) - total.unsqueeze(2)
    seen = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril().unsqueeze(-1)
    weights = between.where(seen, -torch.inf).exp()
    return (weights * q.unsqueeze(3) * k.unsqueeze(2)).sum(dim=-1) @ v


@pytest.mark.parametrize("by_channel", [False, True])
@pytest.mark.parametrize("tokens", [1, 16, 77])
def test_chunked_and_recurrent_and_parallel_forms_are_equal(tokens, by_channel):
    tensors = inputs(tokens, by_channel=by_channel)
    expected = parallel(*tensors)
    chunked, final = gated_linear_attention(*tensors)
    torch.testing.assert_close(chunked.double(), expected, rtol=1e-5, atol=1e-5)
    state, steps = torch.zeros(2, 3, 4, 6), []
    for token in range(tokens):
        out, state = linear_attention_step(*(tensor[:, :, token] for tensor in tensors), state=state)
        steps.append(out)
    torch.testing.assert_close(torch.stack(steps, dim=2).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, final, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("by_channel", [False, True])
def test_gradients_of_the_chunked_form_equal_those_of_the_parallel_one(by_channel):
    tensors = [tensor.requires_grad_() for tensor in inputs(70, by_channel=by_channel)]
    incoming = drawn(2, 3, 70, 6, seed=5)
    ours = torch.autograd.grad(gated_linear_attention(*tensors)[0], tensors, incoming)
    wanted = torch.autograd.grad(parallel(*tensors), tensors, incoming.double())
    for gradient, expected in zip(ours, wanted):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("by_channel", [False, True])
def test_a_stream_goes_on_from_its_state(by_channel):
    tensors = inputs(50, by_channel=by_channel)
    whole, final = gated_linear_attention(*tensors)
    first, state = gated_linear_attention(*(tensor[:, :, :21] for tensor in tensors))
    second, state = gated_linear_attention(*(tensor[:, :, 21:] for tensor in tensors), state=state)
    torch.testing.assert_close(torch.cat([first, second], dim=2), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, final, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("by_channel", [False, True])
def test_strong_decays_neither_overflow_nor_lose_the_token_itself(by_channel):
    tensors = [tensor.requires_grad_() for tensor in inputs(40, by_channel=by_channel, strength=500.0)]
    output = gated_linear_attention(*tensors)[0]
    torch.testing.assert_close(output.double(), parallel(*tensors), rtol=1e-5, atol=1e-5)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(output.sum(), tensors))


def test_bf16_gives_bf16_and_a_float32_state():
    tensors = [tensor.bfloat16() for tensor in inputs(40, by_channel=True)]
    output, state = gated_linear_attention(*tensors)
    assert (output.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(output.double(), parallel(*tensors), rtol=1e-2, atol=1e-2)


def test_reversing_the_tokens_reverses_a_bidirectional_scan_of_exchanged_directions():
    q, k, v, forwards = inputs(30, by_channel=False)
    backwards = inputs(30, by_channel=False, strength=0.3)[3]
    whole = bidirectional_linear_attention(q, k, (v, 2 * v), (forwards, backwards))
    q, k, v, forwards, backwards = (tensor.flip(2) for tensor in (q, k, v, forwards, backwards))
    turned = bidirectional_linear_attention(q, k, (2 * v, v), (backwards, forwards))
    torch.testing.assert_close(turned.flip(2), whole)


@pytest.mark.parametrize("by_channel", [False, True])
def test_twice_the_tokens_cost_twice_the_operations(by_channel):
    def flops(tokens: int) -> int:
        with count_flops() as counter:
            chunked_linear_attention(*inputs(tokens, by_channel=by_channel), torch.zeros(2, 3, 4, 6))
        return counter.get_total_flops()

    assert flops(1024) == 2 * flops(512)


def test_heads_decays_and_states_of_other_shapes_are_refused():
    q, k, v, log_decay = inputs(10, by_channel=False)
    with pytest.raises(ValueError, match=r"each channel.*each head"):
        gated_linear_attention(q, k, v, log_decay[:, :1])
    with pytest.raises(ValueError, match=r"k of the shape of q, \(2, 1, 10, 4\), got \(2, 3, 10, 4\)"):
        gated_linear_attention(q[:, :1], k, v, log_decay)
    with pytest.raises(ValueError, match=r"v of shape \(2, 3, 10\) and channels, got \(2, 1, 10, 6\)"):
        gated_linear_attention(q, k, v[:, :1], log_decay)
    with pytest.raises(ValueError, match=r"state of shape \(2, 3, 4, 6\), got \(2, 1, 4, 6\)"):
        gated_linear_attention(q, k, v, log_decay, state=torch.zeros(2, 1, 4, 6))
    with pytest.raises(ValueError, match=r"k of the shape of q, \(2, 1, 4\), got \(2, 3, 4\)"):
        first = (tensor[:, :, 0] for tensor in (q[:, :1], k, v, log_decay))
        linear_attention_step(*first, state=torch.zeros(2, 3, 4, 6))


# modules


def test_the_causal_mixer_streams_and_never_looks_ahead():
    mixer, x = GatedLinearAttention(16, 2), drawn(2, 100, 16)
    whole, _ = mixer(x)
    first, state = mixer(x[:, :35])
    second, _ = mixer(x[:, 35:], state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, rtol=1e-5, atol=1e-6)
    changed = torch.cat([x[:, :70], x[:, 70:] + 1], dim=1)
    assert torch.equal(mixer(changed)[0][:, :70], whole[:, :70])


def test_the_bidirectional_mixer_sees_every_token_and_trains():
    mixer, x = BidirectionalStateSpace(16, 2, state_channels=8), drawn(1, 20, 16).requires_grad_()
    out = mixer(x)
    assert out.shape == x.shape
    for place in (0, 10, 19):
        (gradient,) = torch.autograd.grad(out[0, place].sum(), x, retain_graph=True)
        assert (gradient[0].abs().sum(dim=-1) > 0).all()
    out.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in mixer.parameters())


def test_scans_along_each_axis_visit_every_token_once_and_give_results_back_in_place():
    grid, mixer = (2, 3, 4), BidirectionalStateSpace(8, 2, state_channels=4)
    x = drawn(1, 24, 8)
    orders = [scan_order(grid, layer) for layer in range(4)]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(24))
    assert orders[2][:3].tolist() == [0, 12, 1]  # time fastest, then width
    assert torch.equal(mixer(x, orders[0]), mixer(x))
    torch.testing.assert_close(mixer(x, orders[2])[:, orders[2]], mixer(x[:, orders[2]]))


@pytest.mark.parametrize("by_channel", [False, True])
def test_what_is_handed_to_flash_linear_attention_means_the_same_there(by_channel, monkeypatch):
    """As its documentation has it: `b n h d`, and a state `b h d e`; the library itself is not needed here."""

    def scan(q, k, v, g, *, scale, initial_state, output_final_state):
        assert output_final_state and all(tensor.is_contiguous() for tensor in (q, k, v, g))
        state, steps = initial_state, []
        for token in range(q.shape[1]):
            decay = g[:, token].exp()
            state = (decay.unsqueeze(-1) if g.ndim == 4 else decay[..., None, None]) * state
            state = state + k[:, token].unsqueeze(-1) * v[:, token].unsqueeze(-2)
            steps.append(scale * (q[:, token].unsqueeze(-2) @ state).squeeze(-2))
        return torch.stack(steps, dim=1), state

    for name, function in (("gla", "chunk_gla"), ("simple_gla", "chunk_simple_gla")):
        module = ModuleType(name)
        setattr(module, function, scan)
        monkeypatch.setitem(sys.modules, f"fla.ops.{name}", module)
    for name in ("fla", "fla.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    tensors, state = inputs(20, by_channel=by_channel), drawn(2, 3, 4, 6, seed=4)
    for ours, expected in zip(
        _flash_linear_attention(*tensors, state), gated_linear_attention(*tensors, state=state), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("by_channel", [False, True])
def test_flash_linear_attention_equals_the_torch_form(by_channel):
    pytest.importorskip("fla")
    q, k, v = (drawn(2, 3, 200, 64, seed=seed) for seed in range(3))
    gate = drawn(2, 3, 200, 64, seed=3) if by_channel else drawn(2, 3, 200, seed=3)
    tensors = [tensor.cuda() for tensor in (q, k, v, torch.nn.functional.logsigmoid(gate))]
    state = drawn(2, 3, 64, 64, seed=4).cuda()
    fast, slow = gated_linear_attention(*tensors, state=state), chunked_linear_attention(*tensors, state)
    for ours, expected in zip(fast, slow):
        assert (ours - expected).square().mean().sqrt() <= 5e-3 * expected.square().mean().sqrt()
