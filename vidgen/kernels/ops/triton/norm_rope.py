"""Triton kernels of `qk_norm_rope3d`: RMS norm of a head, rotation, and gathering into another token order."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidgen.kernels.ops.triton.settings import launch, rows_per_tile, warps_for

# A grid has one axis: the others end at 65,535, and windows make more heads than that.
# Programs that share a head in the backward pass; each leaves one partial sum of the weight's gradient.
PROGRAMS_PER_HEAD = 64


@triton.jit
def forward_kernel(
    x,
    weight,
    cosines,
    sines,
    order,
    out,
    stride_batch,
    stride_head,
    stride_token,
    heads,
    tokens,
    out_tokens,
    eps,
    HALF: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    ORDERED: tl.constexpr,
):
    tiles = tl.cdiv(out_tokens, ROWS)
    row = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    head = (tl.program_id(0) // tiles).to(tl.int64)
    channel = tl.arange(0, HALF_PADDED)
    if ORDERED:
        source = tl.load(order + row, mask=row < out_tokens, other=-1).to(tl.int32)
    else:
        source = tl.where(row < tokens, row, -1)
    there = (source >= 0)[:, None] & (channel < HALF)[None, :]
    start = x + (head // heads) * stride_batch + (head % heads) * stride_head
    place = start + source.to(tl.int64)[:, None] * stride_token + channel[None, :]
    first = tl.load(place, mask=there, other=0.0).to(tl.float32)
    second = tl.load(place + HALF, mask=there, other=0.0).to(tl.float32)
    mean_square = (tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)) / (2 * HALF)
    inverse = tl.rsqrt(mean_square + eps)[:, None]
    weight_first = tl.load(weight + channel, mask=channel < HALF, other=0.0).to(tl.float32)
    weight_second = tl.load(weight + HALF + channel, mask=channel < HALF, other=0.0).to(tl.float32)
    first = first * inverse * weight_first[None, :]
    second = second * inverse * weight_second[None, :]
    turn = source[:, None] * HALF + channel[None, :]
    cosine = tl.load(cosines + turn, mask=there, other=0.0).to(tl.float32)
    sine = tl.load(sines + turn, mask=there, other=0.0).to(tl.float32)
    target = out + (head * out_tokens + row)[:, None] * (2 * HALF) + channel[None, :]
    inside = (row < out_tokens)[:, None] & (channel < HALF)[None, :]
    tl.store(target, first * cosine - second * sine, mask=inside)
    tl.store(target + HALF, second * cosine + first * sine, mask=inside)


@triton.jit
def backward_kernel(
    grad,
    x,
    weight,
    cosines,
    sines,
    order,
    grad_x,
    grad_weight,
    stride_batch,
    stride_head,
    stride_token,
    heads,
    tokens,
    out_tokens,
    programs,
    eps,
    HALF: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    ORDERED: tl.constexpr,
):
    head = (tl.program_id(0) // programs).to(tl.int64)
    channel = tl.arange(0, HALF_PADDED)
    start = x + (head // heads) * stride_batch + (head % heads) * stride_head
    weight_first = tl.load(weight + channel, mask=channel < HALF, other=0.0).to(tl.float32)[None, :]
    weight_second = tl.load(weight + HALF + channel, mask=channel < HALF, other=0.0).to(tl.float32)[None, :]
    sum_first = tl.zeros([HALF_PADDED], dtype=tl.float32)
    sum_second = tl.zeros([HALF_PADDED], dtype=tl.float32)
    for tile in range(tl.program_id(0) % programs, tl.cdiv(out_tokens, ROWS), programs):
        row = tile * ROWS + tl.arange(0, ROWS)
        if ORDERED:
            source = tl.load(order + row, mask=row < out_tokens, other=-1).to(tl.int32)
        else:
            source = tl.where(row < tokens, row, -1)
        there = (source >= 0)[:, None] & (channel < HALF)[None, :]
        place = start + source.to(tl.int64)[:, None] * stride_token + channel[None, :]
        first = tl.load(place, mask=there, other=0.0).to(tl.float32)
        second = tl.load(place + HALF, mask=there, other=0.0).to(tl.float32)
        mean_square = (tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)) / (2 * HALF)
        inverse = tl.rsqrt(mean_square + eps)[:, None]
        first, second = first * inverse, second * inverse
        turn = source[:, None] * HALF + channel[None, :]
        cosine = tl.load(cosines + turn, mask=there, other=0.0).to(tl.float32)
        sine = tl.load(sines + turn, mask=there, other=0.0).to(tl.float32)
        incoming = grad + (head * out_tokens + row)[:, None] * (2 * HALF) + channel[None, :]
        grad_first = tl.load(incoming, mask=there, other=0.0).to(tl.float32)
        grad_second = tl.load(incoming + HALF, mask=there, other=0.0).to(tl.float32)
        # back through the rotation, then through the norm
        turned_first = grad_first * cosine + grad_second * sine
        turned_second = grad_second * cosine - grad_first * sine
        sum_first += tl.sum(turned_first * first, axis=0)
        sum_second += tl.sum(turned_second * second, axis=0)
        turned_first, turned_second = turned_first * weight_first, turned_second * weight_second
        along = tl.sum(turned_first * first, axis=1) + tl.sum(turned_second * second, axis=1)
        along = (along / (2 * HALF))[:, None]
        target = grad_x + (head * tokens + source)[:, None] * (2 * HALF) + channel[None, :]
        tl.store(target, inverse * (turned_first - first * along), mask=there)
        tl.store(target + HALF, inverse * (turned_second - second * along), mask=there)
    partial = grad_weight + tl.program_id(0).to(tl.int64) * (2 * HALF) + channel
    tl.store(partial, sum_first, mask=channel < HALF)
    tl.store(partial + HALF, sum_second, mask=channel < HALF)


def norm_rope_forward(
    x: Tensor, weight: Tensor, cosines: Tensor, sines: Tensor, order: Tensor | None, eps: float
) -> Tensor:
    """`b h n d -> b h m d`, contiguous; m = n without `order`."""
    batch, heads, tokens, channels = x.shape
    out_tokens = tokens if order is None else len(order)
    out = torch.empty(batch, heads, out_tokens, channels, device=x.device, dtype=x.dtype)
    shape = _shape(channels, order)
    launch(
        forward_kernel, (triton.cdiv(out_tokens, shape["ROWS"]) * batch * heads,),
        x, weight, cosines, sines, order, out, *x.stride()[:3], heads, tokens, out_tokens, eps, **shape
    )  # fmt: skip
    return out


def norm_rope_backward(
    grad: Tensor, x: Tensor, weight: Tensor, cosines: Tensor, sines: Tensor, order: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Gradients of `x` (contiguous) and `weight` from the contiguous `b h m d` of the output."""
    batch, heads, tokens, channels = x.shape
    out_tokens = grad.shape[2]
    shape = _shape(channels, order)
    programs = min(PROGRAMS_PER_HEAD, triton.cdiv(out_tokens, shape["ROWS"]))
    grad_x = torch.empty(x.shape, device=x.device, dtype=x.dtype)
    partial = torch.empty(batch * heads * programs, channels, device=x.device, dtype=torch.float32)
    launch(
        backward_kernel, (programs * batch * heads,),
        grad, x, weight, cosines, sines, order, grad_x, partial, *x.stride()[:3], heads, tokens, out_tokens, programs,
        eps, **shape,
    )  # fmt: skip
    return grad_x, partial.sum(dim=0).to(weight.dtype)


def _shape(channels: int, order: Tensor | None) -> dict[str, Any]:
    half = channels // 2
    rows = rows_per_tile(half, entries=2048)
    padded = triton.next_power_of_2(half)
    return {
        "HALF": half,
        "HALF_PADDED": padded,
        "ROWS": rows,
        "ORDERED": order is not None,
        "num_warps": warps_for(2 * rows * padded),
    }
