"""Masks built once per (spec, device) and kept for reuse, in caches of bounded size."""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from vidgen.kernels.spec import AttentionSpec

# A model alternates between a handful of patterns; a mask of 16k tokens is 256 MB, so more entries would cost memory.
CACHED_MASKS = 8


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


@lru_cache(maxsize=CACHED_MASKS)
def block_mask(spec: AttentionSpec, device: torch.device) -> BlockMask:
    """FlexAttention's block lists of the spec."""
    return create_block_mask(
        spec.mask_mod(), B=None, H=None, Q_LEN=spec.num_queries, KV_LEN=spec.num_keys, device=str(device)
    )
