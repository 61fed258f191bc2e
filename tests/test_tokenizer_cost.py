"""Do the default presets stay as cheap as promised, and does the cost table measure, resume and count right?"""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vidgen.eval.report import write_json

# What the round trip of 17x128x128 pixels may cost; diffusers' Wan needs 3,811.
BUDGET_GIGAFLOPS = 250


@pytest.fixture(scope="module")
def cost(repository: Path) -> Any:
    """The recipe as a module."""
    described = importlib.util.spec_from_file_location("tokenizer_cost", repository / "eval" / "tokenizer_cost.py")
    assert described is not None and described.loader is not None
    module = importlib.util.module_from_spec(described)
    sys.modules["tokenizer_cost"] = module
    described.loader.exec_module(module)
    return module


@pytest.mark.parametrize("preset", ["base-kl", "base-fsq"])
def test_the_default_presets_keep_within_their_budget(cost: Any, preset: str):
    encode, decode = cost.gigaflops(preset, torch.empty(1, 3, 17, 128, 128))
    assert 50 < encode + decode <= BUDGET_GIGAFLOPS


def test_rows_that_are_there_are_not_measured_again(cost: Any, tmp_path, monkeypatch, capsys):
    row = {"model": "shapes-kl", "frames": 17, "side": 128, "threads": 1, "encode_gflop": 1.0}
    write_json(tmp_path / "cost.json", {"rows": [row]})
    command = ["tokenizer_cost.py", "-o", str(tmp_path / "cost.csv"), "--models", "shapes-kl", "--sides", "128"]
    monkeypatch.setattr(sys, "argv", command)
    cost.main()
    assert "shapes-kl at 128 pixels is measured already" in capsys.readouterr().out
    assert not (tmp_path / "cost.csv").exists()


@pytest.mark.slow
def test_one_call_measures_ours_and_a_peer(repository: Path, tmp_path):
    output = tmp_path / "cost.csv"
    command = [sys.executable, "eval/tokenizer_cost.py", "-o", str(output), "--repeats", "1", "--frames", "5"]
    command += ["--sides", "32", "--models", "shapes-kl", "AutoencoderKLCosmos"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    header, *rows = output.read_text().splitlines()
    assert header.startswith("model,frames,side,threads,latent,tokens,parameters_million,encode_gflop")
    assert [row.split(",")[0] for row in rows] == ["shapes-kl", "AutoencoderKLCosmos"]
    assert all(float(row.split(",")[7]) > 0 for row in rows)


def test_a_name_that_is_no_tokenizer_is_refused(cost: Any):
    with pytest.raises(ValueError, match="unknown preset 'base-kll'"):
        cost.build("base-kll")
