"""Checkpoints that survive a kill at any moment: written beside, synced, renamed; the newest complete one counts."""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vidgen.files import save_tensors, share

FOLDER = re.compile(r"step-(\d+)")
HEADER = "checkpoint.json"


class CheckpointNotWritten(ValueError):
    """Saving failed; whatever was on disk before is still there."""


@dataclass(frozen=True)
class Checkpoint:
    """All that training needs to go on.

    Args:
        step: finished optimiser steps.
        weights: state of the training step's module.
        averages: moving averages of the parameters.
        training: optimiser states and the like: tensors, numbers, strings, lists and dicts.
        header: JSON-able facts, `validation` among them (loss of the last validation, None before the first).
    """

    step: int
    weights: dict[str, Tensor]
    averages: dict[str, Tensor]
    training: dict[str, Any]
    header: dict[str, Any]


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make `folder` with what `fill` writes into it, whole or not at all; an older one is replaced.

    Raises:
        CheckpointNotWritten: the disk is full, or the like.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for stale in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(stale)
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    try:
        unfinished.mkdir()
        fill(unfinished)
        for path in unfinished.rglob("*.safetensors"):
            share(path)
        for path in [*unfinished.rglob("*"), unfinished]:
            sync(path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors hide the system's error in these
        shutil.rmtree(unfinished, ignore_errors=True)
        kept = f"the one in {folder} from before is intact" if folder.exists() else "nothing that was there has changed"
        raise CheckpointNotWritten(
            f"could not write {folder} ({one_line(error)}); {kept}. Make room on the disk and go on with --resume"
        ) from error
    if folder.exists():
        replaced = folder.with_name(f".{folder.name}.replaced")
        folder.rename(replaced)
        unfinished.rename(folder)
        shutil.rmtree(replaced)
    else:
        unfinished.rename(folder)
    sync(folder.parent)


def one_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class CheckpointFolder:
    """The checkpoints of a run: `checkpoints/step-00001000/` and so on.

    Args:
        keep: how many of the newest stay; the one with the lowest validation loss stays too.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def steps(self) -> list[int]:
        """Finished steps of all complete checkpoints, ascending."""
        if not self.folder.is_dir():
            return []
        found = [(FOLDER.fullmatch(path.name), path) for path in self.folder.iterdir()]
        return sorted(int(match[1]) for match, path in found if match and (path / HEADER).is_file())

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def header(self, step: int) -> dict[str, Any]:
        return json.loads((self.path(step) / HEADER).read_text())

    def best(self) -> int | None:
        """The checkpoint with the lowest validation loss at its own step."""
        scored = [(self.header(step)["validation"], step) for step in self.steps()]
        scored = [pair for pair in scored if pair[0] is not None]
        return min(scored)[1] if scored else None

    def save(self, checkpoint: Checkpoint) -> Path:
        def fill(folder: Path) -> None:
            save_tensors(on_cpu(checkpoint.weights), folder / "model.safetensors")
            save_tensors(on_cpu(checkpoint.averages), folder / "average.safetensors")
            torch.save(checkpoint.training, folder / "training.pt")
            (folder / HEADER).write_text(json.dumps({"step": checkpoint.step, **checkpoint.header}, indent=2) + "\n")

        write_folder(self.path(checkpoint.step), fill)
        self._prune()
        return self.path(checkpoint.step)

    def load(self, step: int) -> Checkpoint:
        folder = self.path(step)
        return Checkpoint(
            step=step,
            weights=load_file(folder / "model.safetensors"),
            averages=load_file(folder / "average.safetensors"),
            training=torch.load(folder / "training.pt", map_location="cpu", weights_only=True),
            header=self.header(step),
        )

    def _prune(self) -> None:
        steps = self.steps()
        stay = {*steps[-self.keep :], self.best()}
        for step in steps:
            if step not in stay:
                leaving = self.folder / f".step-{step:08d}.leaving"  # a kill halfway must not leave half a checkpoint
                self.path(step).rename(leaving)
                shutil.rmtree(leaving)


def on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies that share no memory, as safetensors wants them."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}
