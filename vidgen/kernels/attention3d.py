"""`attention3d`: the one attention call of the library, and the rule by which it picks a backend."""

from typing import Literal, overload

import torch
from einops import rearrange
from torch import Tensor

from vidgen.kernels.backends import BACKENDS
from vidgen.kernels.spec import AttentionSpec

Layout = Literal["bhnd", "bnhd"]

# The order in which `auto` asks: no mask at all, then a kernel that skips hidden blocks, then the dense mask, and the
# reference for what nothing else returns (the log-sum-exp on CPU).
AUTO_ORDER = ("matmul", "sdpa_reshape", "flex", "sdpa_dense", "reference")
# Below this many keys one dense masked call is as fast as FlexAttention and needs no compilation.
FLEX_SMALLEST_KEYS = 1024


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
    m = `spec.num_keys`, prefix first; layout "bnhd" has heads after tokens. `scale` defaults to 1 / sqrt(d).
    `backend` is a name of `BACKENDS` or "auto": the first of `sdpa_reshape`, `flex` (CUDA, 1024 keys or more),
    `sdpa_dense`, `reference` that can serve. Returns the output in the layout of q and, with `return_lse`, the natural
    log-sum-exp of the visible scores, float32 `b h n`.
    Under torch.compile there is no graph break; say `dynamic=False`, because windows of symbolic sizes take a minute
    to trace (specs kept as attributes of a module are constants either way).
    ValueError: shapes that do not fit the spec, mixed devices or dtypes, a backend that cannot serve (with its reason).
    """
    q, k, v = (_heads_first(tensor, layout) for tensor in (q, k, v))
    _check(q, k, v, spec)
    if backend == "auto":
        backend = _choose(q, k, v, spec, return_lse=return_lse)
    elif backend not in BACKENDS:
        raise ValueError(f"unknown attention backend {backend!r}; known are auto, {', '.join(BACKENDS)}")
    elif reason := BACKENDS[backend].unsupported(q, k, v, spec, return_lse=return_lse):
        raise ValueError(f'attention backend {backend} cannot serve this call: {reason}; use backend="auto"')
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    output, lse = BACKENDS[backend].attend(q, k, v, spec, scale=scale, return_lse=return_lse)
    if layout == "bnhd":
        output = rearrange(output, "b h n d -> b n h d")
    if lse is None:
        return output
    return output, lse


def explain(
    spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor, *, layout: Layout = "bhnd", return_lse: bool = False
) -> str:
    """Which backend `attention3d` would take for these tensors (meta tensors will do), why, and at what cost."""
    q, k, v = (_heads_first(tensor, layout) for tensor in (q, k, v))
    _check(q, k, v, spec)
    chosen = _choose(q, k, v, spec, return_lse=return_lse)
    batch, heads, _, head_dim = q.shape
    flops = batch * spec.flops(heads, head_dim)
    lines = [spec.explain(), f"{flops / 1e9:.3g} GFLOP forward for {batch} samples, {heads} heads of {head_dim}"]
    lines.append(f"backend {chosen}: the first of {', '.join(AUTO_ORDER)} that can serve")
    for name in AUTO_ORDER:
        if name == chosen:
            continue
        reason = _refusal(name, q, k, v, spec, return_lse=return_lse)
        lines.append(f"  {name}: {reason or 'could serve, comes later in the order'}")
    return "\n".join(lines)


def _refusal(name: str, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, *, return_lse: bool) -> str | None:
    """Why `auto` passes over a backend: it cannot serve, or it would not pay."""
    reason = BACKENDS[name].unsupported(q, k, v, spec, return_lse=return_lse)
    if reason is None and name == "flex" and spec.num_keys < FLEX_SMALLEST_KEYS:
        return f"{spec.num_keys} keys are fewer than {FLEX_SMALLEST_KEYS}, where compiling it starts to pay"
    return reason


def _choose(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, *, return_lse: bool) -> str:
    for name in AUTO_ORDER:
        if _refusal(name, q, k, v, spec, return_lse=return_lse) is None:
            return name
    raise AssertionError("the reference backend serves everything")


def _heads_first(tensor: Tensor, layout: Layout) -> Tensor:
    if tensor.ndim != 4:
        raise ValueError(f"attention3d expects tensors of 4 dimensions ({layout}), got shape {tuple(tensor.shape)}")
    if layout == "bhnd":
        return tensor
    if layout == "bnhd":
        return rearrange(tensor, "b n h d -> b h n d")
    raise ValueError(f'layout must be "bhnd" or "bnhd", got {layout!r}')


def _check(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> None:
    if q.shape[2] != spec.num_queries:
        raise ValueError(
            f"q has {q.shape[2]} tokens but the spec has {spec.num_queries} queries "
            f"({spec.query_prefix} prefix + grid {'x'.join(map(str, spec.grid))})"
        )
    for name, tensor in (("k", k), ("v", v)):
        if tensor.shape[2] != spec.num_keys:
            raise ValueError(
                f"{name} has {tensor.shape[2]} tokens but the spec has {spec.num_keys} keys "
                f"({spec.prefix} prefix + grid {'x'.join(map(str, spec.kv_grid))})"
            )
        if tensor.shape[0] != q.shape[0]:
            raise ValueError(f"{name} has batch {tensor.shape[0]}, q has {q.shape[0]}; they must be equal")
        if tensor.device != q.device:
            raise ValueError(f"{name} is on {tensor.device}, q on {q.device}; move them to one device")
        # Under autocast normalised queries and keys are float32 beside bfloat16 values; SDPA then casts all three.
        if tensor.dtype != q.dtype and not torch.is_autocast_enabled(q.device.type):
            raise ValueError(f"{name} is {tensor.dtype}, q is {q.dtype}; cast them to one dtype")
    if k.shape[1] != v.shape[1] or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"k and v need equally many heads, a divisor of q's {q.shape[1]}; got {k.shape[1]} and {v.shape[1]}"
        )
    if q.shape[3] != k.shape[3]:
        raise ValueError(f"q and k need equal head sizes, got {q.shape[3]} and {k.shape[3]}")
