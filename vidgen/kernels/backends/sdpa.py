"""The two backends on PyTorch's scaled dot product attention: with a dense mask, and with separate windows as batch."""

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from vidgen.kernels.masks import dense_mask
from vidgen.kernels.spec import AttentionSpec
from vidgen.kernels.windows import WindowBatch, separate_windows

NO_LSE = "PyTorch's SDPA does not return the log-sum-exp"


def dense_unsupported(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, *, return_lse: bool) -> str | None:
    """Serves every spec, but not the log-sum-exp."""
    return NO_LSE if return_lse else None


def dense_attend(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, *, scale: float, return_lse: bool
) -> tuple[Tensor, None]:
    """One SDPA call over all tokens with the dense boolean mask of the spec."""
    return _sdpa(q, k, v, mask=dense_mask(spec, q.device), scale=scale), None


def reshape_unsupported(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, *, return_lse: bool) -> str | None:
    """Serves specs that fall apart into separate windows, and those that need no mask at all."""
    if return_lse:
        return NO_LSE
    if spec.is_linear_causal:
        return None
    windows = separate_windows(spec)
    if isinstance(windows, str):
        return windows
    only = windows[0].inside
    if windows[0].count == (1, 1, 1) and len(windows) == 1 and only is not None and not only.is_linear_causal:
        return "the pattern is one window that needs a mask"
    return None


def reshape_attend(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, *, scale: float, return_lse: bool
) -> tuple[Tensor, None]:
    """SDPA with the separate windows in the batch; ragged windows at the borders are batches of their own."""
    if spec.is_linear_causal:
        return _sdpa(q, k, v, is_causal=True, scale=scale), None
    if spec.sees_everything:
        return _sdpa(q, k, v, scale=scale), None
    text, video = q[:, :, : spec.query_prefix], q[:, :, spec.query_prefix :]
    output = _attend_windows(video, k, v, spec, scale=scale)
    if spec.query_prefix:
        seen = spec.num_keys if spec.prefix_mode == "bidir" else spec.prefix
        is_causal = spec.prefix_mode == "causal"
        text = _sdpa(text, k[:, :, :seen], v[:, :, :seen], is_causal=is_causal, scale=scale)
        output = torch.cat([text, output], dim=2)
    return output, None


def _sdpa(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, is_causal: bool = False, scale: float
) -> Tensor:
    if q.shape[1] == k.shape[1]:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, scale=scale)
    # A branch, because SDPA takes no symbolic boolean, which the comparison is under torch.compile's dynamic shapes.
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, scale=scale, enable_gqa=True)


def _attend_inside(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec | None, *, scale: float) -> Tensor:
    if spec is None:
        return _sdpa(q, k, v, scale=scale)
    if spec.is_linear_causal:
        return _sdpa(q, k, v, is_causal=True, scale=scale)
    return _sdpa(q, k, v, mask=dense_mask(spec, q.device), scale=scale)


def _attend_windows(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, *, scale: float) -> Tensor:
    batches = separate_windows(spec)
    assert not isinstance(batches, str)  # reshape_unsupported has seen to that
    if len(batches) == 1 and batches[0].count == (1, 1, 1):
        return _attend_inside(q, k, v, batches[0].inside, scale=scale)
    frames, height, width = spec.grid
    to_grid = "b h (t y x) d -> b h t y x d"
    queries = rearrange(q, to_grid, t=frames, y=height, x=width)
    keys, values = (rearrange(tensor[:, :, spec.prefix :], to_grid, y=height, x=width) for tensor in (k, v))
    parts = []
    for batch in batches:
        windows = [_cut(tensor, batch, spec) for tensor in (queries, keys, values)]
        if spec.prefix:
            number = batch.count[0] * batch.count[1] * batch.count[2]
            for i, tensor in ((1, k), (2, v)):
                text = repeat(tensor[:, :, : spec.prefix], "b h p d -> (b n) h p d", n=number)
                windows[i] = torch.cat([text, windows[i]], dim=2)
        output = _attend_inside(windows[0], windows[1], windows[2], batch.inside, scale=scale)
        parts.append(_uncut(output, batch))
    return rearrange(_assemble(parts, batches), "b h t y x d -> b h (t y x) d")


def _cut(tensor: Tensor, batch: WindowBatch, spec: AttentionSpec) -> Tensor:
    """`b h t y x d` -> the windows of the batch, `(b windows) h tokens d`."""
    for axis in range(3):
        length = batch.count[axis] * batch.size[axis]
        if length < spec.grid[axis]:  # an axis that is not cut stays whole: keys may have more frames than queries
            tensor = tensor.narrow(2 + axis, batch.start[axis], length)
    nt, ny, nx = batch.count
    return rearrange(tensor, "b h (nt t) (ny y) (nx x) d -> (b nt ny nx) h (t y x) d", nt=nt, ny=ny, nx=nx)


def _uncut(windows: Tensor, batch: WindowBatch) -> Tensor:
    """The inverse of `_cut` for one batch: `(b windows) h tokens d` -> `b h t y x d`."""
    (nt, ny, nx), (t, y, x) = batch.count, batch.size
    pattern = "(b nt ny nx) h (t y x) d -> b h (nt t) (ny y) (nx x) d"
    return rearrange(windows, pattern, nt=nt, ny=ny, nx=nx, t=t, y=y, x=x)


def _assemble(parts: list[Tensor], batches: tuple[WindowBatch, ...]) -> Tensor:
    """Put the stretches side by side again, the fastest axis first."""
    for axis in (2, 1, 0):
        stretches = len({batch.start[axis] for batch in batches})
        if stretches == 1:  # `cat` of one tensor is a copy
            continue
        parts = [torch.cat(parts[i : i + stretches], dim=2 + axis) for i in range(0, len(parts), stretches)]
    return parts[0]
