"""Is attention in windows faster than dense attention on a CPU? `python eval/attention_cpu.py -o FILE.csv`.

One call times, pattern by pattern and forward as well as forward + backward: dense SDPA without a mask, SDPA with the
pattern's dense mask, FlexAttention compiled (forward only, as it has no backward on CPUs; in the tile order that suits
it, permutes included) and `attention3d`. Every round times every case; the table has the least CPU time of all rounds.
`goal` says what a row has to reach and `met` whether it does; the last line counts. `--dry-run` shows that all of it
runs: small grids, one round, no compiled FlexAttention.
"""

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from vidgen.eval.report import environment_stamp, write_csv, write_json
from vidgen.kernels import AttentionSpec, attention3d
from vidgen.kernels.backends.flex import compiled_flex_attention
from vidgen.kernels.blocks import block_map
from vidgen.kernels.choice import choose
from vidgen.kernels.masks import dense_mask, to_block_mask
from vidgen.kernels.tile_choice import choose_tilings
from vidgen.kernels.tiling import Tiling

Grid = tuple[int, int, int]
# How FlexAttention was fastest on CPUs: 64 tokens in a block beat 128.
FLEX_BLOCK = 64
DRY_RUN_GRIDS = ((12, 12, 12), (24, 12, 12))
# Windows may cost this power of the number of tokens: next to linear.
LARGEST_EXPONENT = 1.1
# Keys that a query sees on the larger grid, over those on the smaller one, in a window of fixed size.
SAME_REACH = 1.1
# How many times as fast as dense attention a forward pass has to be.
FORWARD_GOALS = {"neighborhood": 2.5, "factorised_spatial": 12.0}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """CSV file to write; the same name with .json gets the rows together with device, versions, commit and date."""
    grids: tuple[Grid, ...] = ((16, 16, 16), (64, 16, 16))
    """Frames, rows and columns; 4,096 and 16,384 tokens, a longer video, since whole frames stay visible to some."""
    heads: int = 4
    """Heads of queries and keys."""
    head_channels: int = 64
    """Channels of a head."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of q, k and v."""
    threads: int = 1
    """CPU threads; CPU-seconds add up over them."""
    rounds: int = 3
    """How often every case is timed after a warm-up."""
    flex: bool = True
    """Compile and time FlexAttention too: about ten seconds and a C++ compiler for each pattern and grid."""
    dry_run: bool = False
    """Toy sizes, to see that everything runs; the numbers mean nothing."""


def patterns(grid: Grid) -> dict[str, AttentionSpec]:
    """Every pattern, in sizes that fit both grids. The window of `neighborhood` reaches two tokens to each side."""
    in_time = (True, False, False)
    return {
        "full": AttentionSpec.full(grid),
        "factorised_spatial": AttentionSpec.factorised_spatial(grid),
        "factorised_temporal": AttentionSpec.factorised_temporal(grid),
        "swin3d": AttentionSpec.swin3d(grid, (4, 8, 8)),
        "swin3d_shifted": AttentionSpec.swin3d(grid, (4, 8, 8), shifted=True),
        "neighborhood": AttentionSpec.neighborhood(grid, (5, 5, 5)),
        "neighborhood_wide": AttentionSpec.neighborhood(grid, (9, 9, 9)),
        "neighborhood_causal": AttentionSpec.neighborhood(grid, (3, 5, 5), causal=in_time),
        "dilated_neighborhood": AttentionSpec.dilated_neighborhood(grid, (3, 5, 5), dilation=(1, 2, 2)),
        "sliding_tile": AttentionSpec.sliding_tile(grid, (4, 12, 12), tile=(4, 4, 4)),
        "frame_causal": AttentionSpec.frame_causal(grid),
        "frame_causal_window": AttentionSpec.frame_causal_window(grid, 3, sink_frames=1),
        "neighborhood_text": AttentionSpec.neighborhood(grid, (5, 5, 5), prefix=77),
    }


