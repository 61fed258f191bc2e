"""Does the run of everything that needs a GPU (`make gpu`) keep to its budget, and refuse to time what is wrong?"""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from recipe_module import recipe_module

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """The script as a module, with nothing to record and torch that sees a device."""
    module = recipe_module("eval/gpu.py")
    monkeypatch.setattr(module.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(module, "passed", lambda device: {"device": device})
    return module


def test_a_command_that_overruns_is_stopped_with_everything_it_started(gpu, tmp_path: Path) -> None:
    began, budget = time.monotonic(), gpu.Budget(60)
    late = tmp_path / "late"
    assert budget.run("bash", "-c", f"(sleep 1.5; touch {late}) & sleep 30", seconds=0.3) is None
    assert budget.run("bash", "-c", "exit 3", seconds=30) == 3
    assert gpu.Budget(0.3).run("sleep", "30", seconds=30) is None
    assert time.monotonic() - began < 15
    time.sleep(1.5)
    assert not late.exists()


def calls_of(gpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, tests: int | None, seconds: int) -> list[str]:
    """The commands that a run of so many seconds gives, when the tests end with this status."""
    calls = []

    def run(budget, *command: str, seconds: float) -> int | None:
        assert 0 < seconds <= budget.left + gpu.GRACE
        calls.append(" ".join(command))
        return tests if "pytest" in command else 0

    monkeypatch.setattr(gpu.Budget, "run", run)
    monkeypatch.setattr(gpu, "PASSED", tmp_path / "passed.json")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--seconds", str(seconds)])
    calls.append(str(gpu.main()))
    return calls


@pytest.mark.parametrize("status", [1, None], ids=["failed", "stopped"])
def test_nothing_is_timed_before_the_tests_pass(gpu, monkeypatch, tmp_path, status) -> None:
    calls = calls_of(gpu, monkeypatch, tmp_path, tests=status, seconds=570)
    assert len(calls) == 2 and calls[1] == "1"
    assert not (tmp_path / "passed.json").exists()


def test_a_second_run_goes_on_behind_the_tests(gpu, monkeypatch, tmp_path) -> None:
    first = calls_of(gpu, monkeypatch, tmp_path, tests=0, seconds=570)
    steps = ("pytest", "kernels.py", "ops.py", "tokenizer_cost.py --device cuda", "next_stage.sh")
    assert [[name in call for call in first].index(True) for name in steps] == [0, 1, 2, 3, 4]
    assert json.loads((tmp_path / "passed.json").read_text()) == {"device": "cuda"}
    second = calls_of(gpu, monkeypatch, tmp_path, tests=0, seconds=570)
    seconds_left = re.compile(r"\d+(\.\d+)?")  # a busy machine has a little less time left
    assert [seconds_left.sub("N", call) for call in second] == [seconds_left.sub("N", call) for call in first[1:]]


def test_too_little_time_for_a_training_is_left_alone(gpu, monkeypatch, tmp_path) -> None:
    calls = calls_of(gpu, monkeypatch, tmp_path, tests=0, seconds=gpu.SHORTEST_TRAINING - 10)
    assert not any("next_stage" in call for call in calls)


def test_the_tests_of_the_kernels_are_among_those_that_are_run(gpu) -> None:
    command = " ".join(gpu.tests(False))
    for name in ("test_kernels_gpu", "test_cuda_kernel", "test_attention_backends", "test_ops_triton"):
        assert f"{name}.py" in command


def test_the_digest_of_code_changes_with_the_code_and_with_nothing_else(tmp_path, monkeypatch) -> None:
    from vidgen.eval import report

    monkeypatch.setattr(report, "__file__", str(tmp_path / "vidgen" / "eval" / "report.py"))
    (tmp_path / "code").mkdir()
    source = tmp_path / "code" / "kernel.cu"
    source.write_text("one")
    first = report.code_digest("code")
    (tmp_path / "code" / "notes.md").write_text("of no effect")
    assert report.code_digest("code") == first == report.code_digest("code", "missing")
    assert report.code_digest("code/kernel.cu") == first
    source.write_text("two")
    assert report.code_digest("code") != first


@pytest.mark.slow
def test_the_dry_run_takes_every_step_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "eval" / "gpu.py"), "--dry-run", "--seconds", "3600"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-4000:]
    for part in ("passed", "goal: ", "binary_entropy", "compiled True"):
        assert part in said, said[-4000:]
    assert "Traceback" not in said and "was stopped" not in said, said[-4000:]
