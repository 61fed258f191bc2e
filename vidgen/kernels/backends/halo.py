"""The backend for windows on a CPU: boxes of queries with the keys around them, through PyTorch's fused attention.

Works slab by slab (a few frames) and a few heads at a time: the copied keys and values stay in the processor's cache,
and nothing but q, k, v, the output and its log-sum-exp is kept for the backward pass, which copies them again.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vidgen.kernels.boxes import Stretch, plan_boxes
from vidgen.kernels.flat_spec import constants_of, numbers_of, spec_of
from vidgen.kernels.slabs import Places, Slab, as_slice, slabs_of
from vidgen.kernels.spec import AttentionSpec

# Copied keys and values of one call. Twice this is where the C library starts to hand freed memory back to the system,
# and taking it again costs ten times the copying.
CHUNK_BYTES = 2**24

# SDPA itself keeps the log-sum-exp to itself; these are the operators that it calls on a CPU.
_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def unsupported(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, *, return_lse: bool) -> str | None:
    """Serves every pattern on a CPU whose windows are products over the axes."""
    if q.device.type != "cpu":
        return f"its boxes are for the CPU, and the tensors are on {q.device.type}"
    if v.shape[-1] != q.shape[-1]:
        return f"values need the head size of the keys, {q.shape[-1]}, got {v.shape[-1]}"
    if return_lse and torch.is_grad_enabled() and (q.requires_grad or k.requires_grad):
        return "its log-sum-exp carries no gradient"
    return _no_plan(constants_of(spec))


@torch.compiler.assume_constant_result
def _no_plan(numbers: tuple[int, ...]) -> str | None:
    plan = plan_boxes(spec_of(numbers))
    return plan if isinstance(plan, str) else None


def attend(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, *, scale: float, return_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """Box by box; under torch.compile as one operator, which does not trace the boxes."""
    if torch.compiler.is_compiling():
        output, lse = _operator(q, k, v, numbers_of(spec), scale)
        return output, lse.detach() if return_lse else None
    output, lse = _Boxes.apply(q, k, v, spec, scale)  # type: ignore[misc]
    return output, lse if return_lse else None


class _Boxes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, scale: float) -> tuple[Tensor, Tensor]:
        output, lse = _forward(q, k, v, spec, scale)
        ctx.save_for_backward(q, k, v, output, lse)
        ctx.spec, ctx.scale = spec, scale
        ctx.mark_non_differentiable(lse)
        return output, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, output, lse = ctx.saved_tensors
        return (*_backward(q, k, v, output, lse, grad, ctx.spec, ctx.scale), None, None)


def _forward(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, scale: float) -> tuple[Tensor, Tensor]:
    """The output `b h n d` and the log-sum-exp `b h n`."""
    q, k, v = _rows_together(q, k, v)
    output = torch.empty(q.shape, dtype=q.dtype)
    lse = torch.empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    for slab, sample, heads, group in _calls(q, k, spec):
        keys, values = (_boxes(tensor[sample, group], slab.keys, slab.boxes) for tensor in (k, v))
        for head in heads:
            queries = _boxes(q[sample, head], slab.queries, slab.boxes)
            result, result_lse = _attention(queries, keys, values, attn_mask=slab.mask, scale=scale)
            _put(output[sample, head], slab, spec, result)
            _put(lse[sample, head], slab, spec, result_lse)
    return output, lse


def _backward(
    q: Tensor, k: Tensor, v: Tensor, output: Tensor, lse: Tensor, grad: Tensor, spec: AttentionSpec, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v from that of the output."""
    q, k, v = _rows_together(q, k, v)
    grad = grad.contiguous()
    grad_q = torch.empty(q.shape, dtype=q.dtype)
    # a key collects from many boxes: half precision would round each time
    grad_k, grad_v = (torch.zeros(x.shape, dtype=torch.promote_types(x.dtype, torch.float32)) for x in (k, v))
    for slab, sample, heads, group in _calls(q, k, spec):
        keys, values = (_boxes(tensor[sample, group], slab.keys, slab.boxes) for tensor in (k, v))
        for head in heads:
            grads, queries, outputs, sums = (
                _boxes(tensor[sample, head], slab.queries, slab.boxes) for tensor in (grad, q, output, lse)
            )
            if slab.repeated is not None:
                grads.transpose(0, 1).flatten(1, 2).index_fill_(1, slab.repeated, 0)
            from_queries, from_keys, from_values = _attention_backward(
                grads, queries, keys, values, outputs, sums, 0.0, False, attn_mask=slab.mask, scale=scale
            )
            _put(grad_q[sample, head], slab, spec, from_queries)
            _add(grad_k[sample, group], slab, spec, from_keys)
            _add(grad_v[sample, group], slab, spec, from_values)
    return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype)


