"""`vidgen kernels explain`: which attention backend a pattern gets, why, what it costs, and its blocks as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from torch import Tensor

    from vidgen.kernels import AttentionSpec

Pattern = Literal[
    "full",
    "factorised_spatial",
    "factorised_temporal",
    "swin3d",
    "swapped_window",
    "neighborhood",
    "dilated_neighborhood",
    "sliding_tile",
    "frame_causal",
    "frame_causal_window",
]
# Tokens in a block of the map: those of the kernels' largest configuration.
BLOCK = 128
TERMINAL_CELLS = 48
SMALLEST_PICTURE = 512  # pixels
SHADES = " ░█"
MIXED = "▒"  # in the terminal, where a mark may stand for several blocks
COLOURS = ((255, 255, 255), (255, 190, 92), (34, 82, 140))  # nothing, some, everything


@dataclass(frozen=True, kw_only=True)
class Command:
    """Say which backend `attention3d` takes for a pattern, why it passes over the others, and what the call costs.

    The map has a row for each block of queries and a column for each block of keys: blank where nothing is visible,
    light where a mask is needed, dark where everything is visible. In the terminal a mark may stand for several
    blocks; a line below the map says what the marks mean. No GPU is needed to ask about one.

    Example: vidgen kernels explain neighborhood --grid 21 30 52 --window 9 15 15 --heads 12 --head-dim 128
    """

    pattern: Positional[Pattern]
    """The pattern, by the name of its constructor in `vidgen.kernels.AttentionSpec`."""
    grid: tuple[int, int, int]
    """Frames, rows and columns of tokens."""
    window: tuple[int, int, int] | None = None
    """Tokens of a window along time, height and width, for the patterns that have one."""
    tile: tuple[int, int, int] | None = None
    """Tokens of a tile, for sliding_tile."""
    dilation: tuple[int, int, int] | None = None
    """Distance between the tokens of a window, for dilated_neighborhood."""
    shifted: bool = False
    """Shift the windows by half their size, for swin3d and swapped_window."""
    causal: bool = False
    """Hide later frames, for factorised_temporal and the neighbourhoods."""
    group: int | None = None
    """Frames that see each other, for frame_causal and frame_causal_window."""
    past_frames: int | None = None
    """Frames visible before a group, for frame_causal_window."""
    sink_frames: int | None = None
    """First frames that stay visible, for frame_causal_window."""
    prefix: int = 0
    """Text tokens in front."""
    batch: int = 1
    """Samples."""
    heads: int = 16
    """Heads of queries."""
    kv_heads: int | None = None
    """Heads of keys and values, a divisor of `--heads`, where queries share them; as many if not given."""
    head_dim: int = 64
    """Channels of a head."""
    device: Literal["cpu", "cuda"] = "cuda"
    """Where the tensors would be."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Their number format."""
    output: Annotated[Path | None, arg(aliases=["-o"], metavar="FILE.png")] = None
    """Write the map of blocks as a picture."""

    def __post_init__(self) -> None:
        if self.output is not None and self.output.suffix.lower() != ".png":
            raise ValueError(f"the map is written as PNG; name the file {self.output.stem}.png, not {self.output.name}")


