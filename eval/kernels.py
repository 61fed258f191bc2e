"""Time attention3d on a GPU, pattern by pattern, beside dense SDPA and FlexAttention: eval/results/attention_gpu.csv.

`python eval/kernels.py --minutes 6` may be stopped and called again: rows of the same device, versions and code are
kept and not measured again. `--dry-run` does the same at toy sizes on a CPU, in Triton's interpreter, to show it runs.

Random data, cold L2 cache, median and 20 % and 80 % quantiles. Every row is compared with float64 at 64 random queries
before it is timed. effective_tflops counts visible pairs, executed_tflops all pairs in visited blocks; share_of_ideal
is dense time x density / time, likewise for both. Where descriptors need tokens packed in tile order, `triton` includes
the packing, packing_ms says what it takes, milliseconds_packed what is left for a caller who keeps that order;
`triton_pointers` gathers tiles and never packs. FlexAttention gets our block lists and tokens packed beforehand.
"""

import itertools
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from vidgen.eval.report import code_digest, environment_stamp, write_csv, write_json
from vidgen.kernels import AttentionSpec
from vidgen.kernels.backends import BACKENDS
from vidgen.kernels.backends.flex import compiled_flex_attention
from vidgen.kernels.blocks import PARTIAL, BlockLists, block_lists, block_map
from vidgen.kernels.masks import FLEX_BLOCK, to_block_mask
from vidgen.kernels.tile_choice import choose_tilings
from vidgen.kernels.tiling import Tiling, token_index

RESULTS = Path(__file__).resolve().parent / "results"
DIRECTIONS = ("forward", "forward_backward")
# Matrix products, beside the two of the forward pass.
PRODUCTS = {"forward": 1.0, "forward_backward": 3.5}
SAMPLED_QUERIES = 64
# Of the output; gradients may have twice that.
LARGEST_ERROR = {torch.bfloat16: 8e-3, torch.float32: 1e-5}
# What has to be reached on an H100, by shape, pattern and direction; the column says of what. Dense attention is judged
# through Triton alone, patterns by the best of our backends. Ratios are over the fastest dense SDPA and over
# FlexAttention; share_of_visited_ideal is over the work in its blocks.
GOALS: dict[tuple[str, str, str], dict[str, float]] = {
    **{(shape, "full", "forward"): {"dense_over_this": 0.75} for shape in ("hunyuan", "wan", "cube", "toy")},
    **{(shape, "full", "backward"): {"dense_over_this": 0.6} for shape in ("hunyuan", "wan", "cube", "toy")},
    ("hunyuan", "sliding_tile", "forward"): {
        "dense_over_this": 7.0,
        "flex_over_this": 1.15,
        "share_of_visited_ideal": 0.7,
    },
    ("hunyuan", "sliding_tile", "forward_backward"): {"dense_over_this": 5.0},
    ("hunyuan", "neighborhood", "forward"): {"dense_over_this": 3.0, "flex_over_this": 1.2},
    ("wan", "frame_causal", "forward"): {"dense_over_this": 1.5, "flex_over_this": 1.1},
}
# Milliseconds that NATTEN publishes for the tile-aligned HunyuanVideo window on an H100 (docs/profiler.md).
NATTEN_MILLISECONDS = 23.4
OURS = ("triton", "triton_pointers", "cuda")

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = RESULTS / "attention_gpu.csv"
    """CSV file to write and to go on with; the same name with .json gets the rows together with device and versions."""
    dry_run: bool = False
    """Toy sizes on a CPU; prints the table and writes nothing unless an output is named."""
    minutes: float = 10.0
    """No further row is begun after this time; another call goes on."""
    backends: tuple[str, ...] = ("triton", "triton_pointers", "flex", "cuda", "natten")
    """What is timed beside dense SDPA; those that cannot serve are passed over with their reason."""


@dataclass(frozen=True)
class Shape:
    """Queries, keys and values of one model, and the patterns to time on them."""

    name: str
    grid: tuple[int, int, int]
    batch: int
    heads: int
    head_size: int
    patterns: dict[str, AttentionSpec]


@dataclass(frozen=True)
class Candidate:
    """One way to compute one pattern on given inputs."""

    name: str
    forward: Callable[[], Tensor]
    both: Callable[[], tuple[Tensor, Tensor]] | None
    """Forward and backward, giving the output and dQ; None where it has no backward pass."""
    place: Callable[[Tensor], Tensor] = lambda query: query
    """Row of its output that holds a query, where it has an order of its own."""
    visited: BlockLists | None = None
    packing: Callable[[str], None] | None = None
    """What it copies into tile order in a direction, and could be spared."""


