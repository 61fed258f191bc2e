"""An `AttentionSpec` as the tables that the CUDA kernels read: token places, block lists, masks of partial blocks."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from vidgen.kernels.blocks import BlockRows, block_lists
from vidgen.kernels.spec import AttentionSpec, Triple
from vidgen.kernels.tile_choice import choose_tilings
from vidgen.kernels.tiling import Tiling

BLOCK = 128  # as in problem.cuh
# A mask is 2 KiB; beyond this the pattern belongs to a kernel that evaluates the rule instead of reading it.
MOST_MASKED_BLOCKS = 1 << 15
MASKS_AT_A_TIME = 256


@dataclass(frozen=True, eq=False)
class Side:
    """Where the queries' or the keys' blocks lie."""

    tiling: Tiling
    grid: Triple
    prefix: int
    tokens: Tensor
    """Number of the token in each slot, -1 where there is none: int32, blocks · BLOCK."""
    origins: Tensor
    """Column, row, frame where a block begins, and 1 for blocks of the prefix: int32, blocks 4."""


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything about a pattern that does not depend on the tensors; on the device."""

    queries: Side
    keys: Side
    schedule: Tensor
    """Query blocks, those with most work first: int32."""
    first_entry: Tensor
    """Where the entries of each query block begin, and the end: int32."""
    entries: Tensor
    """Key block and mask (-1: all visible), by query block and then by key block: int32, entries 2."""
    masks: Tensor
    """Bit i of word w says whether slot 32 w + i of the keys is visible: int32, masks BLOCK words."""


def tilings(spec: AttentionSpec) -> tuple[Tiling, Tiling]:
    """How queries and keys are cut into blocks."""
    return choose_tilings(spec, BLOCK, BLOCK)


def unsuitable(spec: AttentionSpec) -> str | None:
    """Why a pattern is not for these kernels, or None."""
    partial = block_lists(spec, *tilings(spec), torch.device("cpu")).num_partial
    if partial > MOST_MASKED_BLOCKS:
        return (
            f"{partial} blocks are neither all visible nor all hidden, more than the {MOST_MASKED_BLOCKS} whose masks "
            "are stored; windows of whole tiles have few"
        )
    return None


@lru_cache(maxsize=32)
def make_plan(spec: AttentionSpec, device: torch.device) -> Plan:
    """The tables of `spec`, made once and kept."""
    with torch.inference_mode(False):
        query_tiling, key_tiling = tilings(spec)
        queries = _side(query_tiling, spec.grid, spec.query_prefix)
        keys = _side(key_tiling, spec.kv_grid, spec.prefix)
        rows = block_lists(spec, query_tiling, key_tiling, torch.device("cpu")).by_query
        first_entry, entries, masks = _entries(spec, queries, keys, rows, device)
        return Plan(
            queries=_moved(queries, device),
            keys=_moved(keys, device),
            schedule=rows.order.to(device),
            first_entry=first_entry.to(device),
            entries=entries.to(device),
            masks=masks.to(device),
        )


def _side(tiling: Tiling, grid: Triple, prefix: int) -> Side:
    text_blocks = tiling.prefix_blocks(prefix)
    count = tiling.num_blocks(grid, prefix=prefix) - text_blocks
    text = torch.zeros(text_blocks, 4, dtype=torch.int32)
    text[:, 0] = torch.arange(text_blocks) * tiling.capacity
    text[:, 3] = 1
    video = torch.zeros(count, 4, dtype=torch.int32)
    if tiling.tile is None:
        video[:, 0] = torch.arange(count) * tiling.capacity  # a run is a row of tokens
    else:
        video[:, :3] = tiling.boxes(grid)[0].T.flip(1)
    tokens = tiling.tokens(grid, prefix=prefix).int().flatten()
    return Side(tiling, grid, prefix, tokens, torch.cat([text, video]))


def _moved(side: Side, device: torch.device) -> Side:
    return Side(side.tiling, side.grid, side.prefix, side.tokens.to(device), side.origins.to(device))


def _entries(
    spec: AttentionSpec, queries: Side, keys: Side, rows: BlockRows, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Full and partial blocks as one list: where it begins for each query block, its entries, and their masks."""
    full_row, partial_row = (_row_numbers(start) for start in (rows.full_start, rows.partial_start))
    mask_numbers, masks = _masks(spec, queries, keys, partial_row, rows.partial, device)
    # The slots beyond the capacity of a tile are empty in every key block, and have to be hidden in every one.
    all_visible = -1
    if keys.tiling.capacity < BLOCK:
        all_visible = len(masks)
        masks = torch.cat([masks, _packed(torch.arange(BLOCK)[None, :] < keys.tiling.capacity).expand(1, BLOCK, -1)])
    row = torch.cat([full_row, partial_row])
    column = torch.cat([rows.full, rows.partial]).long()
    mask = torch.cat([torch.full_like(full_row, all_visible), mask_numbers])
    order = (row * len(keys.origins) + column).argsort()
    counts = torch.bincount(row, minlength=len(queries.origins))
    entries = torch.stack([column, mask], dim=1)[order]
    return pad(counts.cumsum(0), (1, 0)).int(), entries.int().contiguous(), masks.contiguous()


def _row_numbers(start: Tensor) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(start) - 1), start.diff().long())


def _masks(
    spec: AttentionSpec, queries: Side, keys: Side, row: Tensor, column: Tensor, device: torch.device
) -> tuple[Tensor, Tensor]:
    """For each partial pair of blocks the number of its mask, and the masks; equal ones are stored once."""
    query_slots = queries.tokens.view(-1, BLOCK).long().to(device)
    key_slots = keys.tokens.view(-1, BLOCK).long().to(device)
    known: dict[bytes, int] = {}
    numbers, masks = [], []
    for pairs in torch.stack([row, column.long()], dim=1).to(device).split(MASKS_AT_A_TIME):
        query, key = query_slots[pairs[:, 0], :, None], key_slots[pairs[:, 1], None, :]
        visible = spec.allowed(spec.query_coordinates(query), spec.key_coordinates(key))
        for mask in _packed(visible & (query >= 0) & (key >= 0)).cpu():
            content = mask.numpy().tobytes()
            if content not in known:
                known[content] = len(masks)
                masks.append(mask)
            numbers.append(known[content])
    stored = torch.stack(masks) if masks else torch.zeros(0, BLOCK, BLOCK // 32, dtype=torch.int32)
    return torch.tensor(numbers, dtype=torch.long), stored


def _packed(visible: Tensor) -> Tensor:
    """Booleans `… BLOCK` to bits, int32 `… BLOCK / 32`."""
    weights = torch.ones(32, dtype=torch.long, device=visible.device) << torch.arange(32, device=visible.device)
    words = (visible.unflatten(-1, (-1, 32)).long() * weights).sum(-1)
    return torch.where(words < 1 << 31, words, words - (1 << 32)).int()
