"""Time every attention3d backend that can serve, pattern by pattern; writes eval/results/kernels_DEVICE.csv and .json.

On CUDA bf16 at the token counts of a small video transformer; without it a reduced table in fp32, which only shows that
the script runs. Ratios are to one dense SDPA call without a mask in the same run; absolute times are of one machine.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from vidgen.eval.report import environment_stamp, write_csv, write_json
from vidgen.kernels import AttentionSpec, attention3d
from vidgen.kernels.backends import BACKENDS

RESULTS = Path(__file__).resolve().parent / "results"


def patterns(grid: tuple[int, int, int]) -> dict[str, AttentionSpec]:
    """The patterns that the generators and tokenizers of the field use, on one grid."""
    return {
        "full": AttentionSpec.full(grid),
        "frame_causal": AttentionSpec.frame_causal(grid),
        "factorised_spatial": AttentionSpec.factorised_spatial(grid),
        "factorised_temporal": AttentionSpec.factorised_temporal(grid),
        "swin3d": AttentionSpec.swin3d(grid, (4, 4, 4), shifted=True),
        "neighborhood": AttentionSpec.neighborhood(grid, (3, 5, 5)),
    }


def milliseconds(step: Callable[[], None], device: torch.device, *, repeats: int) -> float:
    """Median over repeats after two warm-up calls."""
    times = []
    for repeat in range(repeats + 2):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if repeat >= 2:
            times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def table(device: torch.device, *, repeats: int) -> list[dict[str, object]]:
    """One row for each pattern, backend and direction."""
    on_gpu = device.type == "cuda"
    grid = (8, 32, 32) if on_gpu else (4, 8, 8)
    shape = (1, 16, grid[0] * grid[1] * grid[2], 64)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    q, k, v = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
    rows: list[dict[str, object]] = []
    dense: dict[str, float] = {}
    for name, spec in patterns(grid).items():
        for backend, entry in BACKENDS.items():
            if backend == "reference" or entry.unsupported(q, k, v, spec, return_lse=False) is not None:
                continue

            def forward(spec: AttentionSpec = spec, backend: str = backend) -> None:
                with torch.no_grad():
                    attention3d(q, k, v, spec, backend=backend)

            def both(spec: AttentionSpec = spec, backend: str = backend) -> None:
                attention3d(q, k, v, spec, backend=backend).sum().backward()

            for direction, step in (("forward", forward), ("forward_backward", both)):
                spent = milliseconds(step, device, repeats=repeats)
                if name == "full" and backend == "sdpa_reshape":
                    dense[direction] = spent
                rows.append(
                    {
                        "pattern": name,
                        "grid": "x".join(map(str, grid)),
                        "backend": backend,
                        "direction": direction,
                        "density": round(spec.density(), 4),
                        "milliseconds": round(spent, 3),
                    }
                )
    for row in rows:
        row["times_dense"] = round(float(str(row["milliseconds"])) / dense[str(row["direction"])], 3)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    measured = table(where, repeats=arguments.repeats)
    write_csv(RESULTS / f"kernels_{where.type}.csv", measured)
    write_json(RESULTS / f"kernels_{where.type}.json", {"rows": measured, "environment": environment_stamp(where)})
    for row in measured:
        print(*row.values(), sep="\t")