def shapes(dry_run: bool) -> list[Shape]:
    """A small cube, Wan 1.3B at 480p and HunyuanVideo, and the patterns with a stated goal."""
    if dry_run:
        grid = (4, 4, 4)
        return [
            Shape(
                "toy",
                grid,
                1,
                1,
                32,
                {
                    "full": AttentionSpec.full(grid),
                    "sliding_tile": AttentionSpec.sliding_tile(grid, (2, 6, 6), tile=(2, 2, 2), edge="shrink"),
                    "frame_causal": AttentionSpec.frame_causal(grid),
                },
            )
        ]
    hunyuan, wan, cube = (30, 48, 80), (21, 30, 52), (16, 16, 16)
    in_time = (True, False, False)
    # The quickest first: a row of the largest takes some ten seconds.
    return [
        Shape(
            "cube",
            cube,
            8,
            16,
            64,
            {
                "full": AttentionSpec.full(cube),
                "neighborhood_causal": AttentionSpec.neighborhood(cube, (8, 9, 9), causal=in_time, edge="shrink"),
                "sliding_tile": AttentionSpec.sliding_tile(cube, (12, 12, 12), tile=(4, 4, 4)),
            },
        ),
        Shape(
            "wan",
            wan,
            1,
            12,
            128,
            {
                "full": AttentionSpec.full(wan),
                "frame_causal": AttentionSpec.frame_causal(wan),
                "sliding_tile": AttentionSpec.sliding_tile(wan, (9, 30, 20), tile=(3, 10, 4)),
                "neighborhood_causal": AttentionSpec.neighborhood(wan, (6, 15, 17), causal=in_time, edge="shrink"),
            },
        ),
        Shape(
            "hunyuan",
            hunyuan,
            1,
            24,
            128,
            {
                "full": AttentionSpec.full(hunyuan),
                "sliding_tile": AttentionSpec.sliding_tile(hunyuan, (18, 24, 24), tile=(6, 8, 8)),
                "neighborhood": AttentionSpec.neighborhood(hunyuan, (18, 24, 24)),
                "frame_causal": AttentionSpec.frame_causal(hunyuan),
            },
        ),
    ]


# ---------------------------------------------------------------------------------------------------- the candidates


def candidates(spec: AttentionSpec, tensors: list[Tensor], names: tuple[str, ...]) -> Iterator[Candidate]:
    """Everything in `names` that can serve; tells of each that cannot."""
    for name in names:
        if name == "flex":
            yield flex_candidate(spec, tensors)
        elif name == "triton_pointers":
            if tensors[0].is_cuda and torch.cuda.get_device_capability()[0] >= 9:
                yield pointers_candidate(spec, tensors)
        else:
            with torch.no_grad():
                reason = BACKENDS[name].unsupported(*tensors[:3], spec, return_lse=False)
            if reason is None:
                yield backend_candidate(name, spec, tensors)
            else:
                print(f"  {name} passed over: {reason}")


def differentiable(name: str, attend: Attend, tensors: list[Tensor], **more: Any) -> Candidate:
    """A candidate from a differentiable function of q, k and v."""
    q, k, v, d_output = tensors

    def forward() -> Tensor:
        with torch.no_grad():
            return attend(q, k, v)

    def both() -> tuple[Tensor, Tensor]:
        output = attend(q, k, v)
        return output, torch.autograd.grad(output, (q, k, v), d_output)[0]

    return Candidate(name, forward, both, **more)


