"""The visibility rule inside a Triton kernel: where a block's tokens lie, and which keys a query sees."""

from dataclasses import dataclass

import triton
import triton.language as tl

from vidgen.kernels.axis import AxisRule
from vidgen.kernels.spec import AttentionSpec
from vidgen.kernels.tiling import Tiling

# Later than any frame: the time of empty key slots (nobody sees them), and of limits that limit nothing.
NEVER = tl.constexpr(1 << 30)


@dataclass(frozen=True)
class Side:
    """The queries or the keys of a pattern as a compile-time constant of a kernel."""

    frames: int
    height: int
    width: int
    prefix: int
    first_frame: int
    tiling: Tiling

    @property
    def tokens(self) -> int:
        """Tokens with the prefix."""
        return self.prefix + self.frames * self.height * self.width

    @property
    def text_blocks(self) -> int:
        """Blocks in front that hold the prefix."""
        return self.tiling.prefix_blocks(self.prefix)

    @property
    def tiles(self) -> tuple[int, int, int]:
        """Tiles along each axis."""
        return self.tiling.tiles((self.frames, self.height, self.width))

    @property
    def blocks(self) -> int:
        """Blocks of the prefix and the grid."""
        return self.tiling.num_blocks((self.frames, self.height, self.width), prefix=self.prefix)


@dataclass(frozen=True)
class Pattern:
    """A spec cut into blocks: one compile-time constant that a kernel is specialised for."""

    spec: AttentionSpec
    query_tiling: Tiling
    key_tiling: Tiling

    @property
    def queries(self) -> Side:
        """The side that asks."""
        return Side(*self.spec.grid, self.spec.query_prefix, self.spec.q_frame_offset, self.query_tiling)

    @property
    def keys(self) -> Side:
        """The side that is seen."""
        return Side(*self.spec.kv_grid, self.spec.prefix, 0, self.key_tiling)

    @property
    def time(self) -> AxisRule:
        """The rule along time."""
        return self.spec.axis(0)

    @property
    def row(self) -> AxisRule:
        """The rule along the height."""
        return self.spec.axis(1)

    @property
    def column(self) -> AxisRule:
        """The rule along the width."""
        return self.spec.axis(2)

    @property
    def has_windows(self) -> bool:
        """Whether anything but causality hides keys."""
        return any(rule.window is not None or rule.dilation > 1 for rule in (self.time, self.row, self.column))


@triton.jit
def locate(block, slot, SIDE: tl.constexpr):
    """Time, row, column and number of the token in each slot of a block, and whether there is one.

    Prefix tokens have the times -prefix … -1, as in `AttentionSpec.allowed`, and row and column 0.
    """
    CAPACITY: tl.constexpr = SIDE.tiling.capacity
    text = block < SIDE.text_blocks
    if SIDE.tiling.tile is None:
        # the blocks of the prefix and those of the grid are two runs of tokens
        start, stop = block * CAPACITY, SIDE.tokens
        if SIDE.prefix > 0:
            start = tl.where(text, start, start - SIDE.text_blocks * CAPACITY + SIDE.prefix)
            stop = tl.where(text, SIDE.prefix, SIDE.tokens)
        token = start + slot
        held = token < stop
        position = token - SIDE.prefix
        time = position // (SIDE.height * SIDE.width)
        row = position // SIDE.width % SIDE.height
        column = position % SIDE.width
    else:
        TILE_FRAMES: tl.constexpr = SIDE.tiling.tile[0]
        TILE_ROWS: tl.constexpr = SIDE.tiling.tile[1]
        TILE_COLUMNS: tl.constexpr = SIDE.tiling.tile[2]
        ROWS: tl.constexpr = SIDE.tiles[1]
        COLUMNS: tl.constexpr = SIDE.tiles[2]
        tile = block - SIDE.text_blocks
        time = tile // (ROWS * COLUMNS) * TILE_FRAMES + slot // (TILE_ROWS * TILE_COLUMNS)
        row = tile // COLUMNS % ROWS * TILE_ROWS + slot // TILE_COLUMNS % TILE_ROWS
        column = tile % COLUMNS * TILE_COLUMNS + slot % TILE_COLUMNS
        held = (slot < CAPACITY) & (time < SIDE.frames) & (row < SIDE.height) & (column < SIDE.width)
        token = SIDE.prefix + (time * SIDE.height + row) * SIDE.width + column
        if SIDE.prefix > 0:
            number = block * CAPACITY + slot
            held = tl.where(text, (slot < CAPACITY) & (number < SIDE.prefix), held)
            token = tl.where(text, number, token)
    time += SIDE.first_frame
    if SIDE.prefix > 0:
        time = tl.where(text, token - SIDE.prefix, time)
        row = tl.where(text, 0, row)
        column = tl.where(text, 0, column)
    return time, row, column, token, held


