"""The backend for training short sequences on a CPU in bf16: plain products and a softmax.

In bf16, forward and backward, PyTorch's fused CPU attention takes 1.5 to 1.7 times as long at 320 tokens and 1.4 to 1.5
times at 512 (`eval/attention_cpu_short.py`). Scores are float32 and stay in the processor's cache, a few heads at a
time: in bf16, all at once, they would be no faster to handle and the error would be twice that of the fused kernel. In
fp32 there is nothing to gain.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vidgen.kernels.spec import AttentionSpec

LARGEST_KEYS = 512
# Scores in float32 at a time: 2 MiB.
CHUNK_SCORES = 2**19

_softmax_backward = torch.ops.aten._softmax_backward_data.default


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
    """softmax(q kᵀ · scale) v."""
    causal = None if spec.sees_everything else torch.full((1, 1, *q.shape[2:3], *k.shape[2:3]), float("-inf")).triu(1)
    return products(q, k, v, causal, scale=scale), None


def products(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *, scale: float) -> Tensor:
    """softmax(q kᵀ · scale + bias) v: q `b h n d`, k and v `b h m d`, bias `b|1 h|1 n|1 m|1` without gradient."""
    if bias is not None:
        bias = bias.expand(*q.shape[:2], -1, -1).flatten(0, 1) if bias.shape[:2] != (1, 1) else bias[0]
    with torch.autocast(q.device.type, enabled=False):
        flat = [tensor.flatten(0, 1) for tensor in (q, k, v)]
        return _Products.apply(*flat, bias, scale).unflatten(0, q.shape[:2])  # type: ignore[misc]


class _Products(torch.autograd.Function):
    """q `x n d`, k and v `x m d`, bias `x|1 n|1 m` -> `x n d`; keeps the probabilities for the backward pass."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        probabilities = q.new_empty(*q.shape[:2], k.shape[1])
        for part in _parts(probabilities):
            scores = (q[part].float() * scale) @ k[part].float().transpose(1, 2)
            if bias is not None:
                scores += bias if len(bias) == 1 else bias[part]
            probabilities[part] = scores.softmax(dim=-1)
        ctx.save_for_backward(q, k, v, probabilities)
        ctx.scale = scale
        return probabilities @ v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, probabilities = ctx.saved_tensors
        grad_q, grad_k = torch.empty_like(q), torch.empty_like(k)
        for part in _parts(probabilities):
            upstream = grad[part].float() @ v[part].float().transpose(1, 2)
            grad_scores = _softmax_backward(upstream, probabilities[part].float(), -1, torch.float32).to(q.dtype)
            grad_q[part] = (grad_scores @ k[part]) * ctx.scale
            grad_k[part] = (grad_scores.transpose(1, 2) @ q[part]) * ctx.scale
        return grad_q, grad_k, probabilities.transpose(1, 2) @ grad, None, None


def _parts(scores: Tensor) -> list[slice]:
    """A few samples and heads at a time; all at once under torch.compile, which would write the loop out."""
    step = len(scores) if torch.compiler.is_compiling() else max(1, CHUNK_SCORES // scores[0].numel())
    return [slice(first, first + step) for first in range(0, len(scores), step)]
