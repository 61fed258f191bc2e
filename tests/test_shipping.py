"""Is a training stage shipped once it is finished and not before, and only with the tokenizer it was trained on?"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import torch
from recipe_module import recipe_module

import vidgen
from vidgen.pipelines.presets import PIPELINE_PRESETS

# Stands for Python: training exports a model and is killed, until it is resumed; what is called is written down.
STUB = """#!/usr/bin/env bash
echo "$(basename "$1" .py) $2 $([[ "$*" == *--resume* ]] && echo resumed)" >> calls
if [ "$1" = pipelines/train.py ]; then
  mkdir -p "runs/gpu-$2/checkpoints" "runs/gpu-$2/model"
  if [[ "$*" != *--resume* ]]; then kill -9 $$; fi
fi
"""


@pytest.fixture
def checkout(repository: Path, tmp_path: Path) -> Path:
    (tmp_path / "pipelines").mkdir()
    shutil.copy(repository / "pipelines" / "next_stage.sh", tmp_path / "pipelines")
    (tmp_path / "python").write_text(STUB)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def stages(checkout: Path) -> list[str]:
    environment = {**os.environ, "PYTHON": str(checkout / "python")}
    subprocess.run([checkout / "pipelines" / "next_stage.sh"], env=environment, check=True, capture_output=True)
    calls = [line.rstrip() for line in (checkout / "calls").read_text().splitlines()]
    (checkout / "calls").write_text("")
    return calls


def test_a_killed_training_goes_on_and_is_shipped_once(checkout: Path):
    ship = "ship runs/gpu-"
    assert stages(checkout) == ["train shapes-masked"]
    assert stages(checkout) == ["train shapes-masked resumed", f"{ship}shapes-masked", "train shapes-flow"]
    assert stages(checkout) == ["train shapes-flow resumed", f"{ship}shapes-flow", "train shapes-ar"]
    assert stages(checkout) == ["train shapes-ar resumed", f"{ship}shapes-ar"]
    assert stages(checkout) == []


@pytest.fixture
def ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = recipe_module("pipelines/ship.py")
    monkeypatch.setattr(module, "PRETRAINED", tmp_path / "built-in")
    return module


def test_a_pipeline_is_shipped_with_the_tokenizer_that_it_was_trained_on_alone(ship: ModuleType, tmp_path: Path):
    run, name = tmp_path / "run", "shapes-masked"
    pipeline = vidgen.load(name)
    pipeline.save_pretrained(run / "model")
    (run / "run.json").write_text(json.dumps({"preset": name, "steps": 1}))
    folder = ship.ship(run, name)
    preset = PIPELINE_PRESETS[name]
    expected = {"video_tokenizer": preset.tokenizer, "matcher": preset.matcher}
    assert json.loads((folder / "shared.json").read_text()) == expected
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == [
        "scheduler",
        "text_encoder",
        "transformer",
    ]
    shipped = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with torch.no_grad():
        next(iter(pipeline.video_tokenizer.encoder.parameters())).mul_(1.25)
    pipeline.save_pretrained(run / "model")
    with pytest.raises(ValueError, match="trained on a video tokenizer whose tokens come from the weights"):
        ship.ship(run, name)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == shipped


def test_what_is_shipped_names_no_place_of_this_machine_and_the_commit_before_it(
    ship: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run, name = tmp_path / "run", "shapes-masked"
    vidgen.load(name).save_pretrained(run / "model")
    settings = {"preset": name, "steps": 1, "output_dir": f"{ship.ROOT}/runs/one", "init_from": f"{ship.ROOT}/runs/two"}
    (run / "run.json").write_text(json.dumps(settings))
    earlier = ship.PRETRAINED / name / "earlier"
    earlier.mkdir(parents=True)
    monkeypatch.setattr(ship, "environment_stamp", lambda: {"commit": "clean" if earlier.exists() else "changed"})
    folder = ship.ship(run, name)
    shipped = json.loads((folder / "run.json").read_text())
    assert shipped == {**settings, "output_dir": "runs/one", "init_from": "runs/two"}
    assert json.loads((folder / "made.json").read_text())["commit"] == "clean"
    assert not earlier.exists()


def test_a_pipeline_whose_tokenizer_got_another_decoder_is_shipped(ship: ModuleType, tmp_path: Path):
    run, name = tmp_path / "run", "shapes-masked"
    pipeline = vidgen.load(name)
    with torch.no_grad():
        next(iter(pipeline.video_tokenizer.decoder.parameters())).mul_(1.25)
    pipeline.save_pretrained(run / "model")
    (run / "run.json").write_text(json.dumps({"preset": name, "steps": 1}))
    assert ship.ship(run, name).is_dir()
