"""Token reduction around attention (ToMe, AsymRnR): match tokens, compute on fewer of them, give every place a result.

Training-free: queries and keys/values are reduced separately, by ratios of their own (AsymRnR, arXiv 2412.11706:
queries matched by q, keys and values together by v); only the query side is restored.
Around full attention inside a denoising step, with one `MatchingCache` for the whole sampling loop:

    by_query = cache.matching((block, "q"), step, lambda: match(q, grid, prefix=prefix)).reduction(query_ratio)
    by_value = cache.matching((block, "v"), step, lambda: match(v, grid, prefix=prefix)).reduction(value_ratio)
    out = F.scaled_dot_product_attention(by_query.reduce(q), by_value.reduce(k), by_value.reduce(v))
    out = by_query.restore(out)

Reduced tokens have no grid any more, so windows and causality (`attention3d` with a pattern) are out of reach, except
where they see everything. Rotary positions go onto q and k before the reduction.
"""

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

Triple = tuple[int, int, int]

# Products in memory at once while matching: 64 MiB in float32.
SIMILARITIES = 2**24


@dataclass(frozen=True)
class Reduction:
    """Which tokens stay and which of them stands for each place, per sample and head.

    Args:
        kept: `b h m`, the tokens that stay, in ascending order.
        stands_in: `b h n`, for every token the place in `kept` of the one that stands for it.
    """

    kept: Tensor
    stands_in: Tensor

    def reduce(self, x: Tensor) -> Tensor:
        """`b h n d -> b h m d`: the kept tokens as they are (AsymRnR's "replace", fastest and differentiable)."""
        return x.gather(2, self.kept.unsqueeze(-1).expand(-1, -1, -1, x.shape[-1]))

    def average(self, x: Tensor) -> Tensor:
        """`b h n d -> b h m d`: the mean of all tokens that a kept one stands for (ToMe)."""
        into = self.stands_in.unsqueeze(-1).expand_as(x)
        total = x.new_zeros(*self.kept.shape, x.shape[-1]).scatter_add(2, into, x)
        return total / self.sizes().unsqueeze(-1).to(x.dtype)

    def sizes(self) -> Tensor:
        """`b h m` long: how many tokens each kept one stands for, itself included.

        Keys weighted by it (an additive score of log size, "proportional attention", ToMe equation 1) count as often
        as the tokens that they stand for.
        """
        return torch.zeros_like(self.kept).scatter_add(2, self.stands_in, torch.ones_like(self.stands_in))

    def restore(self, x: Tensor) -> Tensor:
        """`b h m d -> b h n d`: every place gets the result of the token that stands for it."""
        return x.gather(2, self.stands_in.unsqueeze(-1).expand(-1, -1, -1, x.shape[-1]))


@dataclass(frozen=True)
class Matching:
    """The best stand-in of every token, and who can go first; good for any ratio, so it can be kept between steps.

    Args:
        by_distance: `b h s`, the tokens that may go, those nearest to their stand-in first; all others always stay.
        nearest: `b h s`, their stand-ins in the same order.
        tokens: n, prefix included.
        prefix: tokens before those of the grid.
    """

    by_distance: Tensor
    nearest: Tensor
    tokens: int
    prefix: int = 0

    def reduction(self, ratio: float) -> Reduction:
        """Drop `ratio` of the grid's tokens (rounded down), nearest pairs first; 0 keeps all exactly as they are.

        ValueError: more than there are source tokens.
        """
        count = self.tokens - self.prefix
        dropped, most = int(ratio * count), self.by_distance.shape[2]
        if ratio < 0 or dropped > most:
            raise ValueError(
                f"ratio {ratio} would drop {dropped} of {count} tokens, and {most} may go; use 0 to "
                f"{most / count:.3g}, or larger cells"
            )
        gone = self.by_distance[:, :, :dropped]
        batch, heads = gone.shape[:2]
        stays = torch.ones(batch, heads, self.tokens, dtype=torch.long, device=gone.device).scatter(2, gone, 0)
        kept = stays.argsort(dim=2, descending=True, stable=True)[:, :, : self.tokens - dropped]
        place = stays.cumsum(dim=2) - 1
        destination = self.nearest[:, :, :dropped]
        return Reduction(kept, place.scatter(2, gone, place.gather(2, destination)))


