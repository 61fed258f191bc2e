"""Attention over video tokens, one description (`AttentionSpec`) and one call (`attention3d`); fused ops."""

from vidgen.kernels.attention3d import attention3d, explain
from vidgen.kernels.masked_attention import masked_attention
from vidgen.kernels.ops import (
    binary_code_distribution,
    binary_entropy_stats,
    code_entropy,
    gated_residual,
    gated_silu,
    modulate,
    norm_rope,
    norm_silu_cache,
    qk_norm_rope3d,
    qkv_norm_rope,
    vq_assign,
)
from vidgen.kernels.spec import AttentionSpec

__all__ = [
    "AttentionSpec",
    "attention3d",
    "binary_code_distribution",
    "binary_entropy_stats",
    "code_entropy",
    "explain",
    "gated_residual",
    "gated_silu",
    "masked_attention",
    "modulate",
    "norm_rope",
    "norm_silu_cache",
    "qk_norm_rope3d",
    "qkv_norm_rope",
    "vq_assign",
]
