"""`norm_silu_cache`: channel norm and SiLU written straight into the buffer that a causal convolution reads."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vidgen.kernels.ops.dispatch import takes_triton


def norm_silu_cache(
    x: Tensor, weight: Tensor, *, before: Tensor | None = None, at_start: int = 0, eps: float = 1e-6
) -> Tensor:
    """[cache | SiLU(norm(x))] along time, without a pass of its own for the concatenation.

    `x` is `b c t h w`; the norm divides each position by the root mean square over channels and multiplies by
    `weight`, `c` (`vidgen.nn.norms.ChannelRMSNorm`). In front stand the frames `before`, `b c p h w`, as they are
    (the end of the previous buffer of a stream), or without them the first result repeated `at_start` times, which is
    causal padding. Returns `b c (p + t) h w` in the dtype of x, `at_start` for p at the start. Computed in float32
    at least, in 16 bits too; on a CPU the gradient takes few passes (`eval/ops.py`) and has none of its own.
    ValueError: shapes that do not fit, a negative `at_start`.
    """
    if x.ndim != 5 or weight.shape != x.shape[1:2]:
        raise ValueError(f"expected x `b c t h w` and a weight `c`, got {tuple(x.shape)} and {tuple(weight.shape)}")
    if at_start < 0:
        raise ValueError(f"at_start counts frames, 0 or more, got {at_start}")
    if before is not None and (before.shape[:2] != x.shape[:2] or before.shape[3:] != x.shape[3:]):
        raise ValueError(f"frames before of shape {tuple(before.shape)} do not fit in front of {tuple(x.shape)}")
    if takes_triton(x):
        return _norm_silu_cache(x, weight, before, at_start if before is None else 0, eps)
    if torch.compiler.is_compiling():
        return norm_silu_cache_reference(x, weight, before=before, at_start=at_start, eps=eps)
    differentiated = (x, weight) if before is None else (x, weight, before)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in differentiated):
        return _NormSilu.apply(x, weight, before, at_start, eps)  # type: ignore[no-any-return]
    return _forward(x, weight, before, at_start, eps)[0]


def norm_silu_cache_reference(x: Tensor, weight: Tensor, *, before: Tensor | None, at_start: int, eps: float) -> Tensor:
    return _behind(F.silu(_normed(x, weight, eps)).to(x.dtype), before, at_start)


def channel_rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """Root-mean-square norm over the channels of each position of `b c …` (Zhang & Sennrich 2019)."""
    return _normed(x, weight, eps).to(x.dtype)


def _forward(x: Tensor, weight: Tensor, before: Tensor | None, at_start: int, eps: float) -> tuple[Tensor, Tensor]:
    """The buffer, and the inverse root mean squares `b 1 t h w`."""
    exact = _exact(x)
    inverse = exact.square().mean(dim=1, keepdim=True).add_(eps).rsqrt_()
    normed = exact * inverse if exact is x else exact.mul_(inverse)
    normed.mul_(_per_channel(weight, normed))
    return _behind(F.silu(normed, inplace=True).to(x.dtype), before, at_start), inverse


class _NormSilu(torch.autograd.Function):
    """y = silu(w ∘ x / r) with r the root mean square over channels; frames in front are copies."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, before: Tensor | None, at_start: int, eps: float) -> Tensor:
        buffer, inverse = _forward(x, weight, before, at_start, eps)
        ctx.save_for_backward(x, weight, inverse)
        ctx.dtype_before = None if before is None else before.dtype
        return buffer

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        in_front = grad.shape[2] - x.shape[2]
        unit = _exact(x) * inverse
        own = grad[:, :, in_front:].to(unit.dtype, copy=True)
        grad_before = None
        if ctx.dtype_before is not None:
            grad_before = grad[:, :, :in_front].to(ctx.dtype_before)
        elif in_front:
            own[:, :, 0] += grad[:, :, :in_front].sum(dim=2, dtype=own.dtype)
        scale = _per_channel(weight, unit)
        normed = unit * scale
        torch.ops.aten.silu_backward.grad_input(own, normed, grad_input=own)
        along = torch.mul(own, unit, out=normed)
        grad_weight = along.flatten(2).sum(dim=-1).sum(dim=0).to(weight.dtype)
        shrink = (scale.flatten() / -x.shape[1] @ along.flatten(2)).view_as(inverse)
        grad_x = own.mul_(scale).addcmul_(unit, shrink).mul_(inverse).to(x.dtype)
        return grad_x, grad_weight, grad_before, None, None


def _behind(activated: Tensor, before: Tensor | None, at_start: int) -> Tensor:
    """The frames `before`, or without them the first one again and again, in front of the others."""
    if before is None:
        before = activated[:, :, :1].expand(-1, -1, at_start, -1, -1)
    return torch.cat([before.to(activated.dtype), activated], dim=2) if before.shape[2] else activated


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The norm in float32, or in the dtype of x where that is wider."""
    x = _exact(x)
    scale = torch.rsqrt(x.square().mean(dim=1, keepdim=True) + eps)
    return x * scale * _per_channel(weight, x)


def _exact(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _per_channel(weight: Tensor, x: Tensor) -> Tensor:
    """The weight `c` as it broadcasts to `b c …`."""
    return weight.to(x.dtype).view(-1, *[1] * (x.ndim - 2))


@torch.library.custom_op("vidgen::norm_silu_cache", mutates_args=())
def _norm_silu_cache(x: Tensor, weight: Tensor, before: Tensor | None, at_start: int, eps: float) -> Tensor:
    from vidgen.kernels.ops.triton.norm_silu import norm_silu_forward

    buffer = _buffer(x, before, at_start)
    if before is not None:
        buffer[:, :, : before.shape[2]] = before
    in_front = buffer.shape[2] - x.shape[2]
    norm_silu_forward(x.contiguous(), weight.contiguous(), buffer, in_front=in_front, repeats=at_start, eps=eps)
    return buffer


@_norm_silu_cache.register_fake
def _(x: Tensor, weight: Tensor, before: Tensor | None, at_start: int, eps: float) -> Tensor:
    return _buffer(x, before, at_start)


def _buffer(x: Tensor, before: Tensor | None, at_start: int) -> Tensor:
    in_front = at_start if before is None else before.shape[2]
    return x.new_empty(*x.shape[:2], in_front + x.shape[2], *x.shape[3:])


@torch.library.custom_op("vidgen::norm_silu_cache_backward", mutates_args=())
def _norm_silu_cache_backward(
    grad: Tensor, x: Tensor, weight: Tensor, at_start: int, eps: float
) -> tuple[Tensor, Tensor]:
    from vidgen.kernels.ops.triton.norm_silu import norm_silu_backward

    in_front = grad.shape[2] - x.shape[2]
    return norm_silu_backward(
        grad.contiguous(), x.contiguous(), weight.contiguous(), in_front=in_front, repeats=at_start, eps=eps
    )


@_norm_silu_cache_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, at_start: int, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _keep(ctx, inputs: tuple, output: Tensor) -> None:
    x, weight, before, ctx.at_start, ctx.eps = inputs
    ctx.save_for_backward(x, weight)
    ctx.frames_before = None if before is None else before.shape[2]


def _differentiate(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    grad_x, grad_weight = _norm_silu_cache_backward(grad, x, weight, ctx.at_start, ctx.eps)
    grad_before = None if ctx.frames_before is None else grad[:, :, : ctx.frames_before]
    return grad_x, grad_weight, grad_before, None, None


_norm_silu_cache.register_autograd(_differentiate, setup_context=_keep)
