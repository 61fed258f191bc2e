"""Triton kernels of `norm_silu_cache`: channel norm and SiLU of channel-second video, written behind the cache."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidgen.kernels.ops.triton.settings import launch

# Channels and positions of one tile. Channels are read twice, tile by tile: the second time from the cache.
CHANNELS = 32
POSITIONS = 64


@triton.jit
def forward_kernel(
    x,
    weight,
    out,
    positions,
    frame,
    out_positions,
    repeats,
    eps,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
    IN_FRONT: tl.constexpr,
):
    position = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    batch = tl.program_id(1).to(tl.int64)
    x += batch * WIDTH * positions
    out += batch * WIDTH * out_positions
    squares = tl.zeros([POSITIONS], dtype=tl.float32)
    for begin in range(0, WIDTH, CHANNELS):
        channel = begin + tl.arange(0, CHANNELS)
        inside = (channel < WIDTH)[:, None] & (position < positions)[None, :]
        value = tl.load(x + channel.to(tl.int64)[:, None] * positions + position[None, :], mask=inside, other=0.0)
        value = value.to(tl.float32)
        squares += tl.sum(value * value, axis=0)
    inverse = tl.rsqrt(squares / WIDTH + eps)
    for begin in range(0, WIDTH, CHANNELS):
        channel = begin + tl.arange(0, CHANNELS)
        inside = (channel < WIDTH)[:, None] & (position < positions)[None, :]
        value = tl.load(x + channel.to(tl.int64)[:, None] * positions + position[None, :], mask=inside, other=0.0)
        factor = tl.load(weight + channel, mask=channel < WIDTH, other=0.0).to(tl.float32)
        normed = value.to(tl.float32) * inverse[None, :] * factor[:, None]
        activated = normed * tl.sigmoid(normed)
        target = out + channel.to(tl.int64)[:, None] * out_positions + position[None, :]
        tl.store(target + IN_FRONT * frame, activated, mask=inside)
        for repeat in range(repeats):
            tl.store(target + repeat * frame, activated, mask=inside & (position < frame)[None, :])


@triton.jit
def backward_kernel(
    grad,
    x,
    weight,
    grad_x,
    grad_weight,
    positions,
    frame,
    out_positions,
    repeats,
    eps,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
    IN_FRONT: tl.constexpr,
):
    position = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    batch = tl.program_id(1).to(tl.int64)
    x += batch * WIDTH * positions
    grad_x += batch * WIDTH * positions
    grad += batch * WIDTH * out_positions
    grad_weight += (batch * tl.num_programs(0) + tl.program_id(0)) * WIDTH
    squares = tl.zeros([POSITIONS], dtype=tl.float32)
    along = tl.zeros([POSITIONS], dtype=tl.float32)
    for begin in range(0, WIDTH, CHANNELS):
        channel = begin + tl.arange(0, CHANNELS)
        inside = (channel < WIDTH)[:, None] & (position < positions)[None, :]
        value = tl.load(x + channel.to(tl.int64)[:, None] * positions + position[None, :], mask=inside, other=0.0)
        value = value.to(tl.float32)
        squares += tl.sum(value * value, axis=0)
    inverse = tl.rsqrt(squares / WIDTH + eps)
    for begin in range(0, WIDTH, CHANNELS):
        channel = begin + tl.arange(0, CHANNELS)
        inside = (channel < WIDTH)[:, None] & (position < positions)[None, :]
        place = channel.to(tl.int64)[:, None] * positions + position[None, :]
        normed = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) * inverse[None, :]
        factor = tl.load(weight + channel, mask=channel < WIDTH, other=0.0).to(tl.float32)[:, None]
        incoming = _incoming(grad, channel, position, inside, frame, out_positions, repeats, IN_FRONT)
        sigmoid = tl.sigmoid(normed * factor)
        incoming = incoming * sigmoid * (1.0 + normed * factor * (1.0 - sigmoid))
        tl.store(grad_weight + channel, tl.sum(incoming * normed, axis=1), mask=channel < WIDTH)
        along += tl.sum(incoming * factor * normed, axis=0)
    along = along / WIDTH
    for begin in range(0, WIDTH, CHANNELS):
        channel = begin + tl.arange(0, CHANNELS)
        inside = (channel < WIDTH)[:, None] & (position < positions)[None, :]
        place = channel.to(tl.int64)[:, None] * positions + position[None, :]
        normed = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) * inverse[None, :]
        factor = tl.load(weight + channel, mask=channel < WIDTH, other=0.0).to(tl.float32)[:, None]
        incoming = _incoming(grad, channel, position, inside, frame, out_positions, repeats, IN_FRONT)
        sigmoid = tl.sigmoid(normed * factor)
        incoming = incoming * sigmoid * (1.0 + normed * factor * (1.0 - sigmoid)) * factor
        tl.store(grad_x + place, inverse[None, :] * (incoming - normed * along[None, :]), mask=inside)


@triton.jit
def _incoming(grad, channel, position, inside, frame, out_positions, repeats, IN_FRONT: tl.constexpr):
    """Gradient of the activated frames; the first one collects those of its repetitions."""
    place = grad + channel.to(tl.int64)[:, None] * out_positions + position[None, :]
    total = tl.load(place + IN_FRONT * frame, mask=inside, other=0.0).to(tl.float32)
    for repeat in range(repeats):
        total += tl.load(place + repeat * frame, mask=inside & (position < frame)[None, :], other=0.0).to(tl.float32)
    return total


def norm_silu_forward(x: Tensor, weight: Tensor, out: Tensor, *, in_front: int, repeats: int, eps: float) -> None:
    """Fill `out` `b c (in_front + t) h w` from frame `in_front` on, and the first `repeats` frames with that one."""
    positions, shape = x[0, 0].numel(), _shape(x, in_front)
    launch(
        forward_kernel, (triton.cdiv(positions, POSITIONS), len(x)),
        x, weight, out, positions, x[0, 0, 0].numel(), out[0, 0].numel(), repeats, eps, **shape
    )  # fmt: skip


def norm_silu_backward(
    grad: Tensor, x: Tensor, weight: Tensor, *, in_front: int, repeats: int, eps: float
) -> tuple[Tensor, Tensor]:
    """Gradients of `x` and `weight` from the contiguous one of the buffer."""
    positions, shape = x[0, 0].numel(), _shape(x, in_front)
    programs = triton.cdiv(positions, POSITIONS)
    grad_x = torch.empty_like(x)
    partial = x.new_empty(len(x) * programs, x.shape[1], dtype=torch.float32)
    launch(
        backward_kernel, (programs, len(x)),
        grad, x, weight, grad_x, partial, positions, x[0, 0, 0].numel(), grad[0, 0].numel(), repeats, eps, **shape
    )  # fmt: skip
    return grad_x, partial.sum(dim=0).to(weight.dtype)


def _shape(x: Tensor, in_front: int) -> dict[str, Any]:
    channels = min(CHANNELS, triton.next_power_of_2(x.shape[1]))
    return {
        "WIDTH": x.shape[1],
        "CHANNELS": channels,
        "POSITIONS": POSITIONS,
        "IN_FRONT": in_front,
        "num_warps": 4,
    }
