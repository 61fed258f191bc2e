"""Tokens to patches of tokens and back: what a transformer takes as one, where tokens lie on a grid."""

import math

from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

Grid = tuple[int, int, int]


class Patches:
    """Patches of `size` tokens along (t, h, w); of size (1, 1, 1) everything passes through as it is."""

    def __init__(self, size: Grid) -> None:
        self.size = size
        self.is_trivial = size == (1, 1, 1)

    def unit(self, unit: Grid) -> Grid:
        """Pixels of a patch along each axis, from those of a token."""
        return unit[0] * self.size[0], unit[1] * self.size[1], unit[2] * self.size[2]

    def grid(self, tokens: Grid) -> Grid:
        """Extents of the grid of patches, from those of the grid of tokens."""
        t, h, w = (-(-extent // step) for extent, step in zip(tokens, self.size, strict=True))
        return t, h, w

    def fold(self, x: Tensor, grid: Grid | None) -> Tensor:
        """`b n c -> b n' (patch · c)`; a ragged border is padded with zeros."""
        return x if grid is None or self.is_trivial else self._parted(x, grid).flatten(2)

    def mean(self, x: Tensor, grid: Grid | None) -> Tensor:
        """`b n c -> b n' c`: the mean over the tokens that each patch has."""
        if grid is None or self.is_trivial:
            return x
        tokens_in_patch = self._parted(x.new_ones(1, math.prod(grid), 1), grid).sum(dim=2)
        return self._parted(x, grid).sum(dim=2) / tokens_in_patch

    def _parted(self, x: Tensor, grid: Grid) -> Tensor:
        t, h, w = grid
        x = rearrange(x, "b (t h w) c -> b c t h w", t=t, h=h, w=w)
        missing = [-extent % step for extent, step in zip(grid, self.size, strict=True)]
        x = F.pad(x, (0, missing[2], 0, missing[1], 0, missing[0]))
        p, q, r = self.size
        return rearrange(x, "b c (t p) (h q) (w r) -> b (t h w) (p q r) c", p=p, q=q, r=r)

    def unfold(self, x: Tensor, grid: Grid | None) -> Tensor:
        """The inverse of `fold`."""
        if grid is None or self.is_trivial:
            return x
        p, q, r = self.size
        t, h, w = (-(-extent // step) for extent, step in zip(grid, self.size, strict=True))
        x = rearrange(x, "b (t h w) (p q r c) -> b c (t p) (h q) (w r)", t=t, h=h, w=w, p=p, q=q, r=r)
        x = x[:, :, : grid[0], : grid[1], : grid[2]]
        return rearrange(x, "b c t h w -> b (t h w) c")

    def coordinates(self, coordinates: Tensor, grid: Grid | None) -> Tensor:
        """Coordinates of the first token of each patch."""
        if grid is None or self.is_trivial:
            return coordinates
        rows = coordinates.view(*grid, 5)[:: self.size[0], :: self.size[1], :: self.size[2]]
        return rows.reshape(-1, 5)


def token_extents(coordinates: Tensor) -> Grid:
    """(t, h, w) of the tokens of a grid, read off their coordinates `n 5`.

    It looks at the data, which a graph cannot: for use outside of `forward`.
    """
    t, h, w = (int(coordinates[:, axis].unique().numel()) for axis in (2, 3, 4))
    return t, h, w