def match(x: Tensor, grid: Triple, *, cell: Triple = (2, 2, 2), place: Triple = (0, 0, 0), prefix: int = 0) -> Matching:
    """Bipartite soft matching (ToMe, arXiv 2210.09461) over a video: each token to the nearest of a sparse lattice.

    `x` is `b h n d` with n = prefix + grid tokens, prefix first, raster order. Each `cell` of the grid holds one
    destination, at `place` inside it (the last cell of an axis may be short; its place moves inside); every other token
    is a source. Distance is Euclidean (AsymRnR). Another `place` at each refresh, drawn by the caller, spreads what is
    lost. Costs n²/cells products, in memory bounded by 64 MiB; no gradient flows through the choice.
    ValueError: a grid that does not fit the tokens, a place outside the cell.
    """
    tokens = prefix + math.prod(grid)
    if x.ndim != 4 or x.shape[2] != tokens:
        size = "x".join(map(str, grid))
        raise ValueError(f"expected `b h n d` with {prefix} + {size} = {tokens} tokens, got shape {tuple(x.shape)}")
    if any(not 0 <= at < size for at, size in zip(place, cell)):
        raise ValueError(f"place {place} lies outside the cell {cell}")
    destinations, sources = _split(grid, cell, place, prefix, x.device)
    with torch.no_grad():
        near, distance = _nearest(x[:, :, sources].float(), x[:, :, destinations].float())
        order = distance.argsort(dim=2, stable=True)
    return Matching(sources[order], destinations[near.gather(2, order)], x.shape[2], prefix)


class MatchingCache:
    """Matchings of a sampling loop, made anew only every `reuse_steps` steps: neighbouring steps match alike."""

    def __init__(self, *, reuse_steps: int) -> None:
        if reuse_steps < 1:
            raise ValueError(f"reuse_steps must be at least 1 (a new matching at every step), got {reuse_steps}")
        self.reuse_steps = reuse_steps
        self._made: dict[Hashable, tuple[int, Matching]] = {}

    def matching(self, key: Hashable, step: int, make: Callable[[], Matching]) -> Matching:
        """The matching of `key` (a block and "q" or "v") at `step`; a smaller step than before begins a new loop."""
        made_at, matching = self._made.get(key, (None, None))
        if matching is None or made_at is None or not 0 <= step - made_at < self.reuse_steps:
            matching = make()
            self._made[key] = (step, matching)
        return matching


def _split(grid: Triple, cell: Triple, place: Triple, prefix: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Places of destination and source tokens, ascending."""
    chosen = torch.ones(grid, dtype=torch.bool, device=device)
    for axis, (extent, size, at) in enumerate(zip(grid, cell, place)):
        position = torch.arange(extent, device=device)
        here = position % size == at
        if (extent - 1) % size < at:  # the last cell is short and ends before `place`
            here[-1] = True
        chosen &= here.view([-1 if other == axis else 1 for other in range(3)])
    flat = rearrange(chosen, "t h w -> (t h w)")
    return flat.nonzero()[:, 0] + prefix, (~flat).nonzero()[:, 0] + prefix


def _nearest(sources: Tensor, destinations: Tensor) -> tuple[Tensor, Tensor]:
    """`b h s d, b h m d -> b h s`: index of the nearest destination and half the squared distance to it."""
    lengths = 0.5 * destinations.square().sum(dim=-1)
    rows = max(1, SIMILARITIES // lengths.numel())
    near, distance = [], []
    for part in sources.split(rows, dim=2):
        best = (part @ destinations.mT - lengths.unsqueeze(2)).max(dim=3)
        near.append(best.indices)
        distance.append(0.5 * part.square().sum(dim=-1) - best.values)
    return torch.cat(near, dim=2), torch.cat(distance, dim=2)
