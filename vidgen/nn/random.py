"""Noise that belongs to a sample, not to the batch it happens to be in: one torch.Generator per sample."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Generators = Sequence[torch.Generator]


def seeded(seeds: Sequence[int], *, device: torch.device | str = "cpu") -> list[torch.Generator]:
    """One generator per seed."""
    return [torch.Generator(device=device).manual_seed(seed) for seed in seeds]


def draw_seed(generator: torch.Generator) -> int:
    """A seed for another generator."""
    return int(torch.randint(2**62, (1,), generator=generator, device=generator.device).item())


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
    """Uniform noise in [0, 1) of `shape` (b first), as `randn`."""
    noise = _per_sample(torch.rand, shape, generators, like)
    return noise.clamp(max=1 - torch.finfo(noise.dtype).eps / 2)  # half precision rounds up to 1


def gumbel(shape: Sequence[int], generators: Generators, *, like: Tensor | None = None) -> Tensor:
    """Standard Gumbel noise of `shape` (b first), as `randn`."""
    uniform = rand(shape, generators).clamp(min=1e-20)  # in float32: its tails are what matters
    noise = -torch.log((-torch.log(uniform)).clamp(min=1e-20))
    return noise if like is None else noise.to(like.device, like.dtype)


def categorical(logits: Tensor, generators: Generators) -> Tensor:
    """Codes `b …` drawn by the softmax of `logits` (`b … codes`); row i depends on `generators[i]` alone.

    One uniform number for each, looked up in the cumulative distribution: Gumbel noise would need one for each code,
    and took a third of the time of masked decoding. Codes at -inf are never drawn.
    """
    cumulative = logits.float().softmax(dim=-1).cumsum(dim=-1)
    total = cumulative[..., -1:]
    level = rand(logits.shape[:-1], generators, like=cumulative).unsqueeze(-1) * total
    level = level.minimum(total.nextafter(torch.zeros_like(total)))  # rounding must not reach beyond the last code
    return torch.searchsorted(cumulative, level, right=True).squeeze(-1)