def _rows_together(*tensors: Tensor) -> list[Tensor]:
    return [tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in tensors]


# Not used eagerly: an operator hides its products from PyTorch's counter of floating-point operations.
@torch.library.custom_op("vidgen::halo_attention", mutates_args=())
def _operator(q: Tensor, k: Tensor, v: Tensor, spec: Sequence[int], scale: float) -> tuple[Tensor, Tensor]:
    return _forward(q, k, v, spec_of(tuple(spec)), scale)


@_operator.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, spec: Sequence[int], scale: float) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))


@torch.library.custom_op("vidgen::halo_attention_backward", mutates_args=())
def _operator_backward(
    q: Tensor, k: Tensor, v: Tensor, output: Tensor, lse: Tensor, grad: Tensor, spec: Sequence[int], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _backward(q, k, v, output, lse, grad, spec_of(tuple(spec)), scale)


@_operator_backward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, output: Tensor, lse: Tensor, grad: Tensor, spec: Sequence[int], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.spec, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, output, lse = ctx.saved_tensors
    return (*_operator_backward(q, k, v, output, lse, grad, ctx.spec, ctx.scale), None, None)


_operator.register_autograd(_differentiate, setup_context=_keep)


def _calls(q: Tensor, k: Tensor, spec: AttentionSpec) -> Iterator[tuple[Slab, int, list[slice], slice]]:
    """Slab, sample, heads of q (one slice for each that shares the keys) and heads of k, a few heads at a time."""
    share = q.shape[1] // k.shape[1]
    for slab in slabs_of(spec, q.dtype):
        heads = k.shape[1]
        if not isinstance(slab.keys, slice):
            heads = max(1, min(heads, CHUNK_BYTES // (2 * len(slab.keys) * k.shape[3] * k.element_size())))
        for sample in range(q.shape[0]):
            for first in range(0, k.shape[1], heads):
                group = slice(first, min(first + heads, k.shape[1]))
                members = [slice(group.start * share + i, group.stop * share, share) for i in range(share)]
                yield slab, sample, members, group


def _boxes(tensor: Tensor, places: Places, boxes: int) -> Tensor:
    """`h n …` -> `boxes h m …`, the rows at these places; boxes in front because the operator keeps heads together."""
    rows = tensor[:, places] if isinstance(places, slice) else tensor.index_select(1, places)
    return rows.unflatten(1, (boxes, -1)).transpose(0, 1)


def _put(target: Tensor, slab: Slab, spec: AttentionSpec, result: Tensor) -> None:
    """Write `boxes h m …` to its places in `h n …`."""
    rows = result.transpose(0, 1).flatten(1, 2)
    if slab.order is None:
        target[:, slab.queries] = rows
        return
    assert slab.frames is not None
    frames = as_slice(slab.frames.queries)
    grid = target[:, spec.query_prefix :].unflatten(1, spec.grid)[:, frames]
    grid.copy_(rows.index_select(1, slab.order).view(grid.shape))


def _add(target: Tensor, slab: Slab, spec: AttentionSpec, result: Tensor) -> None:
    """Add `boxes h m d` to its places in `h n d`, where boxes overlap: columns, then rows, then frames."""
    if isinstance(slab.keys, slice):
        target[:, slab.keys] += result[0]
        return
    assert slab.frames is not None
    result = result.transpose(0, 1)
    if spec.prefix:
        target[:, : spec.prefix] += result[:, :, : spec.prefix].sum(dim=1)
        result = result[:, :, spec.prefix :]
    _, height, width = spec.grid
    sizes = (slab.frames.key_count, slab.rows[0].key_count, slab.columns[0].key_count)
    boxes = result.unflatten(2, sizes).unflatten(1, (len(slab.rows), len(slab.columns)))  # h ny nx kt ky kx d
    heads, channels = target.shape[0], target.shape[2]
    bands = target.new_zeros(heads, len(slab.rows), sizes[0], sizes[1], width, channels)
    for i, stretch in enumerate(slab.columns):
        for keys, part in _parts(stretch, boxes[:, :, i], dim=4):
            bands[:, :, :, :, keys] += part
    frames = target.new_zeros(heads, sizes[0], height, width, channels)
    for i, stretch in enumerate(slab.rows):
        for keys, part in _parts(stretch, bands[:, i], dim=2):
            frames[:, :, keys] += part
    grid = target[:, spec.prefix :].unflatten(1, spec.kv_grid)
    for keys, part in _parts(slab.frames, frames, dim=1):
        grid[:, keys] += part


def _parts(stretch: Stretch, tensor: Tensor, *, dim: int) -> Iterator[tuple[slice, Tensor]]:
    """The runs of keys of a stretch and what belongs to them along `dim`."""
    parts = tensor.split([len(keys) for keys in stretch.keys], dim=dim)
    return zip(map(as_slice, stretch.keys), parts, strict=True)
