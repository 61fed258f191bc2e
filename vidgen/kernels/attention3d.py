"""`attention3d`: the one attention call of the library."""

import math
from typing import Literal, overload

import torch
from einops import rearrange
from torch import Tensor

from vidgen.kernels.backends import BACKENDS
from vidgen.kernels.checks import check_tensors
from vidgen.kernels.choice import choose, report
from vidgen.kernels.spec import AttentionSpec

Layout = Literal["bhnd", "bnhd"]
# Asked once: torch.compile of torch 2.11 cannot trace the question.
AUTOCAST_DEVICES = frozenset(filter(torch.amp.is_autocast_available, ("cpu", "cuda", "mps", "xpu", "hpu")))


@overload
def attention3d(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spec: AttentionSpec,
    *,
    scale: float | None = None,
    layout: Layout = "bhnd",
    backend: str = "auto",
    return_lse: Literal[False] = False,
) -> Tensor: ...


@overload
def attention3d(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spec: AttentionSpec,
    *,
    scale: float | None = None,
    layout: Layout = "bhnd",
    backend: str = "auto",
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def attention3d(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spec: AttentionSpec,
    *,
    scale: float | None = None,
    layout: Layout = "bhnd",
    backend: str = "auto",
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention with the visibility pattern of `spec`; differentiable, usable under torch.compile.

    q is `b h n d`, k `b g m d`, v `b g m e` with g dividing h (grouped queries), n = `spec.num_queries` and
    m = `spec.num_keys`, prefix first; layout "bnhd" has heads after tokens. `scale` defaults to 1 / sqrt(d); any finite
    number will do, also zero and negative ones.
    `backend` is a name of `BACKENDS` or "auto", which takes the first that can serve and pays (`vidgen.kernels.choice`;
    `explain` tells which and why). Returns the output in the layout of q and, with `return_lse`, the natural
    log-sum-exp of the visible scores, float32 `b h n`. A query that sees nothing would get 0 and -inf; no spec has such
    queries. Under autocast the computation is in autocast's dtype.
    Under torch.compile there is no graph break; say `dynamic=False`, because windows of symbolic sizes take a minute
    to trace (specs kept as attributes of a module are constants either way).
    ValueError: shapes that do not fit the spec, mixed devices or dtypes, a scale that is not finite, a backend that
    cannot serve (with its reason).
    """
    q, k, v = (_in_autocast_dtype(_heads_first(tensor, layout)) for tensor in (q, k, v))
    check_tensors(q, k, v, spec)
    q, scale = _with_positive_scale(q, q.shape[-1] ** -0.5 if scale is None else scale)
    if backend == "auto":
        backend = choose(q, k, v, spec, return_lse=return_lse)
    elif backend not in BACKENDS:
        raise ValueError(f"unknown attention backend {backend!r}; known are auto, {', '.join(BACKENDS)}")
    elif reason := BACKENDS[backend].unsupported(q, k, v, spec, return_lse=return_lse):
        raise ValueError(f'attention backend {backend} cannot serve this call: {reason}; use backend="auto"')
    output, lse = BACKENDS[backend].attend(q, k, v, spec, scale=scale, return_lse=return_lse)
    if layout == "bnhd":
        output = rearrange(output, "b h n d -> b n h d")
    if lse is None:
        return output
    return output, lse.float()


def explain(
    spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor, *, layout: Layout = "bhnd", return_lse: bool = False
) -> str:
    """Which backend `attention3d` would take for these tensors (meta tensors will do), why, and at what cost."""
    q, k, v = (_in_autocast_dtype(_heads_first(tensor, layout)) for tensor in (q, k, v))
    check_tensors(q, k, v, spec)
    batch, heads, _, head_dim = q.shape
    flops = batch * spec.flops(heads, head_dim)
    cost = f"{flops / 1e9:.3g} GFLOP forward for {batch} samples, {heads} heads of {head_dim}"
    return "\n".join([spec.explain(), cost, report(q, k, v, spec, return_lse=return_lse)])


def _with_positive_scale(q: Tensor, scale: float) -> tuple[Tensor, float]:
    """The same scores by a scale above zero: kernels find the largest score of a row before they scale it."""
    if not -math.inf < scale < math.inf:  # NaN fails too
        default = q.shape[-1] ** -0.5
        raise ValueError(f"scale must be a finite number, got {scale}; leave it out for 1 / sqrt(d) = {default:.4g}")
    if scale > 0:
        return q, scale
    return (-q, -scale) if scale < 0 else (q * 0, 1.0)


def _in_autocast_dtype(tensor: Tensor) -> Tensor:
    # Normalised queries and keys come in float32 beside values of 16 bits; backends get one dtype, SDPA's choice.
    device = tensor.device.type
    if device in AUTOCAST_DEVICES and torch.is_autocast_enabled(device) and tensor.dtype != torch.float64:
        return tensor.to(torch.get_autocast_dtype(device))
    return tensor


def _heads_first(tensor: Tensor, layout: Layout) -> Tensor:
    if tensor.ndim != 4:
        raise ValueError(f"attention3d expects tensors of 4 dimensions ({layout}), got shape {tuple(tensor.shape)}")
    if layout == "bhnd":
        return tensor
    if layout == "bnhd":
        return rearrange(tensor, "b n h d -> b h n d")
    raise ValueError(f'layout must be "bhnd" or "bnhd", got {layout!r}')
