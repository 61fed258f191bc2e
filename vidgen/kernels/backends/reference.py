"""The reference backend: masked attention in float64, slow and right; every other backend is compared with it."""

import torch
from einops import einsum, repeat
from torch import Tensor

from vidgen.kernels.masks import dense_mask
from vidgen.kernels.spec import AttentionSpec


def unsupported(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, *, return_lse: bool) -> str | None:
    """Serves everything."""
    return None


def attend(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, *, scale: float, return_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """q `b h n d`, k `b g m d`, v `b g m e` -> output `b h n e` in q's dtype and the natural log-sum-exp `b h n`.

    A query that sees nothing gives 0, log-sum-exp -inf and no gradient. No spec has such queries; a mask may.
    """
    groups = q.shape[1] // k.shape[1]
    keys = repeat(k.double(), "b g m d -> b (g r) m d", r=groups)
    values = repeat(v.double(), "b g m d -> b (g r) m d", r=groups)
    scores = einsum(q.double() * scale, keys, "b h n d, b h m d -> b h n m")
    scores = scores.masked_fill(~dense_mask(spec, q.device), float("-inf"))
    lse = torch.logsumexp(scores, dim=-1)
    finite = lse.masked_fill(lse == float("-inf"), 0.0)  # or -inf - -inf would be NaN
    output = einsum((scores - finite[..., None]).exp(), values, "b h n m, b h m d -> b h n d")
    return output.to(q.dtype), lse.float() if return_lse else None
