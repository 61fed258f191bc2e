"""How tokens are cut into the blocks that an attention kernel works on: raster runs or three-dimensional tiles."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from vidgen.kernels.spec import Triple


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """One side's tokens (the queries' or the keys') as blocks of `block` slots each.

    The text prefix comes first, in blocks of its own, then the grid: without a `tile` cut into runs of its raster
    order, with one into tiles of (frames, rows, columns), the tiles in raster order and the tokens of a tile too.
    Every block holds its tokens in its first `capacity` slots. The last prefix block and the last run may hold fewer; a
    tile that reaches over the border leaves the slots of the missing tokens empty.
    """

    block: int
    """Slots of a block."""
    tile: Triple | None = None
    """Frames, rows, columns of a tile, at most `block` tokens; None = runs of raster order."""

    def __post_init__(self) -> None:
        if self.tile is not None and (min(self.tile) < 1 or self.capacity > self.block):
            raise ValueError(f"tile {self.tile} must hold between 1 and {self.block} tokens, the slots of a block")

    @property
    def capacity(self) -> int:
        """Tokens of a whole block."""
        return self.block if self.tile is None else self.tile[0] * self.tile[1] * self.tile[2]

    def prefix_blocks(self, prefix: int) -> int:
        """Blocks that hold `prefix` tokens of text."""
        return -(-prefix // self.capacity)

    def tiles(self, grid: Triple) -> Triple:
        """Tiles along each axis; raster runs count as one row of tiles."""
        if self.tile is None:
            return (1, 1, -(-grid[0] * grid[1] * grid[2] // self.capacity))
        frames, rows, columns = (-(-size // step) for size, step in zip(grid, self.tile, strict=True))
        return (frames, rows, columns)

    def num_blocks(self, grid: Triple, *, prefix: int) -> int:
        """Blocks of the prefix and the grid together."""
        frames, rows, columns = self.tiles(grid)
        return self.prefix_blocks(prefix) + frames * rows * columns

    def tokens(self, grid: Triple, *, prefix: int) -> Tensor:
        """The token in each slot (numbered prefix first, then raster order) or -1 in an empty one: `blocks slots`."""
        text = torch.full((self.prefix_blocks(prefix), self.capacity), -1)
        text.view(-1)[:prefix] = torch.arange(prefix)
        number = torch.arange(grid[0] * grid[1] * grid[2]) + prefix
        tile = (1, 1, self.capacity) if self.tile is None else self.tile
        count = self.tiles(grid)
        video = torch.full([n * size for n, size in zip(count, tile, strict=True)], -1)
        if self.tile is None:
            video.view(-1)[: number.numel()] = number
        else:
            video[: grid[0], : grid[1], : grid[2]] = number.view(grid)
        # an index table and no tensor of features: plain views keep einops and its caches out of compiled graphs
        tiled = video.view(count[0], tile[0], count[1], tile[1], count[2], tile[2]).permute(0, 2, 4, 1, 3, 5)
        held = torch.cat([text, tiled.reshape(-1, self.capacity)])
        return torch.nn.functional.pad(held, (0, self.block - self.capacity), value=-1)

    def boxes(self, grid: Triple, *, skipped: int = 0) -> tuple[Tensor, Tensor]:
        """First and last (frame, row, column), inclusive, of the box around each grid block: two of `3 blocks`.

        The first of raster runs holds `skipped` tokens fewer (text is in its place).
        """
        if self.tile is not None:
            index = torch.cartesian_prod(*(torch.arange(count) for count in self.tiles(grid))).view(-1, 3)
            first = index * torch.tensor(self.tile)
            last = torch.minimum(first + torch.tensor(self.tile), torch.tensor(grid)) - 1
            return first.T, last.T
        frames, height, width = grid
        begin = torch.arange(-skipped, frames * height * width, self.capacity)
        start = begin.clamp(min=0)
        stop = torch.clamp(begin + self.capacity, max=frames * height * width) - 1
        one_frame = start // (height * width) == stop // (height * width)
        one_row = start // width == stop // width
        first = [start // (height * width), (start // width % height) * one_frame, (start % width) * one_row]
        last_row = torch.where(one_frame, stop // width % height, height - 1)
        last = [stop // (height * width), last_row, torch.where(one_row, stop % width, width - 1)]
        return torch.stack(first), torch.stack(last)

    def ragged(self, grid: Triple, *, prefix: int) -> Tensor:
        """Which blocks hold fewer than `capacity` tokens: boolean, blocks."""
        return (self.tokens(grid, prefix=prefix)[:, : self.capacity] < 0).any(dim=1)


@lru_cache(maxsize=64)
def token_index(tiling: Tiling, grid: Triple, prefix: int, device: torch.device) -> Tensor:
    """`Tiling.tokens` flat and on a device, with token 0 in the empty slots: an index that packs tokens into blocks."""
    with torch.inference_mode(False):  # what is first needed under inference_mode must serve training later
        return tiling.tokens(grid, prefix=prefix).clamp(min=0).flatten().to(device)
