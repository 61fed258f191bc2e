"""The FlexAttention backend: any spec on CUDA, forward and backward, skipping blocks that see nothing."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, flex_attention

from vidgen.kernels.masks import block_mask
from vidgen.kernels.spec import AttentionSpec


def unsupported(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, *, return_lse: bool) -> str | None:
    """Serves every spec on CUDA with head sizes of at least 16."""
    if q.device.type != "cuda":
        return f"FlexAttention has no backward on {q.device.type}; it is used on CUDA only"
    if q.dtype == torch.float64:
        return "FlexAttention does not take float64"
    if min(q.shape[-1], v.shape[-1]) < 16:
        return f"FlexAttention needs head sizes of at least 16, got {q.shape[-1]}"
    return None


@lru_cache(maxsize=1)
def _compiled_flex_attention() -> Any:
    # Eager FlexAttention materialises all scores; only the compiled one is a kernel.
    return torch.compile(flex_attention, dynamic=False)


def attend(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, *, scale: float, return_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """FlexAttention with the block lists of the spec."""
    run = flex_attention if torch.compiler.is_compiling() else _compiled_flex_attention()
    grouped = q.shape[1] != k.shape[1]
    blocks = block_mask(spec, q.device)
    if not return_lse:
        return run(q, k, v, block_mask=blocks, scale=scale, enable_gqa=grouped), None
    output, auxiliary = run(
        q, k, v, block_mask=blocks, scale=scale, enable_gqa=grouped, return_aux=AuxRequest(lse=True)
    )
    return output, auxiliary.lse