@dataclass
class Case:
    """One thing to time, and the least that it took."""

    grid: Grid
    pattern: str
    direction: str
    method: str
    run: Callable[[], Any]
    cpu_seconds: float = math.inf
    wall_seconds: float = math.inf

    def time_once(self) -> None:
        cpu, wall = time.process_time(), time.perf_counter()
        self.run()
        self.wall_seconds = min(self.wall_seconds, time.perf_counter() - wall)
        self.cpu_seconds = min(self.cpu_seconds, time.process_time() - cpu)


def cases_of(grid: Grid, settings: Settings) -> list[Case]:
    """The cases of one grid. Dense calls cost the same for every pattern and are timed once, as pattern "full"."""
    cases = []

    def add(pattern: str, method: str, attend: Callable[..., Tensor], tensors: list[Tensor], backward: bool) -> None:
        q, k, v, gradient = tensors

        def forward() -> Tensor:
            with torch.no_grad():
                return attend(q, k, v)

        def both() -> Any:
            return torch.autograd.grad(attend(q, k, v), (q, k, v), gradient)

        cases.append(Case(grid, pattern, "forward", method, forward))
        if backward:
            cases.append(Case(grid, pattern, "forward_backward", method, both))

    for name, spec in patterns(grid).items():
        tensors = make_tensors(spec, settings)
        if name == "full":
            mask = dense_mask(AttentionSpec.neighborhood(grid, (5, 5, 5)), torch.device("cpu"))
            add(name, "dense", scaled_dot_product_attention, tensors, True)
            add(name, "dense_mask", lambda q, k, v, m=mask: scaled_dot_product_attention(q, k, v, m), tensors, True)
        add(name, "ours", lambda q, k, v, spec=spec: attention3d(q, k, v, spec), tensors, True)
        if settings.flex and not spec.prefix:
            # it refuses tensors that require gradients even where none are taken
            add(name, "flex", flex_in_tile_order(spec), [tensor.detach() for tensor in tensors], False)
    return cases


def make_tensors(spec: AttentionSpec, settings: Settings) -> list[Tensor]:
    """q, k, v and a gradient for the output."""
    shape = (1, settings.heads, spec.num_keys, settings.head_channels)
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator).to(getattr(torch, settings.dtype)) for _ in range(4)]
    return [*(tensor.requires_grad_() for tensor in made[:3]), made[3]]


def flex_in_tile_order(spec: AttentionSpec) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """FlexAttention with analytic block lists; tokens are put into tiles and back where the pattern gains by it."""
    tilings = choose_tilings(spec, FLEX_BLOCK, FLEX_BLOCK)
    order, key_order = (tiling.tokens(spec.grid, prefix=0).flatten() for tiling in tilings)
    if order.min() < 0 or key_order.min() < 0:  # empty slots, for which FlexAttention has no place
        tilings = (Tiling(block=FLEX_BLOCK), Tiling(block=FLEX_BLOCK))
        order = key_order = torch.arange(spec.num_keys)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return spec.allowed(spec.query_coordinates(order[query]), spec.key_coordinates(key_order[key]))

    count = len(order)
    blocks = to_block_mask(block_map(spec, *tilings), visible, FLEX_BLOCK, lengths=(count, count))
    if tilings[1].tile is None:
        return lambda q, k, v: compiled_flex_attention(q, k, v, block_mask=blocks)
    back = torch.empty_like(order).scatter_(0, order, torch.arange(count))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = q[:, :, order], k[:, :, key_order], v[:, :, key_order]
        return compiled_flex_attention(q, k, v, block_mask=blocks)[:, :, back]

    return attend


