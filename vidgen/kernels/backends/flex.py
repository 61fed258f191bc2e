"""The FlexAttention backend: any spec on CUDA, forward and backward, skipping blocks that see nothing."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, flex_attention

from vidgen.kernels.masks import block_mask
from vidgen.kernels.spec import AttentionSpec

# Each spec and shape is a compilation. Dynamo gives up on a function after eight and runs it eagerly from then on,
# which for FlexAttention means a tensor of all scores: many more are allowed, and one too many is an error.
MOST_COMPILATIONS = 1024


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
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=False)


def compiled_flex_attention(*arguments: Any, **options: Any) -> Any:
    """`flex_attention` as a kernel, compiled for every new mask and shape; RuntimeError after `MOST_COMPILATIONS`."""
    with torch._dynamo.config.patch(
        recompile_limit=MOST_COMPILATIONS,
        accumulated_recompile_limit=MOST_COMPILATIONS,
        fail_on_recompile_limit_hit=True,
    ):
        return _compiled()(*arguments, **options)


def attend(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, *, scale: float, return_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """FlexAttention with the block lists of the spec."""
    run = flex_attention if torch.compiler.is_compiling() else compiled_flex_attention
    grouped = q.shape[1] != k.shape[1]
    blocks = block_mask(spec, q.device)
    if not return_lse:
        return run(q, k, v, block_mask=blocks, scale=scale, enable_gqa=grouped), None
    output, auxiliary = run(
        q, k, v, block_mask=blocks, scale=scale, enable_gqa=grouped, return_aux=AuxRequest(lse=True)
    )
    return output, auxiliary.lse