def backend_candidate(name: str, spec: AttentionSpec, tensors: list[Tensor]) -> Candidate:
    """A backend of attention3d as the library calls it."""
    attend = BACKENDS[name].attend
    scale = tensors[0].shape[-1] ** -0.5
    candidate = differentiable(name, lambda q, k, v: attend(q, k, v, spec, scale=scale, return_lse=False)[0], tensors)
    if name == "cuda":
        from vidgen.kernels.cuda.plan import tilings

        lists = block_lists(spec, *tilings(spec), tensors[0].device)
        return replace(candidate, both=None, visited=lists)  # TMA gathers tiles from raster order: nothing to pack
    if name != "triton":
        return candidate
    from vidgen.kernels.triton.configs import config_for
    from vidgen.kernels.triton.launch import pack

    config, (q, k, _, _) = config_for(tensors[0]), tensors
    # two tensors each: K and V for the forward and dQ kernels, Q and dO for the dK/dV kernel
    sides = {
        "forward": (config.forward, k, 1, (spec.kv_grid, spec.prefix)),
        "backward_queries": (config.backward_queries, k, 1, (spec.kv_grid, spec.prefix)),
        "backward_keys": (config.backward_keys, q, 0, (spec.grid, spec.query_prefix)),
    }
    packs: dict[str, list[Callable[[], Tensor]]] = {direction: [] for direction in DIRECTIONS}
    for kernel_name, (kernel, tensor, side, size) in sides.items():
        tiling = choose_tilings(spec, kernel.queries, kernel.keys)[side]
        if kernel.descriptors and tiling.tile is not None:
            for direction in DIRECTIONS if kernel_name == "forward" else DIRECTIONS[1:]:
                packs[direction] += [partial(pack, tensor.detach(), tiling, *size)] * 2

    def packing(direction: str) -> None:
        for copy in packs[direction]:
            copy()

    tilings = choose_tilings(spec, config.forward.queries, config.forward.keys)
    candidate = replace(candidate, visited=block_lists(spec, *tilings, q.device))
    return replace(candidate, packing=packing) if packs["forward_backward"] else candidate


def pointers_candidate(spec: AttentionSpec, tensors: list[Tensor]) -> Candidate:
    """The Triton kernels without descriptors: they gather tiles and never pack."""
    from vidgen.kernels.triton import launch
    from vidgen.kernels.triton.configs import AttentionConfig, config_for

    q, k, v, d_output = (tensor.detach() for tensor in tensors)
    shipped = config_for(q)
    kernels = (shipped.forward, shipped.backward_keys, shipped.backward_queries)
    config = AttentionConfig(*(replace(kernel, descriptors=False) for kernel in kernels))
    scale = q.shape[-1] ** -0.5

    def both() -> tuple[Tensor, Tensor]:
        output, lse = launch.forward(q, k, v, spec, scale=scale, config=config)
        d_lse = torch.zeros_like(lse)
        return output, launch.backward(q, k, v, output, lse, d_output, d_lse, spec, scale=scale, config=config)[0]

    tilings = choose_tilings(spec, config.forward.queries, config.forward.keys)
    return Candidate(
        "triton_pointers",
        lambda: launch.forward(q, k, v, spec, scale=scale, config=config)[0],
        both,
        visited=block_lists(spec, *tilings, q.device),
    )


def flex_candidate(spec: AttentionSpec, tensors: list[Tensor]) -> Candidate:
    """FlexAttention on the same blocks: our lists, and the tokens already in our order (no packing is timed)."""
    device = tensors[0].device
    tilings = choose_tilings(spec, FLEX_BLOCK, FLEX_BLOCK)
    query_place, key_place = (places(tiling, spec.grid) for tiling in tilings)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        asked, seen = query_place(query), key_place(key)
        return spec.allowed(asked[:3], seen[:3]) & asked[3] & seen[3]

    seen = block_map(spec, *tilings)
    if tilings[1].capacity < FLEX_BLOCK:
        seen = seen.clamp(max=PARTIAL)  # only its mask can hide empty slots
    orders = [token_index(tiling, spec.grid, 0, device) for tiling in tilings]
    if tilings[0].tile is None:
        orders = [order[: spec.num_queries] for order in orders]
    lengths = (len(orders[0]), len(orders[1]))
    blocks = to_block_mask(seen.to(device), visible, FLEX_BLOCK, lengths=lengths)
    packed = [tensor.detach()[:, :, orders[i]] for i, tensor in zip((0, 1, 1, 0), tensors, strict=True)]
    run: Any = compiled_flex_attention if device.type == "cuda" else flex_attention
    slot = torch.empty(spec.num_queries, dtype=torch.long, device=device)
    held = tilings[0].tokens(spec.grid, prefix=0).flatten().to(device)[: lengths[0]]
    slot[held[held >= 0]] = torch.arange(lengths[0], device=device)[held >= 0]
    if device.type == "cuda":
        packed[:3] = [tensor.requires_grad_() for tensor in packed[:3]]
    candidate = differentiable(
        "flex",
        lambda q, k, v: run(q, k, v, block_mask=blocks),
        packed,
        place=lambda query: slot[query],
        visited=block_lists(spec, *tilings, device),
    )
    return candidate if device.type == "cuda" else replace(candidate, both=None)


