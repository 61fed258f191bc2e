"""Masks built once per (spec, device) and kept for reuse, in caches of bounded size."""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from vidgen.kernels.blocks import FULL, PARTIAL, run_map
from vidgen.kernels.flat_spec import constants_of, spec_of
from vidgen.kernels.spec import AttentionSpec

# A model alternates between a handful of patterns; a mask of 16k tokens is 256 MB, so more entries would cost memory.
CACHED_MASKS = 8
# Tokens in a block of FlexAttention.
FLEX_BLOCK = 128


@lru_cache(maxsize=CACHED_MASKS)
def _stored_dense_mask(spec: AttentionSpec, device: torch.device) -> Tensor:
    # A mask first needed under inference_mode would otherwise be an inference tensor, which autograd refuses later.
    with torch.inference_mode(False):
        return spec.dense_mask(device)


def dense_mask(spec: AttentionSpec, device: torch.device) -> Tensor:
    """Boolean (num_queries, num_keys) mask of the spec; under torch.compile it becomes part of the graph."""
    if torch.compiler.is_compiling():
        return spec.dense_mask(device)
    return _stored_dense_mask(spec, device)


def _make_block_mask(spec: AttentionSpec, device: torch.device) -> BlockMask:
    seen = _run_map(constants_of(spec), device)
    return to_block_mask(seen, spec.mask_mod(), FLEX_BLOCK, lengths=(spec.num_queries, spec.num_keys))


@lru_cache(maxsize=CACHED_MASKS)
def _stored_block_mask(spec: AttentionSpec, device: torch.device) -> BlockMask:
    with torch.inference_mode(False):  # as above
        return _make_block_mask(spec, device)


def block_mask(spec: AttentionSpec, device: torch.device) -> BlockMask:
    """FlexAttention's block lists of the spec, by intervals; under torch.compile constants of the graph."""
    if torch.compiler.is_compiling():
        return _make_block_mask(spec, device)
    return _stored_block_mask(spec, device)


@torch.compiler.assume_constant_result
def _run_map(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    # interval arithmetic has shapes that no graph can hold
    with torch.inference_mode(False):
        return run_map(spec_of(numbers), FLEX_BLOCK).to(device)


def to_block_mask(seen: Tensor, mask_mod: Callable[..., Tensor], block: int, *, lengths: tuple[int, int]) -> BlockMask:
    """A map of blocks (`vidgen.kernels.blocks`) as FlexAttention takes it, for so many queries and keys."""
    lists = []
    for level in (PARTIAL, FULL):
        members = (seen == level)[None, None]
        # a stable sort of "not a member" puts the members first, in order
        lists += [members.sum(dim=-1).int(), (~members).byte().argsort(dim=-1, stable=True).int()]
    return BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=block, mask_mod=mask_mod, seq_lengths=lengths)
