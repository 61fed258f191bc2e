"""Launching the Triton attention kernels on tensors of any strides."""

import contextlib
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from vidgen.kernels.blocks import BlockRows, block_lists
from vidgen.kernels.spec import AttentionSpec, Triple
from vidgen.kernels.tile_choice import choose_tilings
from vidgen.kernels.tiling import Tiling, token_index
from vidgen.kernels.triton.attention_backward import (
    attention_backward_keys,
    attention_backward_queries,
    attention_delta,
)
from vidgen.kernels.triton.attention_forward import attention_forward
from vidgen.kernels.triton.configs import AttentionConfig, KernelConfig, padded_head
from vidgen.kernels.triton.pattern import Pattern

CONTIGUOUS = torch.contiguous_format
LOG2_E = 1.4426950408889634
DELTA_BLOCK = 64


def forward(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, *, scale: float, config: AttentionConfig
) -> tuple[Tensor, Tensor]:
    """q `b h n d`, k and v `b g m d` -> output like q and the natural log-sum-exp `b h n`, float32."""
    output = result_like(q)
    q, k, v = (_readable(tensor) for tensor in (q, k, v))
    batch, heads, queries, _ = q.shape
    lse = q.new_empty(batch, heads, queries, dtype=torch.float32)
    kernel = config.forward
    pattern = _pattern(spec, kernel)
    lists = block_lists(spec, pattern.query_tiling, pattern.key_tiling, q.device).by_query
    walked_k, walked_v = (_walked(tensor, pattern.key_tiling, spec.kv_grid, spec.prefix, kernel) for tensor in (k, v))
    with _on_device(q):
        attention_forward[(pattern.queries.blocks * heads * batch,)](
            _strided(q), *walked_k, *walked_v, _strided(output), lse,
            _fields(lists), heads, heads // k.shape[1], scale * LOG2_E, **_constants(pattern, q, kernel),
        )  # fmt: skip
    return output, lse


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,
    lse: Tensor,
    d_output: Tensor,
    d_lse: Tensor,
    spec: AttentionSpec,
    *,
    scale: float,
    config: AttentionConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v from those of `forward`'s two results; the same bits in every run."""
    d_q, d_k, d_v = (result_like(tensor) for tensor in (q, k, v))
    q, k, v, d_output = (_readable(tensor) for tensor in (q, k, v, d_output))
    batch, heads, queries, head_size = q.shape
    key_heads = k.shape[1]
    delta = torch.empty_like(lse)
    with _on_device(q):
        attention_delta[(-(-queries // DELTA_BLOCK) * heads * batch,)](
            _strided(output), _strided(d_output), d_lse.contiguous(), delta, heads, queries,
            HEAD=head_size, PADDED_HEAD=padded_head(head_size), BLOCK=DELTA_BLOCK, **_options(warps=4, stages=1),
        )  # fmt: skip

        kernel = config.backward_keys
        pattern = _pattern(spec, kernel)
        lists = block_lists(spec, pattern.query_tiling, pattern.key_tiling, q.device).by_key
        walked_q, walked_d_output = (
            _walked(tensor, pattern.query_tiling, spec.grid, spec.query_prefix, kernel) for tensor in (q, d_output)
        )
        attention_backward_keys[(pattern.keys.blocks * key_heads * batch,)](
            *walked_q, _strided(k), _strided(v), *walked_d_output, lse, delta, _strided(d_k), _strided(d_v),
            _fields(lists), heads, heads // key_heads, scale, scale * LOG2_E, **_constants(pattern, q, kernel),
        )  # fmt: skip

        kernel = config.backward_queries
        pattern = _pattern(spec, kernel)
        lists = block_lists(spec, pattern.query_tiling, pattern.key_tiling, q.device).by_query
        walked_k, walked_v = (
            _walked(tensor, pattern.key_tiling, spec.kv_grid, spec.prefix, kernel) for tensor in (k, v)
        )
        attention_backward_queries[(pattern.queries.blocks * heads * batch,)](
            _strided(q), *walked_k, *walked_v, _strided(d_output), lse, delta, _strided(d_q),
            _fields(lists), heads, heads // key_heads, scale, scale * LOG2_E, **_constants(pattern, q, kernel),
        )  # fmt: skip
    return d_q, d_k, d_v


def result_like(tensor: Tensor) -> Tensor:
    """Memory for a result in the order of `tensor`'s axes, with the channels side by side whatever that order is."""
    return torch.empty_like(tensor, memory_format=torch.preserve_format if tensor.stride(3) == 1 else CONTIGUOUS)


@lru_cache(maxsize=256)
def _pattern(spec: AttentionSpec, kernel: KernelConfig) -> Pattern:
    return Pattern(spec, *choose_tilings(spec, kernel.queries, kernel.keys))


def _constants(pattern: Pattern, q: Tensor, kernel: KernelConfig) -> dict[str, Any]:
    """Compile-time constants and compiler options of a kernel."""
    return {
        "PATTERN": pattern,
        "HEAD": q.shape[-1],
        "PADDED_HEAD": padded_head(q.shape[-1]),
        "DESCRIPTORS": kernel.descriptors,
        **_options(warps=kernel.warps, stages=kernel.stages),
    }


def _options(*, warps: int, stages: int) -> dict[str, Any]:
    """Compiler options; the default of FP fusion changes with Triton 3.10, so it is said here."""
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}


def _readable(tensor: Tensor) -> Tensor:
    """Rows of consecutive channels at addresses that 16-byte loads and descriptors take."""
    steps = [step * tensor.element_size() for step in tensor.stride()[:3]]
    if tensor.stride(3) == 1 and tensor.data_ptr() % 16 == 0 and all(step % 16 == 0 for step in steps):
        return tensor
    # not .contiguous(), which keeps odd strides of axes of length 1
    return tensor.clone(memory_format=CONTIGUOUS)


def _strided(tensor: Tensor) -> tuple[Any, tuple[int, ...]]:
    """What kernels take: the pointer and the strides of sample, head and row."""
    return tensor, tensor.stride()[:3]


def _walked(
    tensor: Tensor, tiling: Tiling, grid: Triple, prefix: int, kernel: KernelConfig
) -> tuple[Any, tuple[int, ...]]:
    """The tensor that a kernel walks over; with descriptors, which read only consecutive rows, packed in tile order."""
    if not kernel.descriptors:
        return _strided(tensor)
    if tiling.tile is not None:
        tensor = pack(tensor, tiling, grid, prefix)
    block = [1, 1, tiling.block, padded_head(tensor.shape[3])]
    return TensorDescriptor.from_tensor(tensor, block), (0, 0, 0)


def pack(tensor: Tensor, tiling: Tiling, grid: Triple, prefix: int) -> Tensor:
    """`b h n d` -> `b h (blocks slots) d`: every block's tokens side by side, empty slots filled with token 0.

    A copy that a caller who keeps tokens in this order could spare; eval/kernels.py measures what it costs.
    """
    return tensor.index_select(2, token_index(tiling, grid, prefix, tensor.device))


def _fields(rows: BlockRows) -> tuple[Tensor, ...]:
    return (rows.full_start, rows.full, rows.partial_start, rows.partial, rows.order)


def _on_device(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