def places(tiling: Tiling, grid: tuple[int, int, int]) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Frame, row, column of a slot, and whether it holds a token, in integer arithmetic, as FlexAttention likes it."""
    _, height, width = grid

    def in_run(slot: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return slot // (height * width), slot // width % height, slot % width, slot >= 0

    def in_tile(slot: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        assert tiling.tile is not None
        block, inside = slot // tiling.block, slot % tiling.block
        _, rows, columns = tiling.tiles(grid)
        _, tile_rows, tile_columns = tiling.tile
        frame = block // (rows * columns) * tiling.tile[0] + inside // (tile_rows * tile_columns)
        row = block // columns % rows * tile_rows + inside // tile_columns % tile_rows
        column = block % columns * tile_columns + inside % tile_columns
        held = (inside < tiling.capacity) & (frame < grid[0]) & (row < height) & (column < width)
        return frame, row, column, held

    return in_run if tiling.tile is None else in_tile


def dense_candidates(tensors: list[Tensor]) -> Iterator[Candidate]:
    """PyTorch's fused attention without a mask, by each of the libraries behind it."""
    kernels = {"sdpa_cudnn": SDPBackend.CUDNN_ATTENTION, "sdpa_flash": SDPBackend.FLASH_ATTENTION}
    for name, kernel in kernels.items():
        if name == "sdpa_cudnn" and not tensors[0].is_cuda:
            continue

        def attend(q: Tensor, k: Tensor, v: Tensor, kernel: SDPBackend = kernel) -> Tensor:
            with sdpa_kernel(kernel):
                return scaled_dot_product_attention(q, k, v)

        yield differentiable(name, attend, tensors)


# ------------------------------------------------------------------------------------------------------- measurement


def milliseconds(step: Callable[[], Any], device: torch.device) -> tuple[float, float, float]:
    """Median, 20 % and 80 % quantile of the time of a step, each begun with a cold L2 cache."""
    if device.type != "cuda":
        began = time.perf_counter()
        step()
        spent = 1000 * (time.perf_counter() - began)
        return spent, spent, spent
    cache = torch.empty(2**28, dtype=torch.int8, device=device)  # five times the L2 cache of an H100
    times: list[float] = []
    repeats = 5
    while len(times) < repeats:
        cache.zero_()
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        began.record()
        step()
        ended.record()
        ended.synchronize()
        times.append(began.elapsed_time(ended))
        if len(times) == 3:  # warm by now: as many as fit into a second, 10 to 100
            repeats = 3 + min(100, max(10, int(1000 / times[-1])))
    fifths = statistics.quantiles(times[3:], n=5)
    return statistics.median(times[3:]), fifths[0], fifths[3]