def table(cases: list[Case], settings: Settings) -> list[dict[str, Any]]:
    """One row for each grid, pattern and direction."""
    times = {(case.grid, case.pattern, case.direction, case.method): case for case in cases}
    rows = []
    for grid, direction in itertools.product(settings.grids, ("forward", "forward_backward")):
        dense = times[grid, "full", direction, "dense"]
        for name, spec in patterns(grid).items():
            ours = times[grid, name, direction, "ours"]
            flex = times.get((grid, name, direction, "flex"))
            q, k, v, _ = make_tensors(spec, settings)
            row: dict[str, Any] = {
                "tokens": math.prod(grid),
                "grid": "x".join(map(str, grid)),
                "pattern": name,
                "direction": direction,
                "density": round(spec.density(), 4),
                "backend": choose(q, k, v, spec, return_lse=False),
                "ours_over_dense_speed": round(dense.cpu_seconds / ours.cpu_seconds, 2),
                "flex_over_dense_speed": flex and round(dense.cpu_seconds / flex.cpu_seconds, 2),
                "fastest": "dense",
                "exponent_in_tokens": None,
            }
            speeds = {"ours": row["ours_over_dense_speed"], "flex": row["flex_over_dense_speed"] or 0.0, "dense": 1.0}
            row["fastest"] = max(speeds, key=lambda method: speeds[method])
            smallest = times[settings.grids[0], name, direction, "ours"]
            if grid != settings.grids[0]:
                growth = math.log(math.prod(grid) / math.prod(settings.grids[0]))
                row["exponent_in_tokens"] = round(math.log(ours.cpu_seconds / smallest.cpu_seconds) / growth, 2)
            for method in ("dense", "dense_mask"):
                row[f"{method}_cpu_seconds"] = round(times[grid, "full", direction, method].cpu_seconds, 5)
            row |= {"flex_cpu_seconds": flex and round(flex.cpu_seconds, 5)}
            row |= {"ours_cpu_seconds": round(ours.cpu_seconds, 5), "ours_wall_seconds": round(ours.wall_seconds, 5)}
            row |= {"dense_wall_seconds": round(dense.wall_seconds, 5)}
            rows.append(row | goal_of(row, spec, patterns(settings.grids[0])[name]))
    return rows


def goal_of(row: dict[str, Any], spec: AttentionSpec, on_first_grid: AttentionSpec) -> dict[str, Any]:
    """What a row has to reach, in words, and whether it does; empty where nothing was promised.

    The exponent is promised of windows of fixed size. Where the larger grid lets a query see more than `SAME_REACH`
    times as many keys, the cost has to grow faster than the tokens: the words say so, and the exponent is not judged.
    """
    if spec.window == (None, None, None):
        return {"goal": None, "met": None}
    wanted = 1.0 if row["direction"] == "forward_backward" else FORWARD_GOALS.get(row["pattern"])
    goals = [] if wanted is None else [(f"{wanted:g} x dense", row["ours_over_dense_speed"] >= wanted)]
    reach = spec.pairs() / spec.num_queries / (on_first_grid.pairs() / on_first_grid.num_queries)
    words = []
    if row["exponent_in_tokens"] is not None:
        if reach <= SAME_REACH:
            goals.append((f"exponent {LARGEST_EXPONENT}", row["exponent_in_tokens"] <= LARGEST_EXPONENT))
        else:
            words = [f"exponent not judged: {reach:.3f} times the keys per query"]
    words = [*(words for words, _ in goals), *words]
    return {"goal": ", ".join(words) or None, "met": all(met for _, met in goals) if goals else None}


def main() -> None:
    """Time everything, print the table, write CSV and JSON."""
    settings = tyro.cli(Settings, description=__doc__)
    if settings.dry_run:
        settings = replace(settings, grids=DRY_RUN_GRIDS, heads=1, rounds=1, flex=False)
    torch.set_num_threads(settings.threads)
    cases = [case for grid in settings.grids for case in cases_of(grid, settings)]
    for case in cases:
        began = time.perf_counter()
        case.run()
        print(f"warm-up {case.grid} {case.pattern} {case.direction} {case.method}: {time.perf_counter() - began:.1f} s")
    for _ in range(settings.rounds):
        for case in cases:
            case.time_once()
    rows = table(cases, settings)
    for row in rows:
        print(", ".join(f"{column} {value}" for column, value in row.items()))
    promised = [row for row in rows if row["met"] is not None]
    print(f"goals met in {sum(row['met'] for row in promised)} of {len(promised)} rows")
    stamp = {
        "date": datetime.now(UTC).date().isoformat(),
        "environment": environment_stamp(),
        "settings": {"heads": settings.heads, "head_channels": settings.head_channels, "dtype": settings.dtype},
        "rows": rows,
    }
    write_csv(settings.output, rows)
    write_json(settings.output.with_suffix(".json"), stamp)


if __name__ == "__main__":
    main()
