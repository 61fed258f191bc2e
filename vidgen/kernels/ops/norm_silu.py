"""`norm_silu_cache`: channel norm and SiLU written straight into the buffer that a causal convolution reads."""

import torch
from torch import Tensor
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
    at least, in 16 bits too.
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
    return norm_silu_cache_reference(x, weight, before=before, at_start=at_start, eps=eps)


def norm_silu_cache_reference(x: Tensor, weight: Tensor, *, before: Tensor | None, at_start: int, eps: float) -> Tensor:
    activated = F.silu(_normed(x, weight, eps)).to(x.dtype)
    if before is None:
        before = activated[:, :, :1].expand(-1, -1, at_start, -1, -1)
    return torch.cat([before.to(x.dtype), activated], dim=2) if before.shape[2] else activated


def channel_rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """Root-mean-square norm over the channels of each position of `b c …` (Zhang & Sennrich 2019)."""
    return _normed(x, weight, eps).to(x.dtype)


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The norm in float32, or in the dtype of x where that is wider."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(x.square().mean(dim=1, keepdim=True) + eps)
    return x * scale * weight.to(x.dtype).view(-1, *[1] * (x.ndim - 2))


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