def sampled_truth(spec: AttentionSpec, tensors: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Random queries, and their outputs and dQ in float64 from the pattern's rule alone."""
    q, k, v, d_output = (tensor.detach() for tensor in tensors)
    chosen = torch.randint(spec.num_queries, (SAMPLED_QUERIES,), generator=torch.Generator().manual_seed(0)).to(
        q.device
    )
    keys = torch.arange(spec.num_keys, device=q.device)
    mask = spec.allowed(spec.query_coordinates(chosen[:, None]), spec.key_coordinates(keys[None, :]))
    outputs, gradients = [], []
    for head in range(q.shape[1]):  # one head at a time, or the scores in float64 would fill the memory
        rows = q[:, head, chosen].double().requires_grad_()
        scores = rows @ k[:, head].double().transpose(-1, -2) * q.shape[-1] ** -0.5
        output = scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v[:, head].double()
        gradients.append(torch.autograd.grad(output, rows, d_output[:, head, chosen].double())[0])
        outputs.append(output.detach())
    return chosen, torch.stack(outputs, dim=1), torch.stack(gradients, dim=1)


def relative_error(value: Tensor, truth: Tensor) -> float:
    """RMS of the difference over RMS of the truth."""
    return float((value.double() - truth).square().mean().sqrt() / truth.square().mean().sqrt())


def measure(candidate: Candidate, direction: str, truth: tuple[Tensor, Tensor, Tensor]) -> Row:
    """Check a candidate, then time it."""
    chosen, output_truth, gradient_truth = truth
    place = candidate.place(chosen)
    if direction == "forward":
        step: Callable[[], Any] = candidate.forward
        output = candidate.forward()
        errors = [relative_error(output[:, :, place], output_truth)]
    else:
        assert candidate.both is not None
        step = candidate.both
        output, gradient = candidate.both()
        errors = [relative_error(output.detach()[:, :, place], output_truth)]
        errors.append(relative_error(gradient[:, :, place], gradient_truth))
    dtype = output.dtype
    if any(error > (1, 2)[i] * LARGEST_ERROR[dtype] for i, error in enumerate(errors)):
        raise RuntimeError(
            f"{candidate.name} is wrong: errors {errors} in {dtype}; nothing is timed before that is mended"
        )
    median, fast, slow = milliseconds(step, output_truth.device)
    row: Row = {"milliseconds": median, "p20_ms": fast, "p80_ms": slow, "error": max(errors)}
    if candidate.packing is not None:
        packing = candidate.packing
        row["packing_ms"] = milliseconds(lambda: packing(direction), output_truth.device)[0]
    return row


def measured(settings: Settings, known: list[Row]) -> Iterator[Row]:
    """The rows that are not known yet, until the time is over."""
    device = torch.device("cpu" if settings.dry_run else "cuda")
    dtype = torch.float32 if settings.dry_run else torch.bfloat16
    done = {identity(row) for row in known}
    began = time.monotonic()
    for shape in shapes(settings.dry_run):
        generator = torch.Generator(device).manual_seed(0)
        size = (shape.batch, shape.heads, math.prod(shape.grid), shape.head_size)
        tensors = [torch.randn(size, device=device, generator=generator).to(dtype) for _ in range(4)]
        tensors = [*(tensor.requires_grad_() for tensor in tensors[:3]), tensors[3]]
        for pattern, spec in shape.patterns.items():
            truth = sampled_truth(spec, tensors)
            dense = dense_candidates(tensors) if pattern == "full" else ()
            print(f"{shape.name} {pattern}", flush=True)
            for candidate, direction in itertools.product(
                itertools.chain(dense, candidates(spec, tensors, settings.backends)), DIRECTIONS
            ):
                named: Row = {
                    "shape": shape.name,
                    "grid": "x".join(map(str, shape.grid)),
                    "batch": shape.batch,
                    "heads": shape.heads,
                    "head_size": shape.head_size,
                    "dtype": str(dtype).removeprefix("torch."),
                    "pattern": pattern,
                    "backend": candidate.name,
                    "direction": direction,
                }
                if identity(named) in done or (direction != "forward" and candidate.both is None):
                    continue
                if time.monotonic() - began > 60 * settings.minutes:
                    print(f"{settings.minutes:g} minutes are over; call again to go on")
                    return
                lists = candidate.visited
                named["density"] = spec.density()
                named["visited_density"] = lists.executed_pairs / spec.num_queries / spec.num_keys if lists else None
                yield named | measure(candidate, direction, truth)


def identity(row: Row) -> tuple[Any, ...]:
    """What a row measures."""
    return row["shape"], row["pattern"], row["backend"], row["direction"]


def with_ratios(rows: list[Row]) -> list[Row]:
    """Speeds, and ratios to the fastest dense SDPA and to FlexAttention of the same shape and direction."""
    times = {identity(row): float(row["milliseconds"]) for row in rows}
    finished = []
    for row in rows:
        shape, pattern, _, direction = identity(row)
        spent = float(row["milliseconds"])
        tokens = math.prod(map(int, str(row["grid"]).split("x")))
        sizes = int(row["batch"]) * int(row["heads"]) * int(row["head_size"])
        dense_flops = 4 * tokens**2 * sizes * PRODUCTS[direction]
        dense = [
            value
            for key, value in times.items()
            if key[0] == shape and key[2].startswith("sdpa") and key[3] == direction
        ]
        flex = times.get((shape, pattern, "flex", direction))
        visited = row.get("visited_density")
        row = dict(row)
        row["effective_tflops"] = dense_flops * float(row["density"]) / spent / 1e9
        row["executed_tflops"] = dense_flops * float(visited) / spent / 1e9 if visited else None
        row["dense_over_this"] = min(dense) / spent if dense else None
        row["flex_over_this"] = flex / spent if flex else None
        row["share_of_ideal"] = min(dense) * float(row["density"]) / spent if dense else None
        row["share_of_visited_ideal"] = min(dense) * float(visited) / spent if dense and visited else None
        packing = row.get("packing_ms")
        row["milliseconds_packed"] = spent - float(packing) if packing else None
        finished.append(
            {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}
        )
    return finished


def judged(rows: list[Row]) -> Iterator[str]:
    """Each goal in a line, with what was reached (`GOALS` says by whom); left out where rows are missing."""
    known = {identity(row): row for row in rows}
    dense = ("sdpa_cudnn", "sdpa_flash")

    def least(shape: str, pattern: str, direction: str, names: tuple[str, ...]) -> float:
        """Milliseconds of the fastest; the backward pass alone is what both take beyond the forward pass."""
        found = [math.inf]
        for name in names:
            forward, both = (known.get((shape, pattern, name, each)) for each in DIRECTIONS)
            if direction == "backward" and forward and both:
                found.append(float(both["milliseconds"]) - float(forward["milliseconds"]))
            elif row := known.get((shape, pattern, name, direction)):
                found.append(float(row["milliseconds"]))
        return min(found)

    for (shape, pattern, direction), goals in GOALS.items():
        judged_names = ("triton",) if pattern == "full" else OURS
        ours = least(shape, pattern, direction, judged_names)
        shares = [known.get((shape, pattern, name, direction), {}).get("share_of_visited_ideal") for name in OURS]
        reached = {
            "dense_over_this": least(shape, "full", direction, dense) / ours,
            "flex_over_this": least(shape, pattern, direction, ("flex",)) / ours,
            "share_of_visited_ideal": max((float(share) for share in shares if share), default=math.nan),
        }
        for column, wanted in goals.items():
            if math.isfinite(reached[column]) and math.isfinite(ours):
                met = "met" if reached[column] >= wanted else "missed"
                yield f"{shape} {pattern} {direction}: {column} {reached[column]:.3g} of {wanted:g}, {met}"
    spent, limit = least("hunyuan", "sliding_tile", "forward", OURS), 1.15 * NATTEN_MILLISECONDS
    if math.isfinite(spent):
        met = "met" if spent <= limit else "missed"
        yield f"hunyuan sliding_tile forward: {spent:.3g} of at most {limit:.3g} ms (NATTEN + 15 %), {met}"


# --------------------------------------------------------------------------------------------------------- the table


def known_rows(output: Path, environment: dict[str, Any]) -> list[Row]:
    """Rows of an earlier call on the same device with the same versions and code, whatever else was committed since."""
    stamped = output.with_suffix(".json")
    known: dict[str, Any] = json.loads(stamped.read_text()) if stamped.exists() else {"environment": {}}
    if known["environment"] | {"commit": None} != environment | {"commit": None}:
        return []
    print(f"going on after {len(known['rows'])} rows of {stamped}")
    return known["rows"]


def main() -> None:
    """Measure what is missing and write the table after every row."""
    settings = tyro.cli(Settings, description=__doc__)
    if settings.dry_run and os.environ.get("TRITON_INTERPRET") != "1":
        # Triton decides when a kernel is defined, so the switch has to be there before any import
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "TRITON_INTERPRET": "1"})
    if not settings.dry_run and not torch.cuda.is_available():
        sys.exit(f"eval/kernels.py needs a CUDA device, and torch {torch.__version__} sees none; try --dry-run")
    stamp = environment_stamp("cpu" if settings.dry_run else "cuda")
    environment = {**stamp, "code": code_digest("vidgen/kernels", "eval/kernels.py")}
    writes = not settings.dry_run or settings.output != RESULTS / "attention_gpu.csv"
    rows = known_rows(settings.output, environment) if writes else []
    for row in measured(settings, list(rows)):
        rows.append(row)
        shown = with_ratios(rows)
        print("  " + ", ".join(f"{key} {value}" for key, value in shown[-1].items() if value is not None), flush=True)
        if writes:
            write_csv(settings.output, shown)
            result = {"environment": environment, "rows": shown, "goals": list(judged(shown))}
            write_json(settings.output.with_suffix(".json"), result)
    for line in judged(with_ratios(rows)):
        print(f"goal: {line}")


if __name__ == "__main__":
    main()
