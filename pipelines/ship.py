"""Put a trained model among the built-in ones: `python pipelines/ship.py runs/NAME NAME`.

Weights are rounded to bf16. A pipeline leaves its video tokenizer out and names the built-in one in `shared.json`,
which has to be the one that it was trained on. With the weights come `run.json`, which is enough to train the model
again, and `made.json`: command, commit, device.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

import vidgen
from vidgen.eval.report import environment_stamp
from vidgen.loading import PRETRAINED
from vidgen.nn.fingerprint import weights_sha256
from vidgen.pipelines import VideoPipeline
from vidgen.pipelines.presets import PIPELINE_PRESETS


def ship(run: Path, name: str) -> Path:
    """Copy `run/model` to the built-in model `name`; returns its folder.

    Raises:
        ValueError: the pipeline was trained on another video tokenizer than the built-in one that it would get.
    """
    model: Any = vidgen.load(run / "model")
    model.to(dtype=torch.bfloat16)
    if isinstance(model, VideoPipeline):
        check_tokenizer(model, PIPELINE_PRESETS[name].tokenizer, run)
        # The sampling settings of today, not those of the day the training began.
        model.register_to_config(defaults=PIPELINE_PRESETS[name].defaults)
    folder = PRETRAINED / name
    if folder.exists():
        shutil.rmtree(folder)
    model.save_pretrained(folder)
    recipe = "tokenizers/train.py"
    if isinstance(model, VideoPipeline):
        recipe = "pipelines/train.py"
        shutil.rmtree(folder / "video_tokenizer")
        shared = {"video_tokenizer": PIPELINE_PRESETS[name].tokenizer}
        (folder / "shared.json").write_text(json.dumps(shared, indent=2) + "\n")
    shutil.copy(run / "run.json", folder / "run.json")
    settings = json.loads((run / "run.json").read_text())
    made = {
        "command": f"python {recipe} {settings['preset']} (all settings in run.json)",
        "steps": settings["steps"],
        **environment_stamp(),
    }
    (folder / "made.json").write_text(json.dumps(made, indent=2) + "\n")
    return folder


def check_tokenizer(pipeline: VideoPipeline, name: str, run: Path) -> None:
    """ValueError if the pipeline's video tokenizer is not the built-in one of that name, both rounded to bf16."""
    builtin: Any = vidgen.load(name)
    theirs, ours = weights_sha256(pipeline.video_tokenizer), weights_sha256(builtin.to(dtype=torch.bfloat16))
    if theirs != ours:
        raise ValueError(
            f"{run} was trained on a video tokenizer with the weights {theirs[:12]}…, and the built-in {name} has "
            f"{ours[:12]}…; put its own among the built-in ones first (pipelines/ship.py RUN {name}), or train on "
            f"--tokenizer {name}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished training run")
    parser.add_argument("name", help="built-in name")
    arguments = parser.parse_args()
    try:
        print(ship(arguments.run, arguments.name))
    except ValueError as error:
        print(f"pipelines/ship.py: {error}", file=sys.stderr)
        sys.exit(2)
