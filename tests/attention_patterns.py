"""The attention patterns of the tests: how each spec is built, and by loops over places which of them sees which."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vidgen.kernels import AttentionSpec, attention3d

GRIDS = [(3, 5, 4), (1, 1, 1), (5, 3, 7)]
Place = tuple[int, int, int]


def _clamped_window(query: int, key: int, size: int, window: int) -> bool:
    start = min(max(query - window // 2, 0), size - window)
    return key in range(start, start + window)


def _window_number(place: int, size: int, window: int, shifted: bool) -> int:
    borders = list(range(window // 2 if shifted and window < size else window, size, window))
    return sum(place >= border for border in borders)


def _tiles_near(query: int, key: int, tile: int, reach: int) -> bool:
    return abs(query // tile - key // tile) <= reach


def _dilated_window(query: int, key: int, size: int, window: int, dilation: int) -> bool:
    row = [place for place in range(size) if place % dilation == query % dilation]
    at = row.index(query)
    start = min(max(at - window // 2, 0), len(row) - window)
    return key in row[start : start + window]


def _odd_up_to(size: int) -> int:
    return 3 if size >= 3 else 1


PATTERNS: dict[str, tuple[Callable[[Place, int], AttentionSpec], Callable[[Place, Place, Place], bool]]] = {
    "full": (lambda g, p: AttentionSpec.full(g, p), lambda q, k, g: True),
    "factorised_spatial": (lambda g, p: AttentionSpec.factorised_spatial(g, prefix=p), lambda q, k, g: q[0] == k[0]),
    "factorised_temporal": (
        lambda g, p: AttentionSpec.factorised_temporal(g, prefix=p),
        lambda q, k, g: q[1:] == k[1:],
    ),
    "factorised_temporal_causal": (
        lambda g, p: AttentionSpec.factorised_temporal(g, causal=True, prefix=p),
        lambda q, k, g: q[1:] == k[1:] and k[0] <= q[0],
    ),
    "swin3d": (
        lambda g, p: AttentionSpec.swin3d(g, (2, 2, 3), prefix=p),
        lambda q, k, g: all(a // w == b // w for a, b, w in zip(q, k, (2, 2, 3))),
    ),
    "swin3d_shifted_ragged": (
        lambda g, p: AttentionSpec.swin3d(g, (2, 3, 4), shifted=True, prefix=p),
        lambda q, k, g: all(
            _window_number(a, n, w, True) == _window_number(b, n, w, True) for a, b, w, n in zip(q, k, (2, 3, 4), g)
        ),
    ),
    "neighborhood": (
        lambda g, p: AttentionSpec.neighborhood(g, tuple(map(_odd_up_to, g)), prefix=p),
        lambda q, k, g: all(_clamped_window(a, b, n, _odd_up_to(n)) for a, b, n in zip(q, k, g)),
    ),
    "neighborhood_causal_time": (
        lambda g, p: AttentionSpec.neighborhood(
            g, (2, None, 4), causal=(True, False, False), edge="shrink", prefix=p, prefix_mode="self"
        ),
        lambda q, k, g: q[0] - 1 <= k[0] <= q[0] and q[2] - 2 <= k[2] <= q[2] + 1,
    ),
    "dilated_neighborhood": (
        lambda g, p: AttentionSpec.dilated_neighborhood(
            g, (1, 1, 2 if g[2] >= 4 else 1), dilation=(1, 1, 2 if g[2] >= 4 else 1), prefix=p
        ),
        lambda q, k, g: q[:2] == k[:2] and (_dilated_window(q[2], k[2], g[2], 2, 2) if g[2] >= 4 else q[2] == k[2]),
    ),
    "dilated_whole_axis": (
        lambda g, p: AttentionSpec.dilated_neighborhood(g, (None, 1, None), dilation=(2, 1, 3), prefix=p),
        lambda q, k, g: (q[0] - k[0]) % 2 == 0 and q[1] == k[1] and (q[2] - k[2]) % 3 == 0,
    ),
    "sliding_tile": (
        lambda g, p: AttentionSpec.sliding_tile(g, (2, 6, 6), tile=(2, 2, 2), edge="shrink", prefix=p),
        lambda q, k, g: all(_tiles_near(a, b, 2, r) for a, b, r in zip(q, k, (0, 1, 1))),
    ),
    "frame_causal": (
        lambda g, p: AttentionSpec.frame_causal(g, prefix=p),
        lambda q, k, g: k[0] <= q[0],
    ),
    "frame_causal_groups": (
        lambda g, p: AttentionSpec.frame_causal(g, group=2, prefix=p, prefix_mode="causal"),
        lambda q, k, g: k[0] // 2 <= q[0] // 2,
    ),
    "frame_causal_window": (
        lambda g, p: AttentionSpec.frame_causal_window(g, 1, sink_frames=1, prefix=p, prefix_mode="kv_only"),
        lambda q, k, g: k[0] <= q[0] and (k[0] >= q[0] - 1 or k[0] == 0),
    ),
    "frame_causal_window_groups": (
        lambda g, p: AttentionSpec.frame_causal_window(g, 2, group=2, prefix=p),
        lambda q, k, g: q[0] // 2 - 1 <= k[0] // 2 <= q[0] // 2,
    ),
    "sequence_causal": (
        lambda g, p: AttentionSpec.sequence(g[0] * g[1], True, prefix=p),
        lambda q, k, g: k[0] <= q[0],
    ),
    "sequence": (lambda g, p: AttentionSpec.sequence(g[0] * g[1], prefix=p), lambda q, k, g: True),
    "all_causal_with_causal_prefix": (
        lambda g, p: AttentionSpec(grid=(g[0], 1, 1), causal=(True, False, False), prefix=p, prefix_mode="causal"),
        lambda q, k, g: k[0] <= q[0],
    ),
    "spatial_windows_frame_causal": (
        lambda g, p: AttentionSpec(
            grid=g,
            window=(None, (0, 0), (0, 0)),
            granularity=(1, 2, 3),
            causal=(True, False, False),
            prefix=p,
            prefix_mode="self",
        ),
        lambda q, k, g: k[0] <= q[0] and q[1] // 2 == k[1] // 2 and q[2] // 3 == k[2] // 3,
    ),
    "sinks_over_all_frames": (
        lambda g, p: AttentionSpec(grid=g, window=(None, (0, 0), None), sink_frames=9, prefix=p, prefix_mode="self"),
        lambda q, k, g: True,
    ),
}


def mask_by_loops(spec: AttentionSpec, sees: Callable[[Place, Place, Place], bool]) -> Tensor:
    places = list(itertools.product(*map(range, spec.grid)))
    mask = torch.zeros(spec.query_prefix + len(places), spec.prefix + len(places), dtype=torch.bool)
    for row in range(mask.shape[0]):
        for column in range(mask.shape[1]):
            i, j = row - spec.query_prefix, column - spec.prefix
            if i < 0:
                reach = {"bidir": mask.shape[1], "self": spec.prefix, "causal": row + 1, "kv_only": 0}
                mask[row, column] = column < reach[spec.prefix_mode]
            else:
                mask[row, column] = j < 0 or sees(places[i], places[j], spec.grid)
    return mask


def all_specs() -> list:
    return [
        pytest.param(name, grid, prefix, id=f"{name}-{'x'.join(map(str, grid))}-prefix{prefix}")
        for name in PATTERNS
        for grid in GRIDS
        for prefix in (0, 3)
    ]


def make_inputs(
    spec: AttentionSpec,
    *,
    dtype: torch.dtype = torch.float32,
    heads: int = 2,
    kv_heads: int = 2,
    head_size: int = 8,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v and a gradient for the output, all `b h n d` with b = 2."""
    generator = torch.Generator().manual_seed(spec.num_queries)
    sizes = [(heads, spec.num_queries), (kv_heads, spec.num_keys), (kv_heads, spec.num_keys), (heads, spec.num_queries)]
    tensors = [torch.randn(2, h, n, head_size, generator=generator).to(dtype) for h, n in sizes]
    return tensors[0].requires_grad_(), tensors[1].requires_grad_(), tensors[2].requires_grad_(), tensors[3]


def relative_error(ours: Tensor, reference: Tensor) -> float:
    """RMS of the difference over RMS of the reference; scale-free."""
    difference = (ours.double() - reference.double()).square().mean().sqrt()
    # a gradient that is zero in exact arithmetic (one visible key) is rounding of terms near 1: no ratio to go by
    return float(difference.detach() / reference.detach().double().square().mean().sqrt().clamp(min=1e-1))


def output_and_gradients(spec: AttentionSpec, tensors: tuple[Tensor, ...], backend: str) -> list[Tensor]:
    q, k, v, gradient = tensors
    output = attention3d(q, k, v, spec, backend=backend)
    return [output, *torch.autograd.grad(output, (q, k, v), gradient)]
