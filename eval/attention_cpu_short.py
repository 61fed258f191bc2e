"""When do plain products beat the fused attention call on a CPU? `python eval/attention_cpu_short.py -o FILE.csv`."""

import itertools
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import tyro
from einops import rearrange

from vidgen.eval.report import KEEPING_MEMORY, environment_stamp, write_csv, write_json
from vidgen.kernels import AttentionSpec
from vidgen.kernels.backends import BACKENDS

DTYPES = (torch.bfloat16, torch.float32)
COMPARED = ("matmul", "sdpa_reshape")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """CSV file to write; the same name with .json gets the rows together with device, versions, commit and date."""
    batch: int = 16
    """Samples."""
    heads: int = 4
    """Heads of queries and keys."""
    tokens: tuple[int, ...] = (64, 320, 512, 1024)
    """Lengths of the sequence."""
    head_channels: tuple[int, ...] = (32, 64)
    """Channels of a head."""
    threads: int = 1
    """CPU threads; CPU-seconds add up over them."""
    repeats: int = 5
    """Forward and backward passes after the warm-up, the backends taking turns; the table has the median."""


def passes(
    backend: str, spec: AttentionSpec, dtype: torch.dtype, settings: Settings, channels: int
) -> Callable[[], float]:
    """A function that runs forward and backward once and gives the CPU-seconds."""
    count = spec.num_keys
    shape = (settings.batch, count, 3 * settings.heads * channels)
    qkv = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    upstream = torch.randn(settings.batch, settings.heads, count, channels).to(dtype)

    def once() -> float:
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=settings.heads)
        started = time.process_time()
        output, _ = BACKENDS[backend].attend(q, k, v, spec, scale=channels**-0.5, return_lse=False)
        torch.autograd.grad(output, (q, k, v), upstream)
        return time.process_time() - started

    return once


def measure(settings: Settings, freed_memory: str) -> list[dict[str, Any]]:
    """The rows of one process; `freed_memory` names its allocator setting, which the environment has made."""
    torch.set_num_threads(settings.threads)
    rows = []
    cases = itertools.product(DTYPES, (False, True), settings.head_channels, settings.tokens)
    for dtype, causal, channels, count in cases:
        spec = AttentionSpec.sequence(count, causal)
        runs = {name: passes(name, spec, dtype, settings, channels) for name in COMPARED}
        for run in runs.values():
            run()
        seconds: dict[str, list[float]] = {name: [] for name in COMPARED}
        for _ in range(settings.repeats):
            for name, run in runs.items():
                seconds[name].append(run())
        times = {name: median(values) for name, values in seconds.items()}
        rows.append(
            {
                "freed_memory": freed_memory,
                "dtype": str(dtype).removeprefix("torch."),
                "pattern": "causal" if causal else "full",
                "batch": settings.batch,
                "heads": settings.heads,
                "tokens": count,
                "head_channels": channels,
                **{f"{name}_cpu_seconds": round(value, 5) for name, value in times.items()},
                "sdpa_over_matmul": round(times["sdpa_reshape"] / times["matmul"], 2),
            }
        )
        print(", ".join(f"{column} {value}" for column, value in rows[-1].items()), flush=True)
    return rows


def main() -> None:
    """Measure forward and backward of both backends, print the table, write CSV and JSON."""
    settings = tyro.cli(Settings, description=__doc__)
    rows = []
    for freed_memory, variables in (("returned", {}), ("kept", KEEPING_MEMORY)):
        os.environ.update(variables)  # read by the C library when the fresh process starts
        with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as fresh:
            rows += fresh.submit(measure, settings, freed_memory).result()
    torch.set_num_threads(settings.threads)
    stamp = {"date": datetime.now(UTC).date().isoformat(), "environment": environment_stamp(), "rows": rows}
    write_csv(settings.output, rows)
    write_json(settings.output.with_suffix(".json"), stamp)


if __name__ == "__main__":
    main()
