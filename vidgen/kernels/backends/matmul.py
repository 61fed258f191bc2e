"""The backend for training short sequences on a CPU in bf16: plain products and a softmax.

PyTorch's fused CPU attention takes 1.9 times as long forward and backward at 320 tokens of 32 channels in bf16
(`eval/results/cpu_attention.csv`); past a few hundred keys the scores no longer fit the cache, and it wins.
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
        return f"{spec.num_keys} keys are more than {LARGEST_KEYS}, past which the fused kernel is faster"
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
