"""Whether a pattern is better cut into raster runs or into tiles, and into which: the cut that visits least work."""

from functools import lru_cache
from itertools import product

import torch

from vidgen.kernels.axis import AxisRule
from vidgen.kernels.blocks import FULL, NONE, axis_map, block_map
from vidgen.kernels.spec import AttentionSpec, Triple
from vidgen.kernels.tiling import Tiling

# What a masked block costs beside an unmasked one. NATTEN's token-exact window takes 1.57 times as long as the blocks
# that it visits (its profiler output for the HunyuanVideo grid on an H100).
MASKED_COST = 1.5
# Tiles must save this much over raster runs, which are read without a detour.
TILE_GAIN = 0.95
# A tile fills at least this share of its block.
FULLEST = 0.75


@lru_cache(maxsize=256)
def choose_tilings(spec: AttentionSpec, query_block: int, key_block: int) -> tuple[Tiling, Tiling]:
    """How to cut queries and keys into blocks of these sizes (powers of two) so that least is computed."""
    runs = Tiling(block=query_block), Tiling(block=key_block)
    if spec.grid_sees_grid:
        return runs
    seen = block_map(spec, *runs)
    cost = _cost(int((seen > NONE).sum()), int((seen == FULL).sum()))
    best = min(_tile_pairs(spec, query_block, key_block), key=lambda pair: _tiled_cost(spec, *pair), default=None)
    if best is None or _tiled_cost(spec, *best)[0] > TILE_GAIN * cost:
        return runs
    return Tiling(block=query_block, tile=best[0]), Tiling(block=key_block, tile=best[1])


def _cost(visited: int, full: int) -> float:
    return full + MASKED_COST * (visited - full)


def _tiled_cost(spec: AttentionSpec, query_tile: Triple, key_tile: Triple) -> tuple[float, int]:
    """Cost of the grid's blocks without prefix and sinks, which cost much the same in every cut; wide tiles first."""
    visited = full = 1
    for axis in range(3):
        offset = spec.q_frame_offset if axis == 0 else 0
        counts = _axis_counts(spec.axis(axis), spec.grid[axis], offset, query_tile[axis], key_tile[axis])
        visited, full = visited * counts[0], full * counts[1]
    return _cost(visited, full), -key_tile[2]


@lru_cache(maxsize=4096)
def _axis_counts(rule: AxisRule, size: int, offset: int, query_step: int, key_step: int) -> tuple[int, int]:
    """Pairs of intervals along an axis that see anything, and that see everything (short ones at the border never)."""
    query = torch.arange(0, size, query_step)[:, None]
    key = torch.arange(0, rule.size, key_step)[None, :]
    seen = axis_map(
        rule,
        query + offset,
        (query + query_step).clamp(max=size) - 1 + offset,
        key,
        (key + key_step).clamp(max=rule.size) - 1,
    )
    whole = (seen == FULL) & (key + key_step <= rule.size)
    return int((seen > NONE).sum()), int(whole.sum())


def _tile_pairs(spec: AttentionSpec, query_block: int, key_block: int) -> list[tuple[Triple, Triple]]:
    """Tiles of both sides, the smaller one cut from the larger."""
    small, large = sorted((query_block, key_block))
    pairs = []
    for tile in _tiles(spec.kv_grid, large):
        parts = {tile}
        for _ in range((large // small).bit_length() - 1):
            parts = {half for part in parts for half in _halves(part)}
        pairs += [(tile, part) if query_block == large else (part, tile) for part in sorted(parts)]
    return pairs


def _halves(tile: Triple) -> list[Triple]:
    halves = []
    for axis in range(3):
        if tile[axis] % 2 == 0:
            sizes = [size // 2 if axis == other else size for other, size in enumerate(tile)]
            halves.append((sizes[0], sizes[1], sizes[2]))
    return halves


def _tiles(grid: Triple, block: int) -> list[Triple]:
    """Tiles that nearly fill a block; no axis of a tile is longer than the grid's, rounded up to a power of two."""
    longest = [min(block, 1 << (size - 1).bit_length()) for size in grid]
    tiles = []
    for frames, rows in product(range(1, longest[0] + 1), range(1, longest[1] + 1)):
        for columns in range(1, min(longest[2], block // (frames * rows)) + 1):
            if frames * rows * columns >= FULLEST * block:
                tiles.append((frames, rows, columns))
    return tiles
