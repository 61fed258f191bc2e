"""Do the default presets stay as cheap as promised, and does the cost table measure, resume and count right?"""

import csv
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe_module import recipe_module

from vidgen.eval.report import write_json

# What the round trip of 17x128x128 pixels may cost; diffusers' Wan needs 3,811.
BUDGET_GIGAFLOPS = 250


@pytest.fixture(scope="module")
def cost() -> Any:
    """The recipe as a module."""
    return recipe_module("eval/tokenizer_cost.py")


@pytest.mark.parametrize("preset", ["base-kl", "base-fsq"])
def test_the_default_presets_keep_within_their_budget(cost: Any, preset: str):
    encode, decode = cost.gigaflops(preset, torch.empty(1, 3, 17, 128, 128))
    assert 50 < encode + decode <= BUDGET_GIGAFLOPS


def test_rows_that_are_there_are_not_measured_again(cost: Any, tmp_path, monkeypatch, capsys):
    row = {"model": "shapes-kl", "frames": 17, "side": 128, **cost.WAYS["cpu"].marks(), "threads": 1}
    write_json(tmp_path / "cost.json", {"rows": [row]})
    command = ["tokenizer_cost.py", "-o", str(tmp_path / "cost.csv"), "--models", "shapes-kl", "--sides", "128"]
    monkeypatch.setattr(sys, "argv", command)
    assert cost.main() == 0
    assert "shapes-kl at 128 pixels is measured already" in capsys.readouterr().out
    assert not (tmp_path / "cost.csv").exists()


@pytest.mark.parametrize(("mark", "other"), [("device", "NVIDIA H100 80GB HBM3"), ("precision", "bfloat16")])
def test_a_file_of_another_device_or_precision_is_refused(cost: Any, tmp_path, mark: str, other: str):
    write_json(tmp_path / "cost.json", {"rows": [{"model": "shapes-kl", **cost.WAYS["cpu"].marks(), mark: other}]})
    with pytest.raises(ValueError, match=f"got one of .*{other}.*; name another file with -o"):
        cost.rows_before(tmp_path / "cost.csv", cost.WAYS["cpu"])


def test_no_row_is_begun_when_the_time_is_over(cost: Any, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tokenizer_cost.py", "-o", str(tmp_path / "cost.csv"), "--minutes", "0"])
    assert cost.main() == 0
    assert "0 minutes are over; call again to go on" in capsys.readouterr().out


def test_a_gpu_that_is_not_there_is_said_to_be_missing(cost: Any, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["tokenizer_cost.py", "-o", str(tmp_path / "cost.csv"), "--device", "cuda"])
    with pytest.raises(SystemExit, match="--device cuda needs a CUDA device"):
        cost.main()


def clock(*seconds: float) -> Callable[[Callable[[], Any]], tuple[Any, float]]:
    """A timer for which one call after another takes so many seconds."""
    left = list(seconds)
    return lambda work: (work(), left.pop(0))


def test_the_way_of_a_gpu_compiles_in_bfloat16_and_takes_the_median_of_its_times(cost: Any, tmp_path):
    settings = cost.Settings(output=tmp_path / "cost.csv", frames=5, repeats=3)
    way = replace(cost.DRY_RUN, timer=clock(0.5, 2.0, 0.25, 1.0, 0.125, 4.0))  # encode, decode, encode …
    row = cost.measure("shapes-kl", 32, settings, way)
    assert (row["precision"], row["compiled"], row["graph_breaks"], row["round_trips"]) == ("bfloat16", True, 0, 3)
    assert (row["encode_cpu_seconds"], row["decode_cpu_seconds"]) == (0.25, 2.0)
    assert (row["encode_frames_per_cpu_second"], row["decode_frames_per_cpu_second"]) == (20.0, 2.5)
    assert row["encode_gpu_seconds"] is row["decode_frames_per_gpu_second"] is None
    assert row["encode_gflop"] > 0
    assert min(row["memory_decode_peak_mb"], row["memory_built_mb"]) > 0  # of a process that gives memory back


def test_a_model_that_the_compiler_cannot_serve_runs_as_it_is(cost: Any, capsys):
    def refuse(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> None:
        raise NotImplementedError("no code for this convolution")

    model, video = cost.build("shapes-kl"), torch.zeros(1, 3, 1, 16, 16)
    assert cost.warm_up(model, video, replace(cost.DRY_RUN, dtype=torch.float32, backend=refuse)) is None
    assert "no code for this convolution" in capsys.readouterr().out
    assert model.features.__func__ is type(model).features and model.pixels.__func__ is type(model).pixels


def test_times_of_a_device_stand_in_its_own_columns(cost: Any):
    assert cost.speeds("gpu", 0.0123456, 2.0, 17, measured=True) == {
        "encode_gpu_seconds": 0.01235,
        "decode_gpu_seconds": 2.0,
        "encode_frames_per_gpu_second": 1377.0,
        "decode_frames_per_gpu_second": 8.5,
    }
    assert set(cost.speeds("cpu", 1.0, 1.0, 17, measured=False).values()) == {None}


@pytest.mark.gpu
def test_events_and_memory_of_a_gpu_are_measured(cost: Any, tmp_path):
    settings = cost.Settings(output=tmp_path / "cost.csv", device="cuda", frames=5, repeats=2)
    cost.reset_peak_memory("cuda")  # other tests ran in this process
    row = cost.measure("shapes-kl", 64, settings, replace(cost.WAYS["cuda"], backend="eager"))
    assert row["device"] == torch.cuda.get_device_name() and row["compiled"]
    assert row["encode_frames_per_gpu_second"] > 0 and row["encode_cpu_seconds"] is row["threads"] is None
    assert row["memory_decode_peak_mb"] >= row["memory_built_mb"] >= 2 * row["parameters_million"] * 1e6 // 2**20


@pytest.mark.slow
def test_one_call_measures_ours_and_a_peer_and_passes_over_a_model_that_fails(repository: Path, tmp_path):
    output = tmp_path / "cost.csv"
    command = [sys.executable, "eval/tokenizer_cost.py", "-o", str(output), "--repeats", "1", "--frames", "5"]
    command += ["--sides", "32", "--models", "shapes-kl", "base-kll", "AutoencoderKLCosmos"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=900)
    assert done.returncode == 1, done.stderr[-2000:]
    assert "base-kll at 32 pixels was not measured: unknown preset" in done.stderr
    rows = list(csv.DictReader(output.read_text().splitlines()))
    assert [row["model"] for row in rows] == ["shapes-kl", "AutoencoderKLCosmos"]
    assert all(float(row["encode_gflop"]) > 0 and float(row["encode_frames_per_cpu_second"]) > 0 for row in rows)
    assert all((row["precision"], row["compiled"]) == ("float32", "False") for row in rows)
    assert all(row["encode_gpu_seconds"] == row["graph_breaks"] == "" for row in rows)


def test_a_name_that_is_no_tokenizer_is_refused(cost: Any):
    with pytest.raises(ValueError, match="unknown preset 'base-kll'"):
        cost.build("base-kll")
