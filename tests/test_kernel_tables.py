"""Do the scripts that measure the kernels run from end to end? Their dry runs, on a CPU."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


def run(script: str, *options: str) -> str:
    command = [sys.executable, str(ROOT / "eval" / script), "--dry-run", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def test_the_cpu_table_has_every_pattern_in_both_directions_and_judges_its_goals(tmp_path: Path) -> None:
    said = run("attention_cpu.py", "-o", str(tmp_path / "table.csv"))
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["pattern"] for row in rows}) == 13 and len(rows) == 2 * 2 * 13
    windowed = [row for row in rows if row["pattern"] not in ("full", "frame_causal")]
    assert all(row["met"] in ("True", "False") for row in windowed if row["direction"] == "forward_backward")
    assert "goals met in " in said


def test_the_gpu_table_is_measured_judged_and_gone_on_with(tmp_path: Path) -> None:
    options = ("-o", str(tmp_path / "table.csv"))
    said = run("kernels.py", *options)
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert {row["pattern"] for row in rows} == {"full", "sliding_tile", "frame_causal"}
    assert {row["direction"] for row in rows if row["backend"] == "triton"} == {"forward", "forward_backward"}
    assert all(row["error"] < 1e-5 for row in rows)
    assert "goal: " in said
    assert f"going on after {len(rows)} rows" in run("kernels.py", *options)


def test_the_table_of_ops_names_every_op() -> None:
    said = run("ops.py")
    for name in ("norm_rope", "modulate", "gated_residual", "norm_silu_cache", "binary_entropy", "vq_assign"):
        assert name in said
    for name in ("linear_attention", "token_reduction", "goal: norm_rope", "goal: binary_entropy"):
        assert name in said
