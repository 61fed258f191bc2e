"""The NATTEN backend, where that library is installed: neighbourhoods and tiles on CUDA (arXiv 2504.16922)."""

import importlib
import importlib.util

import torch
from einops import rearrange
from torch import Tensor

from vidgen.kernels.axis import AXES, AxisRule
from vidgen.kernels.spec import AttentionSpec

INSTALLED = importlib.util.find_spec("natten") is not None


def unsupported(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, *, return_lse: bool) -> str | None:
    """Serves windows of at least two tokens along each axis that are moved inside at the border, or are causal."""
    if not INSTALLED:
        return "NATTEN is not installed; see natten.org for a build that fits your PyTorch"
    if return_lse:
        return "not every version of NATTEN returns the log-sum-exp"
    if q.device.type != "cuda" or q.dtype not in (torch.float16, torch.bfloat16):
        return f"NATTEN's kernels take float16 and bfloat16 on CUDA; these are {q.dtype} on {q.device.type}"
    if q.shape[1] != k.shape[1]:
        return "not every version of NATTEN lets heads of queries share keys"
    if spec.query_prefix:
        return 'NATTEN takes a prefix as keys only; use prefix_mode="kv_only"'
    if spec.kv_grid != spec.grid or spec.sink_frames or spec.causal_group > 1:
        return "NATTEN has no cache offset, sink frames or causal groups"
    for axis, name in enumerate(AXES):
        if reason := _axis_reason(spec.axis(axis), spec.shift[axis]):
            return f"along {name} {reason}"
    return None


def _axis_reason(rule: AxisRule, shift: int) -> str | None:
    if _kernel_size(rule) < 2:
        return "the window is one token, and NATTEN's are two or more"
    if shift:
        return "the windows are shifted"
    if rule.window is None:
        return f"size {rule.size} is no multiple of the dilation" if rule.size % rule.dilation else None
    if rule.causal:
        return "the causal windows belong to groups of queries" if rule.granularity > 1 else None
    if not rule.clamped:
        return "windows are cut at the border, and NATTEN moves them inside"
    # NATTEN centres the window on the middle query of a group
    centred = rule.width // 2 - rule.granularity // 2
    return None if rule.window[0] == centred else f"the window is not centred: {rule.window[0]} before, not {centred}"


def _kernel_size(rule: AxisRule) -> int:
    return rule.size // rule.dilation if rule.window is None else min(rule.width, rule.size // rule.dilation)


def attend(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, *, scale: float, return_lse: bool
) -> tuple[Tensor, None]:
    """`natten.na3d` with the prefix as additional keys and values."""
    frames, height, width = spec.grid
    query, key, value = (
        rearrange(tensor, "b h (t y x) d -> b t y x h d", t=frames, y=height, x=width)
        for tensor in (q, k[:, :, spec.prefix :], v[:, :, spec.prefix :])
    )
    text = [rearrange(tensor[:, :, : spec.prefix], "b h p d -> b p h d") for tensor in (k, v)]
    output = importlib.import_module("natten").na3d(
        query,
        key,
        value,
        kernel_size=tuple(_kernel_size(spec.axis(axis)) for axis in range(3)),
        stride=spec.granularity,
        dilation=spec.dilation,
        is_causal=spec.causal,
        scale=scale,
        additional_keys=text[0] if spec.prefix else None,
        additional_values=text[1] if spec.prefix else None,
    )
    return rearrange(output, "b t y x h d -> b h (t y x) d"), None