def run(command: Command) -> None:
    """Do it; errors are for the user."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    from vidgen.kernels import explain
    from vidgen.kernels.blocks import FULL, NONE, block_map
    from vidgen.kernels.tile_choice import choose_tilings

    spec = build(command)
    tensors = []
    kv_heads = command.heads if command.kv_heads is None else command.kv_heads
    for heads, tokens in ((command.heads, spec.num_queries), *[(kv_heads, spec.num_keys)] * 2):
        shape = (command.batch, heads, tokens, command.head_dim)
        described = torch.empty(shape, dtype=getattr(torch, command.dtype), device="meta")
        # says it is on the device, holds no memory and needs no driver
        tensors.append(FakeTensor(FakeTensorMode(), described, torch.device(command.device)))
    print(explain(spec, tensors[0], tensors[1], tensors[2]))

    queries, keys = choose_tilings(spec, BLOCK, BLOCK)
    seen = block_map(spec, queries, keys)
    full, visited = int((seen == FULL).sum()), int((seen > NONE).sum())
    shape = "runs" if keys.tile is None else f"tiles of {'x'.join(map(str, keys.tile))}"
    print(f"{len(seen)} x {seen.shape[1]} blocks of {BLOCK} ({shape}): {full} full, {visited - full} with a mask, ")
    print(f"{visited / seen.numel():.1%} of the work of dense attention, for {spec.density():.1%} of the pairs")
    step = blocks_a_mark(seen)
    print("\n".join(text_map(seen, step)))
    print(legend(step))
    if command.output is not None:
        write_picture(seen, command.output)
        print(f"wrote {command.output}")


# The options that a pattern needs, and those that it may have.
NEEDED: dict[str, tuple[str, ...]] = {
    "swin3d": ("window",),
    "swapped_window": ("window",),
    "neighborhood": ("window",),
    "dilated_neighborhood": ("window", "dilation"),
    "sliding_tile": ("window", "tile"),
    "frame_causal_window": ("past_frames",),
}
OPTIONAL: dict[str, tuple[str, ...]] = {
    "full": ("prefix",),
    "factorised_spatial": ("prefix",),
    "factorised_temporal": ("prefix", "causal"),
    "swin3d": ("prefix", "shifted"),
    "swapped_window": ("shifted",),
    "neighborhood": ("prefix", "causal"),
    "dilated_neighborhood": ("prefix", "causal"),
    "sliding_tile": ("prefix",),
    "frame_causal": ("prefix", "group"),
    "frame_causal_window": ("prefix", "group", "sink_frames"),
}


def build(command: Command) -> AttentionSpec:
    """The pattern that the options describe; ValueError for options that are missing or do nothing."""
    from vidgen.kernels import AttentionSpec

    pattern = command.pattern
    options = ("window", "tile", "dilation", "shifted", "causal", "group", "past_frames", "sink_frames", "prefix")
    given = {name: getattr(command, name) for name in options if getattr(command, name)}
    needed, allowed = NEEDED.get(pattern, ()), NEEDED.get(pattern, ()) + OPTIONAL[pattern]
    if missing := [name for name in needed if name not in given]:
        raise ValueError(f"{pattern} needs {' and '.join(map(_flag, missing))}")
    if useless := [name for name in given if name not in allowed]:
        raise ValueError(f"{_flag(useless[0])} does nothing for {pattern}; it takes {', '.join(map(_flag, allowed))}")
    if pattern.endswith("neighborhood") and given.pop("causal", False):
        given |= {"causal": (True, False, False), "prefix_mode": "self"}
    positional = [given.pop(name) for name in ("window", "past_frames") if name in given]
    return getattr(AttentionSpec, pattern)(command.grid, *positional, **given)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def blocks_a_mark(seen: Tensor) -> int:
    """Rows and columns of blocks that a mark of the text map stands for, so that it fits the terminal."""
    return -(-max(seen.shape) // TERMINAL_CELLS)


def text_map(seen: Tensor, step: int) -> list[str]:
    """The map in lines of characters, each mark (two characters) for `step` x `step` blocks."""
    return ["".join(2 * mark(cell) for cell in rows.split(step, dim=1)).rstrip() for rows in seen.split(step)]


def mark(cell: Tensor) -> str:
    """One character for some blocks: their shade if all are alike, that of a mask if any block needs one."""
    import torch

    from vidgen.kernels.blocks import PARTIAL

    kinds = torch.unique(cell).tolist()
    if len(kinds) == 1:
        return SHADES[kinds[0]]
    return SHADES[PARTIAL] if PARTIAL in kinds else MIXED


def legend(step: int) -> str:
    """What the marks of the text map mean."""
    if step == 1:
        return f"a mark is a block; blank: skipped, {SHADES[1]} needs a mask, {SHADES[2]} seen whole"
    return (
        f"a mark is {step} x {step} blocks; blank: all skipped, {SHADES[1]} some need a mask, {MIXED} some seen whole "
        f"and some skipped, {SHADES[2]} all seen whole"
    )


def write_picture(seen: Tensor, path: Path) -> None:
    """The map as a PNG, a square of pixels for each block."""
    import torch
    from PIL import Image

    size = -(-SMALLEST_PICTURE // max(seen.shape))
    pixels = torch.tensor(COLOURS, dtype=torch.uint8)[seen.long()]
    picture = pixels.repeat_interleave(size, dim=0).repeat_interleave(size, dim=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.numpy()).save(path)
