"""Attention whose mask is data and differs from sample to sample: words of a prompt, tokens that are visible."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vidgen.kernels.backends.matmul import LARGEST_KEYS, products


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q kᵀ / √d + mask) v, as `scaled_dot_product_attention` with `attn_mask`.

    Training on a CPU in bf16 takes plain products up to 512 keys: PyTorch's fused backward pass is several times as
    slow there, and took 13 % of a training step with 17 words to look at (`eval/ops.py`).

    Args:
        q: `b h n d`.
        k, v: `b h m d`.
        mask: which keys are seen (bool) or a bias on the scores, broadcast to `b h n m`; every query sees a key.
    """
    on_cpu = q.device.type == "cpu"
    if on_cpu and mask is not None and mask.dtype == torch.bool and not torch.compiler.is_compiling() and mask.all():
        mask = None  # nothing is hidden, and looking for it costs less than the mask
    trained = torch.is_grad_enabled() and q.requires_grad and not (mask is not None and mask.requires_grad)
    short = k.shape[2] <= LARGEST_KEYS and q.shape[1] == k.shape[1]
    if not (on_cpu and q.dtype == torch.bfloat16 and trained and short):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    if mask is not None:
        seen = torch.zeros(mask.shape).masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else mask.float()
        mask = seen[(None,) * (4 - seen.ndim)]
    return products(q, k, v, mask, scale=q.shape[-1] ** -0.5)
