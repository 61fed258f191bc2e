"""How does the cost of a block grow with the tokens? `python eval/layout_cost.py -o FILE.csv`: every layout, one call.

Each row is one layout at one number of frames; the last columns are the exponents of a power law through all rows of
that layout (1 = linear, 2 = square), for floating-point operations and for seconds.
"""

import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro

from vidgen.eval.flops import count_flops
from vidgen.eval.report import environment_stamp, write_csv, write_json
from vidgen.generators.layouts import LAYOUTS, layout_named
from vidgen.nn.transformer import ModulatedBlock


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured, and for how long."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """CSV file to write; the same name with .json gets the rows together with device, versions, commit and date."""
    layouts: tuple[str, ...] = tuple(LAYOUTS)
    """Names in `LAYOUTS`."""
    frames: tuple[int, ...] = (4, 8, 16, 32)
    """Frames of the grids."""
    side: int = 16
    """Rows and columns of a frame."""
    width: int = 256
    """Width of the block."""
    heads: int = 4
    """Heads of the block."""
    repeats: int = 3
    """Forward passes; the table has the shortest."""
    device: str = "cpu"
    """`cuda` measures a GPU."""
    threads: int = 1
    """CPU threads."""


@torch.no_grad()
def measure(name: str, frames: int, settings: Settings) -> dict[str, Any]:
    """One row: a block without cross-attention, layer 1 of 2, so that shifted windows are shifted."""
    torch.manual_seed(0)
    layout, grid = layout_named(name, None), (frames, settings.side, settings.side)
    tokens = math.prod(grid)
    block: Any = ModulatedBlock(settings.width, settings.heads, mixer=layout.mixer, cross=False).to(settings.device)
    x = torch.randn(1, tokens, settings.width, device=settings.device)
    turns = torch.randn(2, tokens, settings.width // settings.heads // 2, device=settings.device)
    modulation = torch.randn(1, 1, 6, settings.width, device=settings.device)
    pattern = layout.pattern(grid, 1, 2)
    with count_flops() as counter:
        block(x, None, None, modulation, pattern, tuple(turns))
    seconds = []
    for _ in range(settings.repeats):
        started = now(settings.device)
        block(x, None, None, modulation, pattern, tuple(turns))
        seconds.append(now(settings.device) - started)
    return {
        "layout": name,
        "frames": frames,
        "tokens": tokens,
        "gflop": round(counter.get_total_flops() / 1e9, 3),
        "seconds": round(min(seconds), 5),
    }


def now(device: str) -> float:
    """CPU-seconds of this process, or wall-clock seconds of a GPU that is done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def exponent(rows: list[dict[str, Any]], column: str) -> float:
    """Slope of log cost over log tokens."""
    slope, _ = np.polyfit(np.log([row["tokens"] for row in rows]), np.log([row[column] for row in rows]), 1)
    return round(float(slope), 3)


def main() -> None:
    """Measure, print the table, write CSV and JSON."""
    settings = tyro.cli(Settings, description=__doc__)
    torch.set_num_threads(settings.threads)
    table = []
    for name in settings.layouts:
        rows = [measure(name, frames, settings) for frames in settings.frames]
        exponents = {f"{column}_exponent": exponent(rows, column) for column in ("gflop", "seconds")}
        table += [{**row, **exponents} for row in rows]
        for row in table[-len(rows) :]:
            print(", ".join(f"{column} {value}" for column, value in row.items()), flush=True)
    result = {
        "block": f"width {settings.width}, {settings.heads} heads, without cross-attention, forward, float32",
        "date": datetime.now(UTC).date().isoformat(),
        "environment": environment_stamp(settings.device),
        "rows": table,
    }
    write_csv(settings.output, table)
    write_json(settings.output.with_suffix(".json"), result)


if __name__ == "__main__":
    main()