@triton.jit
def in_window(query, key, RULE: tl.constexpr):
    """`AxisRule.in_window` as an interval of keys for each query, so that few operations touch whole tiles."""
    near = key >= 0
    if RULE.window is not None:
        LEFT: tl.constexpr = RULE.window[0]
        OFFSET: tl.constexpr = (RULE.granularity - RULE.shift) % RULE.granularity
        start = (query // RULE.dilation + OFFSET) // RULE.granularity * RULE.granularity - OFFSET - LEFT
        if RULE.clamped:
            length = (RULE.size - query % RULE.dilation + RULE.dilation - 1) // RULE.dilation
            start = tl.maximum(tl.minimum(start, length - RULE.width), 0)
        near = (key >= start * RULE.dilation) & (key < (start + RULE.width) * RULE.dilation)
    if RULE.dilation > 1:
        near &= (key - query) % RULE.dilation == 0
    return near


@triton.jit
def sees(query_time, query_row, query_column, key_time, key_row, key_column, PATTERN: tl.constexpr):
    """`AttentionSpec.allowed` for queries and keys that broadcast; keys at time NEVER are seen by nobody."""
    TEXT_ASKS: tl.constexpr = PATTERN.queries.prefix > 0
    TIME: tl.constexpr = PATTERN.time
    ROW: tl.constexpr = PATTERN.row
    COLUMN: tl.constexpr = PATTERN.column
    if TIME.causal:
        GROUP: tl.constexpr = TIME.causal_group
        last_time = query_time // GROUP * GROUP + GROUP - 1
    else:
        last_time = tl.full(query_time.shape, NEVER - 1, tl.int32)
    if TEXT_ASKS:
        if PATTERN.spec.prefix_mode == "bidir":
            last_time = tl.where(query_time < 0, NEVER - 1, last_time)
        elif PATTERN.spec.prefix_mode == "self":
            last_time = tl.where(query_time < 0, -1, last_time)
        else:
            last_time = tl.where(query_time < 0, query_time, last_time)
    seen = key_time <= last_time
    # text may be bidirectional where rows or columns are causal: it is asked about time only
    if ROW.causal:
        past = key_row <= query_row
        if TEXT_ASKS:
            past |= query_time < 0
        seen &= past
    if COLUMN.causal:
        past = key_column <= query_column
        if TEXT_ASKS:
            past |= query_time < 0
        seen &= past
    if PATTERN.has_windows:
        near = in_window(query_time, key_time, TIME)
        if ROW.window is not None or ROW.dilation > 1:
            near &= in_window(query_row, key_row, ROW)
        if COLUMN.window is not None or COLUMN.dilation > 1:
            near &= in_window(query_column, key_column, COLUMN)
        # keys before this time are beyond all windows: the text, the sink frames, and everything for text that asks
        if PATTERN.keys.prefix > 0 or PATTERN.spec.sink_frames > 0:
            free = key_time < PATTERN.spec.sink_frames
            if TEXT_ASKS:
                free |= query_time < 0
            near |= free
        seen &= near
    return seen


@triton.jit
def row_pointers(tensor, sample, head, token, held, HEAD: tl.constexpr, PADDED_HEAD: tl.constexpr):
    """Pointers `tokens PADDED_HEAD` to rows of a (pointer, (strides of sample, head, row)), and which are inside."""
    pointer, strides = tensor
    channel = tl.arange(0, PADDED_HEAD)
    start = pointer + sample.to(tl.int64) * strides[0] + head.to(tl.int64) * strides[1]
    pointers = start + token.to(tl.int64)[:, None] * strides[2] + channel[None, :]
    return pointers, held[:, None] & (channel < HEAD)[None, :]


@triton.jit
def load_rows(tensor, block, sample, head, MASKED: tl.constexpr, SIDE: tl.constexpr, HEAD: tl.constexpr,
              PADDED_HEAD: tl.constexpr, DESCRIPTOR: tl.constexpr):  # fmt: skip
    """The rows of one block, `block PADDED_HEAD`: through a tensor descriptor, or gathered through pointers.

    A descriptor reads consecutive rows, of a tensor in raster order or of one packed in tile order; empty slots then
    hold other tokens. Through pointers they hold zeros; MASKED says whether a block may have any.
    """
    BLOCK: tl.constexpr = SIDE.tiling.block
    CAPACITY: tl.constexpr = SIDE.tiling.capacity
    if DESCRIPTOR:
        first = block * BLOCK
        if SIDE.tiling.tile is None and SIDE.prefix > 0:
            first = tl.where(block < SIDE.text_blocks, first, first - SIDE.text_blocks * BLOCK + SIDE.prefix)
        rows = tl.reshape(tensor[0].load([sample, head, first, 0]), (BLOCK, PADDED_HEAD))
    else:
        _, _, _, token, held = locate(block, tl.arange(0, BLOCK), SIDE)
        pointers, inside = row_pointers(tensor, sample, head, token, held, HEAD, PADDED_HEAD)
        if MASKED or CAPACITY < BLOCK or HEAD < PADDED_HEAD:
            rows = tl.load(pointers, mask=inside, other=0.0)
        else:
            rows = tl.load(pointers)
    return rows
