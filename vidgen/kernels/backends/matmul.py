"""The backend for training short sequences on a CPU in bf16: plain products and a softmax.

In bf16, forward and backward, PyTorch's fused CPU attention takes 1.6 to 2.1 times as long at 320 tokens of 32
channels, 1.05 to 2.0 times at 512, and 0.5 to 1.7 times at 1024 (`eval/results/attention_cpu_short.csv`). The ranges
are the price of the scores' memory: the gain is small where the C library gives freed blocks back to the system (glibc
from 32 MiB on), and large where it keeps them. In fp32 there is nothing to gain. The scores are rounded to bf16, which
the fused kernel does not do: its error is about half of this one's.
"""

import torch
from torch import Tensor

from vidgen.kernels.spec import AttentionSpec

LARGEST_KEYS = 512


def unsupported(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, *, return_lse: bool) -> str | None:
    """Serves unmasked and plainly causal patterns where it is the faster one."""
    if return_lse:
        return "it does not return the log-sum-exp"
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return f"it pays on a CPU in bf16 only, and these are {q.dtype} on {q.device.type}"
    if not (torch.is_grad_enabled() and q.requires_grad):
        return "it pays where a backward pass follows"
    if spec.num_keys > LARGEST_KEYS:
        return f"{spec.num_keys} keys are more than {LARGEST_KEYS}, past which the fused kernel may be faster"
    if not (spec.sees_everything or spec.is_linear_causal):
        return "the pattern needs a mask"
    if q.shape[1] != k.shape[1]:
        return "queries share heads of keys"
    return None


def attend(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, *, scale: float, return_lse: bool
) -> tuple[Tensor, None]:
    """softmax(q kᵀ · scale) v, all in the inputs' dtype."""
    with torch.autocast(q.device.type, enabled=False):
        scores = (q * scale) @ k.transpose(-1, -2)
        if not spec.sees_everything:
            scores = scores + scores.new_full(scores.shape[-2:], float("-inf")).triu(1)
        return scores.softmax(dim=-1) @ v, None
