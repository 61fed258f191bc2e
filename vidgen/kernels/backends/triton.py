"""The Triton backend: any spec on CUDA, forward and backward, at the cost of the blocks that see something."""

import importlib.util
import os

import torch
from torch import Tensor

from vidgen.kernels.checks import head_size_reason
from vidgen.kernels.spec import AttentionSpec

# known at import: kernels are decorated then, and torch.compile cannot trace the questions
INSTALLED = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
HEAD_SIZES = (32, 64, 96, 128)


def unsupported(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, *, return_lse: bool) -> str | None:
    """Serves every spec on CUDA (and on CPU under Triton's interpreter) with head sizes of 32, 64, 96 and 128."""
    if not INSTALLED:
        return "Triton is not installed; it comes with PyTorch on Linux"
    if q.device.type != "cuda" and not (INTERPRETED and q.device.type == "cpu"):
        return f"Triton kernels run on CUDA, not on {q.device.type} (for tests on CPU, start with TRITON_INTERPRET=1)"
    if q.device.type == "cuda" and not _has_tensor_cores(q.device):
        return "it needs a GPU of compute capability 8.0 (Ampere) or newer"
    if q.dtype not in DTYPES:
        return f"it takes float16, bfloat16 and float32, not {q.dtype}"
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return "Triton's interpreter computes bfloat16 wrongly; use float16 or float32 there"
    return head_size_reason(q, v, HEAD_SIZES)


def attend(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, *, scale: float, return_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """The operator of `vidgen.kernels.triton`, which compiles for each spec and shape once."""
    # imported here: Triton is an optional dependency, and decorates kernels for the interpreter at import
    from vidgen.kernels.triton.operators import attention

    if scale <= 0:
        raise ValueError(f"the Triton backend needs a positive scale, got {scale}; negate q instead")
    output, lse = attention(q, k, v, spec, scale)
    return output, lse if return_lse else None


@torch.compiler.assume_constant_result
def _has_tensor_cores(device: torch.device) -> bool:
    # `explain` may ask about a GPU on a machine without one
    return not torch.cuda.is_available() or torch.cuda.get_device_capability(device) >= (8, 0)
