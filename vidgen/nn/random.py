"""Noise that belongs to a sample, not to the batch it happens to be in: one torch.Generator per sample."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Generators = Sequence[torch.Generator]


def seeded(seeds: Sequence[int], *, device: torch.device | str = "cpu") -> list[torch.Generator]:
    """One generator per seed."""
    return [torch.Generator(device=device).manual_seed(seed) for seed in seeds]


def _per_sample(
    draw: Callable[..., Tensor], shape: Sequence[int], generators: Generators, like: Tensor | None
) -> Tensor:
    if len(generators) != shape[0]:
        raise ValueError(f"expected one generator per sample, {shape[0]} in all, got {len(generators)}")
    rows = [draw(tuple(shape[1:]), generator=generator, device=generator.device) for generator in generators]
    noise = torch.stack(rows)
    return noise if like is None else noise.to(like.device, like.dtype)


def randn(shape: Sequence[int], generators: Generators, *, like: Tensor | None = None) -> Tensor:
    """Normal noise of `shape` (b first); row i depends on `generators[i]` alone. Device and dtype of `like`."""
    return _per_sample(torch.randn, shape, generators, like)


def rand(shape: Sequence[int], generators: Generators, *, like: Tensor | None = None) -> Tensor:
    """Uniform noise in [0, 1) of `shape` (b first); row i depends on `generators[i]` alone."""
    return _per_sample(torch.rand, shape, generators, like)


def gumbel(shape: Sequence[int], generators: Generators, *, like: Tensor | None = None) -> Tensor:
    """Standard Gumbel noise of `shape` (b first)."""
    uniform = rand(shape, generators, like=like).clamp(min=1e-20)
    return -torch.log((-torch.log(uniform)).clamp(min=1e-20))
