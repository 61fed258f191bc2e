"""The native CUDA C++ backend: forward only, for windows of tiles and frame-causal patterns; never chosen by `auto`.

`auto` prefers Triton until a measurement on a GPU shows this one to be faster (eval/kernels.py times both).
"""

import torch
from torch import Tensor

from vidgen.kernels.checks import head_size_reason
from vidgen.kernels.cuda.compile import DTYPES, HEAD_SIZES, missing
from vidgen.kernels.flat_spec import constants_of, numbers_of, spec_of
from vidgen.kernels.spec import AttentionSpec

# known at import: torch.compile cannot trace the question
MISSING = missing()


def unsupported(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, *, return_lse: bool) -> str | None:
    """Serves patterns with few partial blocks on CUDA from Ampere on, without gradients, in 16 bits."""
    if MISSING is not None:
        return MISSING
    if q.device.type != "cuda":
        return f"its kernels run on CUDA, not on {q.device.type}"
    if not _has_tensor_cores(q.device):
        return "it needs a GPU of compute capability 8.0 (Ampere) or newer"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (q, k, v)):
        return "it has no backward pass; use the triton backend, or torch.no_grad()"
    dtype = _dtype(q)
    if dtype not in DTYPES:
        return f"it takes bfloat16 and float16, not {dtype}"
    return head_size_reason(q, v, HEAD_SIZES) or _unsuitable(constants_of(spec))


def attend(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, *, scale: float, return_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """The operator of `vidgen.kernels.cuda`; the first call for a head size and dtype compiles for a second."""
    if scale <= 0:
        raise ValueError(f"the cuda backend needs a positive scale, got {scale}; negate q instead")
    # imported here: only a call needs the operator, and most programs never make one
    from vidgen.kernels.cuda.operator import attention

    output, lse = attention(*(tensor.to(_dtype(q)) for tensor in (q, k, v)), numbers_of(spec), scale)
    return output, lse if return_lse else None


@torch.compiler.assume_constant_result
def _has_tensor_cores(device: torch.device) -> bool:
    # `explain` may ask about a GPU on a machine without one
    return not torch.cuda.is_available() or torch.cuda.get_device_capability(device) >= (8, 0)


@torch.compiler.assume_constant_result
def _unsuitable(numbers: tuple[int, ...]) -> str | None:
    from vidgen.kernels.cuda.plan import unsuitable

    return unsuitable(spec_of(numbers))


def _dtype(q: Tensor) -> torch.dtype:
    """Under autocast normalised queries are float32 beside values of 16 bits; like SDPA, take autocast's dtype."""
    device = q.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else q.dtype
