"""Do the scripts that measure the kernels run from end to end and judge rightly? Their dry runs, on a CPU."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from recipe_module import recipe_module

ROOT = Path(__file__).resolve().parents[1]


def run(script: str, *options: str) -> str:
    command = [sys.executable, str(ROOT / "eval" / script), "--dry-run", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.mark.slow
def test_the_cpu_table_has_every_pattern_in_both_directions_and_judges_its_goals(tmp_path: Path) -> None:
    said = run("attention_cpu.py", "-o", str(tmp_path / "table.csv"))
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["pattern"] for row in rows}) == 13 and len(rows) == 2 * 2 * 13
    windowed = [row for row in rows if row["pattern"] not in ("full", "frame_causal")]
    assert all(row["met"] in ("True", "False") for row in windowed if row["direction"] == "forward_backward")
    assert "goals met in " in said


@pytest.mark.slow
def test_the_gpu_table_is_measured_judged_and_gone_on_with(tmp_path: Path) -> None:
    options = ("-o", str(tmp_path / "table.csv"))
    said = run("kernels.py", *options)
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert {row["pattern"] for row in rows} == {"full", "sliding_tile", "frame_causal"}
    assert {row["direction"] for row in rows if row["backend"] == "triton"} == {"forward", "forward_backward"}
    assert all(row["error"] < 1e-5 for row in rows)
    assert "goal: " in said
    assert f"going on after {len(rows)} rows" in run("kernels.py", *options)


@pytest.mark.slow
def test_the_table_of_ops_names_every_op() -> None:
    said = run("ops.py")
    for name in ("norm_rope", "modulate", "gated_residual", "norm_silu_cache", "binary_entropy", "vq_assign"):
        assert name in said
    for name in ("linear_attention", "token_reduction", "goal: norm_rope", "goal: binary_entropy"):
        assert name in said


def test_every_judged_row_of_the_measured_cpu_table_meets_its_goal() -> None:
    with (ROOT / "eval" / "results" / "attention_cpu.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(row["met"] != "" for row in rows) >= 32
    assert all(row["met"] in ("", "True") for row in rows)
    for row in rows:
        if "exponent 1.1" in row["goal"]:
            assert float(row["exponent_in_tokens"]) <= 1.1
        elif row["exponent_in_tokens"] and row["met"]:
            assert "exponent not judged" in row["goal"]


def test_dense_attention_is_judged_by_what_triton_reaches_even_where_another_backend_is_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = recipe_module("eval/kernels.py")
    times = {"sdpa_flash": 10.0, "triton": 20.0, "cuda": 9.0}
    rows = [
        {"shape": "wan", "pattern": "full", "direction": "forward", "backend": name, "milliseconds": spent}
        for name, spent in times.items()
    ]
    assert list(recipe.judged(rows)) == ["wan full forward: dense_over_this 0.5 of 0.75, missed"]
