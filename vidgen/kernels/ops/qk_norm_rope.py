"""`qk_norm_rope3d`: RMS norm and rotary positions of queries and keys, and the token order of a tiled attention."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from vidgen.kernels.ops.dispatch import takes_triton

# Orders that were looked at, with the state that they were in: reading one back from a GPU waits for it.
_VALID_ORDERS = WeakTensorKeyDictionary()


def qk_norm_rope3d(
    q: Tensor,
    k: Tensor,
    *,
    weight_q: Tensor,
    weight_k: Tensor,
    cosines: Tensor,
    sines: Tensor,
    order: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Queries `b h n d` and keys `b g n d` ready for attention: `norm_rope` of both, with weights of their own.

    `order` serves callers that keep their tokens in tile order from the first block to the last, values included.
    Nothing in vidgen asks for it: `attention3d` takes tokens in raster order and its kernels gather tiles themselves.
    """
    return (
        norm_rope(q, weight_q, cosines=cosines, sines=sines, order=order, eps=eps),
        norm_rope(k, weight_k, cosines=cosines, sines=sines, order=order, eps=eps),
    )


def norm_rope(
    x: Tensor,
    weight: Tensor,
    *,
    cosines: Tensor,
    sines: Tensor,
    order: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """Each head divided by its root mean square, weighted, rotated to its place, put in order.

    `x` is `b h n d` (any strides; last one 1 is fastest), the weight `d`, cosines and sines `n d/2`: channel i turns
    against channel i + d/2 (RoFormer, arXiv 2104.09864; what is 3D lies in the angles, `vidgen.nn.positions.rotary`).
    `order`, `m` long, names the token at each place of the result (a tile order) with -1 for padding, which becomes
    zero; every token must appear in it exactly once. That is looked at when an order is first seen and again after it
    was changed, but not under `torch.compile`, whose graph would break: there a wrong one gives wrong results.
    Returns `b h m d` in the dtype of x. On a GPU one read and one write; no gradient for the angles.
    ValueError: shapes that do not fit, an order that leaves tokens out or repeats them.
    """
    if x.ndim != 4:
        raise ValueError(f"expected x `b h n d`, got shape {tuple(x.shape)}")
    angles = (x.shape[2], x.shape[3] // 2)
    if x.shape[3] % 2 or cosines.shape != angles or sines.shape != angles:
        raise ValueError(
            f"expected x of an even head size with cosines and sines of shape {angles}, got {tuple(x.shape)}, "
            f"{tuple(cosines.shape)} and {tuple(sines.shape)}"
        )
    if weight.shape != x.shape[3:]:
        raise ValueError(f"expected a weight of shape {tuple(x.shape[3:])}, got {tuple(weight.shape)}")
    if order is not None:
        _check_order(order, x.shape[2])
    if takes_triton(x):
        return _norm_rope(x, weight, cosines, sines, order, eps)
    return norm_rope_reference(x, weight, cosines, sines, order, eps)


def _check_order(order: Tensor, tokens: int) -> None:
    if order.ndim != 1 or order.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"expected an order `m` of int32 or int64, got {order.dtype} {tuple(order.shape)}")
    if torch.compiler.is_compiling():
        return
    state = (tokens, 0 if order.is_inference() else order._version)
    if _VALID_ORDERS.get(order) == state:
        return
    places = order.cpu().long()
    outside = places[(places < -1) | (places >= tokens)]
    if len(outside):
        raise ValueError(f"order names token {int(outside[0])}; use 0 to {tokens - 1}, and -1 for padding")
    times = torch.bincount(places + 1, minlength=tokens + 1)[1:]
    wrong = (times != 1).nonzero()
    if len(wrong):
        token = int(wrong[0])
        raise ValueError(
            f"order must hold each token from 0 to {tokens - 1} once, but {token} comes {int(times[token])} times"
        )
    _VALID_ORDERS[order] = state


def norm_rope_reference(
    x: Tensor, weight: Tensor, cosines: Tensor, sines: Tensor, order: Tensor | None, eps: float
) -> Tensor:
    normed = F.rms_norm(x, weight.shape, weight.to(x.dtype), eps).to(x.dtype)
    turned = rotate(normed, cosines, sines)
    if order is None:
        return turned
    return turned[:, :, order.clamp(min=0)].masked_fill((order < 0)[:, None], 0.0)


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotate channel i of `b h n d` against channel i + d/2."""
    cosines, sines = cosines.to(x.dtype), sines.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1)


@torch.library.custom_op("vidgen::norm_rope", mutates_args=())
def _norm_rope(x: Tensor, weight: Tensor, cosines: Tensor, sines: Tensor, order: Tensor | None, eps: float) -> Tensor:
    from vidgen.kernels.ops.triton.norm_rope import norm_rope_forward

    return norm_rope_forward(_dense_heads(x), *_dense(weight, cosines, sines, order), eps)


@_norm_rope.register_fake
def _(x: Tensor, weight: Tensor, cosines: Tensor, sines: Tensor, order: Tensor | None, eps: float) -> Tensor:
    batch, heads, tokens, channels = x.shape
    return x.new_empty(batch, heads, tokens if order is None else order.shape[0], channels)


@torch.library.custom_op("vidgen::norm_rope_backward", mutates_args=())
def _norm_rope_backward(
    grad: Tensor, x: Tensor, weight: Tensor, cosines: Tensor, sines: Tensor, order: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    from vidgen.kernels.ops.triton.norm_rope import norm_rope_backward

    return norm_rope_backward(grad.contiguous(), _dense_heads(x), *_dense(weight, cosines, sines, order), eps)


@_norm_rope_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, cosines: Tensor, sines: Tensor, order: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _keep(ctx, inputs: tuple, output: Tensor) -> None:
    x, weight, cosines, sines, order, eps = inputs
    ctx.save_for_backward(x, weight, cosines, sines, order)
    ctx.eps = eps


def _differentiate(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, cosines, sines, order = ctx.saved_tensors
    grad_x, grad_weight = _norm_rope_backward(grad, x, weight, cosines, sines, order, ctx.eps)
    return grad_x, grad_weight, None, None, None, None


_norm_rope.register_autograd(_differentiate, setup_context=_keep)


def _dense(
    weight: Tensor, cosines: Tensor, sines: Tensor, order: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    return weight.contiguous(), cosines.contiguous(), sines.contiguous(), None if order is None else order.contiguous()


def _dense_heads(x: Tensor) -> Tensor:
    """The kernels stride over batch, heads and tokens, so a view into a joint q-k-v projection needs no copy."""
    return x if x.stride(-1) == 1 else x.contiguous()
