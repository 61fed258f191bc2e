"""Everything that waits for a GPU, within one budget of time: tests, then the tables, then the next training stage.

`make gpu`, or `python eval/gpu.py`, on a machine with CUDA; needs no network. Call it again to go on: tests that this
code has passed on this device are not repeated, measured rows are kept, training resumes. Nothing is timed before the
tests have passed. `--dry-run` takes the same steps at toy sizes on a CPU, the kernels in Triton's interpreter, and
leaves nothing behind.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from vidgen.eval.report import code_digest, environment_stamp, write_json

ROOT = Path(__file__).resolve().parents[1]
PASSED = ROOT / "runs" / "gpu-passed.json"
TOKENIZER_TABLE = ROOT / "eval" / "results" / "tokenizers_cost_gpu.csv"
# How much of the time that is left a step may take; the training gets the rest.
TESTS, ATTENTION, OPS, TOKENIZERS = 0.6, 0.6, 0.5, 0.5
# A step asked to end by itself is stopped so many seconds later: a row that has begun may still be measured.
GRACE = 60
# Seconds under which a training would hardly get beyond its start.
SHORTEST_TRAINING = 90


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How long, and whether in earnest."""

    seconds: float = 570
    """The budget of all steps together; whatever still runs then is stopped."""
    dry_run: bool = False
    """Toy sizes on a CPU."""


class Budget:
    """Seconds that all steps share."""

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return self._ends - time.monotonic()

    def run(self, *command: str, seconds: float) -> int | None:
        """Exit status of a command, or None if it was stopped after so many seconds or at the end of the budget."""
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
        try:
            return process.wait(max(0, min(seconds, self.left)))
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:  # with all that it started
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def tests(dry_run: bool) -> list[str]:
    """The command that runs them, on as many processes as compile kernels side by side without crowding the GPU."""
    if dry_run:
        chosen = ["tests/test_triton_interpret.py", "-k", "equal_the_reference"]
    else:
        files = sorted(path for path in (ROOT / "tests").glob("test_*.py") if "mark.gpu" in path.read_text())
        workers = str(min(8, (os.cpu_count() or 2) // 2))
        chosen = [*map(str, files), "-m", "gpu and not external", "-n", workers, "--dist", "load"]
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]


def passed(device: str) -> dict:
    """What the record says when this code has passed the tests on this device."""
    return {**environment_stamp(device), "commit": None, "code": code_digest("vidgen", "tests")}


def main() -> int:
    """Every step within its share; 1 if one fails or the tests do not come to an end, 0 otherwise."""
    settings = tyro.cli(Settings, description=__doc__)
    device = "cpu" if settings.dry_run else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        print(
            f"make gpu needs a CUDA device, and torch {torch.__version__} sees none here: run it on a machine with an "
            "NVIDIA GPU and its driver, or try python eval/gpu.py --dry-run",
            file=sys.stderr,
        )
        return 1
    budget = Budget(settings.seconds)
    record = passed(device)
    if PASSED.exists() and json.loads(PASSED.read_text()) == record:
        print("this code has passed the tests on this device before")
    else:
        status = budget.run(*tests(settings.dry_run), seconds=TESTS * budget.left)
        if status is None:
            print("the tests did not come to an end; compiled kernels are kept, so call again: nothing is timed before")
            return 1
        if status:
            print("the tests fail: nothing is timed before that is mended")
            return 1
        if not settings.dry_run:
            write_json(PASSED, record)
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        for script, options, share in (
            ("kernels.py", (), ATTENTION),
            ("ops.py", (), OPS),
            ("tokenizer_cost.py", ("--device", "cuda", "-o", str(TOKENIZER_TABLE)), TOKENIZERS),
        ):
            seconds = share * budget.left
            command: Sequence[str] = (str(ROOT / "eval" / script), *options, "--minutes", f"{seconds / 60:.3f}")
            if settings.dry_run:
                command = (*command, "--dry-run")
            status = budget.run(sys.executable, *command, seconds=seconds + GRACE)
            if status is None:
                print(f"eval/{script} was stopped; its rows are kept, call again to go on")
            failed |= bool(status)
        if budget.left < SHORTEST_TRAINING:
            print(f"{budget.left:.0f} seconds are left, too few to train; call again to go on")
            return int(failed)
        stage = [str(ROOT / "pipelines" / "next_stage.sh"), str(int(budget.left))]
        failed |= bool(budget.run(*stage, *([scratch] if settings.dry_run else []), seconds=budget.left))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
