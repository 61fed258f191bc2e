"""Ops worth fusing, each the equal of its plain torch form: entropy of codes, nearest code, norms around other work."""

from vidgen.kernels.ops.binary_entropy import binary_code_distribution, binary_entropy_stats, code_entropy
from vidgen.kernels.ops.gated_silu import gated_silu
from vidgen.kernels.ops.modulation import gated_residual, modulate
from vidgen.kernels.ops.nearest_code import vq_assign
from vidgen.kernels.ops.norm_silu import norm_silu_cache
from vidgen.kernels.ops.qk_norm_rope import norm_rope, qk_norm_rope3d
from vidgen.kernels.ops.qkv_norm_rope import qkv_norm_rope

__all__ = [
    "binary_code_distribution",
    "binary_entropy_stats",
    "code_entropy",
    "gated_residual",
    "gated_silu",
    "modulate",
    "norm_rope",
    "norm_silu_cache",
    "qk_norm_rope3d",
    "qkv_norm_rope",
    "vq_assign",
]
