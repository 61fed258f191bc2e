"""`qkv_norm_rope`: from one projection to the queries, keys and values of attention, in few passes on a CPU."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable

from vidgen.kernels.ops.dispatch import takes_triton
from vidgen.kernels.ops.qk_norm_rope import norm_rope


def qkv_norm_rope(
    qkv: Tensor,
    *,
    weight_q: Tensor,
    weight_k: Tensor,
    cosines: Tensor,
    sines: Tensor,
    heads: int,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    """`b n 3hd` -> queries, keys and values `b h n d`, queries and keys after `norm_rope`.

    The weights are `d` long, cosines and sines `n d/2`. On a CPU autograd's way through heads, norm, halves and their
    gradients is most of the work; this one writes results and gradients where they belong (`eval/ops.py`: 1.8 times as
    fast forward and backward). No gradient for the angles.
    """
    if qkv.is_cuda or takes_triton(qkv) or torch.compiler.is_compiling():
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=heads)
        angles = {"cosines": cosines, "sines": sines, "eps": eps}
        return norm_rope(q, weight_q, **angles), norm_rope(k, weight_k, **angles), v
    if not (torch.is_grad_enabled() and (qkv.requires_grad or weight_q.requires_grad or weight_k.requires_grad)):
        return _forward(qkv, weight_q, weight_k, cosines, sines, heads, eps)[:3]
    return _Heads.apply(qkv, weight_q, weight_k, cosines, sines, heads, eps)  # type: ignore[no-any-return]


def _forward(
    qkv: Tensor, weight_q: Tensor, weight_k: Tensor, cosines: Tensor, sines: Tensor, heads: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values, and the inverse root mean squares of the first two, `2 b h n 1`."""
    parts = _parts(qkv, heads)
    cosines, sines = cosines.to(qkv.dtype), sines.to(qkv.dtype)
    exact = torch.promote_types(parts.dtype, torch.float32)
    roots = torch.linalg.vector_norm(parts[:2], dim=-1, keepdim=True, dtype=exact)
    inverse = (roots.square() / parts.shape[-1] + eps).rsqrt().to(parts.dtype)
    turned = []
    for x, weight, over in zip(parts[:2], (weight_q, weight_k), inverse, strict=True):
        first, second = weight.to(x.dtype).chunk(2)
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        _turn(x, out, cosines * first, -sines * second, sines * first, cosines * second)
        turned.append(out.mul_(over))
    return turned[0], turned[1], parts[2], inverse


class _Heads(torch.autograd.Function):
    """y = R(w ∘ x / r) with r the root mean square of a head x, R its rotation."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        weight_q: Tensor,
        weight_k: Tensor,
        cosines: Tensor,
        sines: Tensor,
        heads: int,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, inverse = _forward(qkv, weight_q, weight_k, cosines, sines, heads, eps)
        ctx.save_for_backward(qkv, weight_q, weight_k, cosines, sines, inverse)
        return q, k, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor) -> tuple[Tensor | None, ...]:
        qkv, weight_q, weight_k, cosines, sines, inverse = ctx.saved_tensors
        grad_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
        parts, grads = _parts(qkv, grad_q.shape[1]), _parts(grad_qkv, grad_q.shape[1])
        channels = parts.shape[-1]
        cosines, sines = cosines.to(qkv.dtype), sines.to(qkv.dtype)
        grads[2].copy_(grad_v)
        back = torch.empty(grad_q.shape, dtype=qkv.dtype, device=qkv.device)
        of_weights = []
        for number, (grad, weight) in enumerate(((grad_q, weight_q), (grad_k, weight_k))):
            x, over, weight = parts[number], inverse[number], weight.to(qkv.dtype)
            _turn(grad, back, cosines, sines, -sines, cosines)  # Rᵀ
            along = back * x
            of_weights.append((over.reshape(1, -1) @ along.view(-1, channels))[0])
            shrink = (along @ weight.unsqueeze(-1)).mul_(over**3)
            torch.addcmul(back.mul_(weight).mul_(over), x, shrink, value=-1 / channels, out=grads[number])
        return grad_qkv, of_weights[0].to(weight_q.dtype), of_weights[1].to(weight_k.dtype), None, None, None, None


def _parts(qkv: Tensor, heads: int) -> Tensor:
    """`b n 3hd` as `3 b h n d`, a view."""
    return qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)


def _turn(x: Tensor, out: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> None:
    """`out` = [a·x₁ + b·x₂, c·x₁ + d·x₂] of the halves x₁ and x₂ of each head; a to d are `n d/2`."""
    if x.dtype == torch.float32:
        first, second = x.chunk(2, dim=-1)
        upper, lower = out.chunk(2, dim=-1)
        torch.mul(first, a, out=upper).addcmul_(second, b)
        torch.mul(second, d, out=lower).addcmul_(first, c)
    else:  # halves of a head are short for the vector unit in bf16
        torch.mul(x, torch.cat([a, d], dim=-1), out=out)
        out.addcmul_(x.roll(x.shape[-1] // 2, dims=-1), torch.cat([b, c], dim=-1))
