"""Attention over video tokens: one description of every pattern (`AttentionSpec`), one call (`attention3d`)."""

from vidgen.kernels.attention3d import attention3d, explain
from vidgen.kernels.spec import AttentionSpec

__all__ = ["AttentionSpec", "attention3d", "explain"]
