"""Put a trained model among the built-in ones: `python pipelines/ship.py runs/NAME NAME`.

Weights are rounded to bf16. A pipeline leaves its video tokenizer out and names the built-in one in `shared.json`,
whose tokens have to be those that it was trained on (the decoder may be another one), and the matcher of its preset.
With the weights come `run.json`, which is enough to train the model again (paths within the checkout count from its
root), and `made.json`: command, commit, device. Ship from the checkout that the model was trained in.
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
from vidgen.matchers import Matcher
from vidgen.nn.fingerprint import weights_sha256
from vidgen.pipelines import VideoPipeline
from vidgen.pipelines.presets import PIPELINE_PRESETS

ROOT = Path(__file__).resolve().parents[1]


def ship(run: Path, name: str) -> Path:
    """Copy `run/model` to the built-in model `name`; returns its folder.

    Raises:
        ValueError: the pipeline was trained on another video tokenizer than the built-in one that it would get.
    """
    made_here = environment_stamp()  # before anything in the checkout changes
    model: Any = vidgen.load(run / "model")
    model.to(dtype=torch.bfloat16)
    if isinstance(model, VideoPipeline):
        model.register_modules(matcher=None)  # shared, as the tokenizer is
        check_tokenizer(model, PIPELINE_PRESETS[name].tokenizer, run)
        # The sampling settings of today, not those of the day the training began.
        model.register_to_config(defaults=PIPELINE_PRESETS[name].defaults)
    folder = PRETRAINED / name
    if folder.exists():
        shutil.rmtree(folder)
    model.save_pretrained(folder)
    recipe = "pipelines/train_matcher.py" if isinstance(model, Matcher) else "tokenizers/train.py"
    if isinstance(model, VideoPipeline):
        recipe = "pipelines/train.py"
        shutil.rmtree(folder / "video_tokenizer")
        preset = PIPELINE_PRESETS[name]
        shared = {"video_tokenizer": preset.tokenizer}
        if preset.matcher is not None:
            shared["matcher"] = preset.matcher
        (folder / "shared.json").write_text(json.dumps(shared, indent=2) + "\n")
    described = (run / "run.json").read_text().replace(f"{ROOT}/", "")
    (folder / "run.json").write_text(described)
    settings = json.loads(described)
    made = {
        "command": f"python {recipe} {settings['preset']} (all settings in run.json)",
        "steps": settings["steps"],
        **made_here,
    }
    (folder / "made.json").write_text(json.dumps(made, indent=2) + "\n")
    return folder


def check_tokenizer(pipeline: VideoPipeline, name: str, run: Path) -> None:
    """ValueError if the pipeline's video tokenizer has other tokens than the built-in one of that name, in bf16."""
    builtin: Any = vidgen.load(name)
    theirs, ours = tokens_sha256(pipeline.video_tokenizer), tokens_sha256(builtin.to(dtype=torch.bfloat16))
    if theirs != ours:
        raise ValueError(
            f"{run} was trained on a video tokenizer whose tokens come from the weights {theirs[:12]}…, and the "
            f"built-in {name} has {ours[:12]}…; put its own among the built-in ones first (pipelines/ship.py RUN "
            f"{name}), or train on --tokenizer {name}"
        )


def tokens_sha256(tokenizer: Any) -> str:
    """Hash of all weights of a tokenizer that decide its tokens: all but the decoder's."""
    return weights_sha256(tokenizer, without=("decoder.",))


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
