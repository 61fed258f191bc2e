"""What does leaving tokens out of attention save and cost (AsymRnR)? `python eval/token_reduction.py -o FILE.csv`.

Every row is one pair of ratios for queries and for keys. First a trained pipeline, whose videos are compared with those
of the full computation in dB of PSNR. Then a larger transformer with random weights at 4,096 tokens and more, where
attention is most of the work: its speed-up is what to look at, its dB (of tokens, with the full result's range as the
peak) only say that the reduction acts. Ratios 0 are the full computation: no dB, a speed-up of 1 but for noise.
"""

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

import vidgen
from vidgen.eval.report import environment_stamp, write_csv, write_json
from vidgen.generators import DiffusionTransformer
from vidgen.latents import LatentPart, LatentSpec
from vidgen.nn.random import randn, seeded
from vidgen.nn.reduced_attention import ReductionRun, TokenReduction

PROMPTS = (
    "a large red circle moving left on a navy background",
    "a small green square moving up on a black background",
    "a large yellow triangle moving right on a maroon background",
    "a small white star moving down on a teal background",
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured, and for how long."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """CSV file to write; the same name with .json gets the rows together with device, versions, commit and date."""
    model: str = "shapes-flow"
    """Built-in name or folder of a diffusion pipeline with full attention."""
    prompts: tuple[str, ...] = PROMPTS
    """What the pipeline is to show; one video each, with the same noise for all rows."""
    queries: tuple[float, ...] = (0.0, 0.3, 0.5, 0.7)
    """Ratios of queries."""
    keys: tuple[float, ...] = (0.0, 0.3, 0.5, 0.7)
    """Ratios of keys and values."""
    every: int = 5
    """Steps that a matching serves."""
    steps: int = 30
    """Steps of the pipeline."""
    large_grids: tuple[tuple[int, int, int], ...] = ((16, 16, 16), (32, 16, 16))
    """Frames, rows and columns of tokens of the larger transformer; none skips it."""
    large_width: int = 512
    """Width of the larger transformer."""
    large_layers: int = 8
    """Layers of the larger transformer."""
    large_steps: int = 5
    """Steps of the larger transformer, without guidance."""
    repeats: int = 3
    """Runs of each row; the table has the shortest."""
    device: str = "cpu"
    """`cuda` measures a GPU."""
    threads: int = 1
    """CPU threads."""
    dry_run: bool = False
    """Run everything at toy sizes: does the script work?"""

    def __post_init__(self) -> None:
        if not self.dry_run:
            return
        small = {"queries": (0.0, 0.5), "keys": (0.0, 0.5), "steps": 2, "large_grids": ((4, 4, 4),), "large_width": 64}
        for name, value in {**small, "large_layers": 2, "large_steps": 2, "repeats": 1}.items():
            object.__setattr__(self, name, value)


def curve(
    settings: Settings, label: dict[str, Any], make: Callable[[TokenReduction | None], Tensor], *, peak: float | None
) -> list[dict[str, Any]]:
    """A row for each pair of ratios; `make` gives the result, whose range is the peak where there is none."""
    pairs = list(itertools.product(settings.queries, settings.keys))
    reductions: list[TokenReduction | None] = [None]
    reductions += [TokenReduction(query=query, key=key, every=settings.every) for query, key in pairs]
    shortest, results = [math.inf] * len(reductions), [torch.empty(0)] * len(reductions)
    make(None)  # warm-up
    for _ in range(settings.repeats):  # in turns, so that a busy moment hits all
        for index, reduction in enumerate(reductions):
            started = now(settings)
            results[index] = make(reduction)
            shortest[index] = min(shortest[index], now(settings) - started)
    full = results[0]
    peak = peak or (full.max() - full.min()).item()
    rows = []
    for (query, key), seconds, result in zip(pairs, shortest[1:], results[1:], strict=True):
        error = (result - full).square().mean().item()
        rows.append(
            {
                **label,
                "query_ratio": query,
                "key_ratio": key,
                "every": settings.every,
                "seconds": round(seconds, 4),
                "full_seconds": round(shortest[0], 4),
                "speed_up": round(shortest[0] / seconds, 3),
                "psnr_to_full": round(10 * math.log10(peak**2 / error), 2) if error else None,
            }
        )
        print(", ".join(f"{column} {value}" for column, value in rows[-1].items()), flush=True)
    return rows


def now(settings: Settings) -> float:
    """CPU-seconds of this process, or wall-clock seconds of a GPU that is done."""
    if settings.device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def of_pipeline(settings: Settings) -> list[dict[str, Any]]:
    """The curve of a trained pipeline, in pixels."""
    pipe: Any = vidgen.load(settings.model)
    pipe.to(settings.device)
    pipe.set_progress_bar_config(disable=True)
    size = tuple(pipe.config.defaults[name] for name in ("num_frames", "height", "width"))
    tokens = math.prod(pipe.transformer.patches.grid(pipe.video_tokenizer.spec.grid(size)))
    label = {"model": settings.model, "tokens": tokens}

    def make(reduction: TokenReduction | None) -> Tensor:
        return pipe(
            list(settings.prompts),
            num_inference_steps=settings.steps,
            generator=[torch.Generator().manual_seed(index) for index in range(len(settings.prompts))],
            output_type="pt",
            num_candidates=1,
            token_reduction=reduction,
        ).frames.cpu()

    return curve(settings, label, make, peak=1.0)


@torch.no_grad()
def of_large(settings: Settings, grid: tuple[int, int, int]) -> list[dict[str, Any]]:
    """The curve of a larger transformer with random weights, in tokens."""
    torch.manual_seed(0)
    spec = LatentSpec((LatentPart("grid", "thw", (1, 8, 8), 16),), causal=True, streamable=True)
    network: Any = DiffusionTransformer(
        spec.to_json(), 64, width=settings.large_width, layers=settings.large_layers, heads=8
    ).eval()
    for weight in network.parameters():  # fresh gates are zero: nothing would reach another token
        weight.add_(0.02 * torch.randn_like(weight))
    network.to(settings.device)
    size = (grid[0], 8 * grid[1], 8 * grid[2])
    coordinates = spec.coordinates(size).to(settings.device)
    frame = randn((1, 1, grid[1] * grid[2], 16), seeded([0]))  # neighbouring frames are alike, as in videos
    noise = (0.9 * frame + 0.4 * randn((1, grid[0], grid[1] * grid[2], 16), seeded([1]))).flatten(1, 2)
    states = torch.randn(1, 8, 64, device=settings.device)
    mask = torch.ones(1, 8, dtype=torch.bool, device=settings.device)

    def make(reduction: TokenReduction | None) -> Tensor:
        run = None if reduction is None else ReductionRun(reduction)
        x = noise.to(settings.device)
        for step in range(settings.large_steps):
            level = 1 - step / settings.large_steps
            timestep = torch.full((1,), 1000 * level, device=x.device)
            here = None if run is None else run.at(step, level)
            said = network(x, timestep, coordinates, states, mask, grid=grid, reduction=here)
            x = x - said / settings.large_steps
        return x.cpu()

    name = f"random, {settings.large_layers} layers of width {settings.large_width}"
    return curve(settings, {"model": name, "tokens": math.prod(grid)}, make, peak=None)


def main() -> None:
    """Measure, print the table, write CSV and JSON."""
    settings = tyro.cli(Settings, description=__doc__)
    torch.set_num_threads(settings.threads)
    rows = of_pipeline(settings)
    for grid in settings.large_grids:
        rows += of_large(settings, grid)
    result = {
        "about": f"matchings kept for {settings.every} steps; pipeline: {settings.steps} steps with its own guidance",
        "dry_run": settings.dry_run,
        "date": datetime.now(UTC).date().isoformat(),
        "environment": environment_stamp(settings.device),
        "rows": rows,
    }
    write_csv(settings.output, rows)
    write_json(settings.output.with_suffix(".json"), result)


if __name__ == "__main__":
    main()
