"""Triton kernels of `modulate` and `gated_residual`: one pass over the tokens each way."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vidgen.kernels.ops.triton.settings import launch, rows_per_tile, warps_for

# Tiles that one program of a backward pass adds up before it leaves a partial sum.
TILES_PER_SUM = 16


@triton.jit
def modulate_kernel(
    x,
    shift,
    scale,
    out,
    shift_batch,
    shift_group,
    scale_batch,
    scale_group,
    rows,
    tokens,
    per_group,
    eps,
    WIDTH: tl.constexpr,
    WIDTH_PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    CENTRED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDTH_PADDED)
    inside = (row < rows)[:, None] & (channel < WIDTH)[None, :]
    place = row[:, None] * WIDTH + channel[None, :]
    normed = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if CENTRED:
        mean = tl.sum(normed, axis=1) / WIDTH
        normed = tl.where(inside, normed - mean[:, None], 0.0)
    normed = normed * tl.rsqrt(tl.sum(normed * normed, axis=1) / WIDTH + eps)[:, None]
    batch, group = row // tokens, row % tokens // per_group
    from_shift = (batch * shift_batch + group * shift_group)[:, None] + channel[None, :]
    from_scale = (batch * scale_batch + group * scale_group)[:, None] + channel[None, :]
    factor = 1.0 + tl.load(scale + from_scale, mask=inside, other=0.0).to(tl.float32)
    offset = tl.load(shift + from_shift, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, normed * factor + offset, mask=inside)


@triton.jit
def modulate_backward_kernel(
    grad,
    x,
    scale,
    grad_x,
    grad_shift,
    grad_scale,
    scale_batch,
    scale_group,
    groups,
    tokens,
    per_group,
    splits,
    eps,
    WIDTH: tl.constexpr,
    WIDTH_PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    CENTRED: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    batch, group = program // splits // groups, program // splits % groups
    channel = tl.arange(0, WIDTH_PADDED)
    begin = scale + batch * scale_batch + group * scale_group
    factor = 1.0 + tl.load(begin + channel, mask=channel < WIDTH, other=0.0).to(tl.float32)
    shift_sum = tl.zeros([WIDTH_PADDED], dtype=tl.float32)
    scale_sum = tl.zeros([WIDTH_PADDED], dtype=tl.float32)
    for tile in range(program % splits, tl.cdiv(per_group, ROWS), splits):
        row = tile * ROWS + tl.arange(0, ROWS)
        inside = (row < per_group)[:, None] & (channel < WIDTH)[None, :]
        place = (batch * tokens + group * per_group + row)[:, None] * WIDTH + channel[None, :]
        normed = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        if CENTRED:
            mean = tl.sum(normed, axis=1) / WIDTH
            normed = tl.where(inside, normed - mean[:, None], 0.0)
        inverse = tl.rsqrt(tl.sum(normed * normed, axis=1) / WIDTH + eps)[:, None]
        normed = normed * inverse
        incoming = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        shift_sum += tl.sum(incoming, axis=0)
        scale_sum += tl.sum(incoming * normed, axis=0)
        incoming = incoming * factor[None, :]
        outgoing = incoming - normed * (tl.sum(incoming * normed, axis=1) / WIDTH)[:, None]
        if CENTRED:
            outgoing = outgoing - (tl.sum(incoming, axis=1) / WIDTH)[:, None]
        tl.store(grad_x + place, outgoing * inverse, mask=inside)
    tl.store(grad_shift + program * WIDTH + channel, shift_sum, mask=channel < WIDTH)
    tl.store(grad_scale + program * WIDTH + channel, scale_sum, mask=channel < WIDTH)


@triton.jit
def gated_residual_kernel(
    x,
    branch,
    gate,
    out,
    gate_batch,
    gate_group,
    rows,
    tokens,
    per_group,
    WIDTH: tl.constexpr,
    WIDTH_PADDED: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDTH_PADDED)
    inside = (row < rows)[:, None] & (channel < WIDTH)[None, :]
    place = row[:, None] * WIDTH + channel[None, :]
    from_gate = (row // tokens * gate_batch + row % tokens // per_group * gate_group)[:, None] + channel[None, :]
    residual = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    added = tl.load(branch + place, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(gate + from_gate, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, residual + factor * added, mask=inside)


@triton.jit
def gated_residual_backward_kernel(
    grad,
    branch,
    gate,
    grad_branch,
    grad_gate,
    gate_batch,
    gate_group,
    groups,
    tokens,
    per_group,
    splits,
    WIDTH: tl.constexpr,
    WIDTH_PADDED: tl.constexpr,
    ROWS: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    batch, group = program // splits // groups, program // splits % groups
    channel = tl.arange(0, WIDTH_PADDED)
    begin = gate + batch * gate_batch + group * gate_group
    factor = tl.load(begin + channel, mask=channel < WIDTH, other=0.0).to(tl.float32)
    gate_sum = tl.zeros([WIDTH_PADDED], dtype=tl.float32)
    for tile in range(program % splits, tl.cdiv(per_group, ROWS), splits):
        row = tile * ROWS + tl.arange(0, ROWS)
        inside = (row < per_group)[:, None] & (channel < WIDTH)[None, :]
        place = (batch * tokens + group * per_group + row)[:, None] * WIDTH + channel[None, :]
        incoming = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        added = tl.load(branch + place, mask=inside, other=0.0).to(tl.float32)
        gate_sum += tl.sum(incoming * added, axis=0)
        tl.store(grad_branch + place, incoming * factor[None, :], mask=inside)
    tl.store(grad_gate + program * WIDTH + channel, gate_sum, mask=channel < WIDTH)


def modulate_forward(x: Tensor, shift: Tensor, scale: Tensor, out: Tensor, *, eps: float, centred: bool) -> None:
    """Fill `out` `b n d`; x contiguous, shift and scale `b m d` with dense channels."""
    rows, tokens, shape = x.shape[0] * x.shape[1], x.shape[1], _shape(x.shape[2])
    strides = (*shift.stride()[:2], *scale.stride()[:2])
    per_group = tokens // scale.shape[1]
    launch(
        modulate_kernel, (triton.cdiv(rows, shape["ROWS"]),),
        x, shift, scale, out, *strides, rows, tokens, per_group, eps, CENTRED=centred, **shape
    )  # fmt: skip


def modulate_backward(
    grad: Tensor, x: Tensor, scale: Tensor, grad_x: Tensor, *, eps: float, centred: bool
) -> tuple[Tensor, Tensor]:
    """Fill `grad_x`; returns the float32 gradients of shift and scale, `b m d`."""
    groups, per_group, splits, shape = _split(x, scale)
    batch, tokens, width = x.shape
    shift_sums = x.new_empty(batch, groups, splits, width, dtype=torch.float32)
    scale_sums = torch.empty_like(shift_sums)
    launch(
        modulate_backward_kernel, (batch * groups * splits,),
        grad, x, scale, grad_x, shift_sums, scale_sums, *scale.stride()[:2], groups, tokens, per_group, splits, eps,
        CENTRED=centred, **shape,
    )  # fmt: skip
    return shift_sums.sum(dim=2), scale_sums.sum(dim=2)


def gated_residual_forward(x: Tensor, branch: Tensor, gate: Tensor, out: Tensor) -> None:
    rows, tokens, shape = x.shape[0] * x.shape[1], x.shape[1], _shape(x.shape[2])
    launch(
        gated_residual_kernel, (triton.cdiv(rows, shape["ROWS"]),),
        x, branch, gate, out, *gate.stride()[:2], rows, tokens, tokens // gate.shape[1], **shape
    )  # fmt: skip


def gated_residual_backward(grad: Tensor, branch: Tensor, gate: Tensor, grad_branch: Tensor) -> Tensor:
    """Fill `grad_branch`; returns the float32 gradient of the gate, `b m d`."""
    groups, per_group, splits, shape = _split(branch, gate)
    batch, tokens, width = branch.shape
    gate_sums = branch.new_empty(batch, groups, splits, width, dtype=torch.float32)
    launch(
        gated_residual_backward_kernel, (batch * groups * splits,),
        grad, branch, gate, grad_branch, gate_sums, *gate.stride()[:2], groups, tokens, per_group, splits, **shape
    )  # fmt: skip
    return gate_sums.sum(dim=2)


def _shape(width: int, *, most_rows: int = 64) -> dict[str, Any]:
    rows = min(rows_per_tile(width), most_rows)
    padded = triton.next_power_of_2(width)
    return {"WIDTH": width, "WIDTH_PADDED": padded, "ROWS": rows, "num_warps": warps_for(rows * padded)}


def _split(x: Tensor, modulation: Tensor) -> tuple[int, int, int, dict[str, Any]]:
    """Groups of tokens with one modulation, tokens in each, programs that share a group, tile shape."""
    groups = modulation.shape[1]
    per_group = x.shape[1] // groups
    shape = _shape(x.shape[2], most_rows=triton.next_power_of_2(per_group))
    return groups, per_group, triton.cdiv(per_group, shape["ROWS"] * TILES_PER_SUM), shape
