"""Do the Triton attention kernels compute attention? They run on CPU, in Triton's interpreter, in their own process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from needed import needs_triton

from vidgen.kernels import AttentionSpec, attention3d
from vidgen.kernels.backends import BACKENDS

HERE = Path(__file__).resolve().parent


def run_checks(tier: str, *, interpret: bool, workers: int = 0) -> None:
    """The checks whose marks fit the expression `tier`, in a process with Triton's switch set, or several."""
    needs_triton()
    environment = {**os.environ, "TRITON_INTERPRET": "1" if interpret else "0"}
    command = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(HERE / "triton_attention_checks.py")]
    done = subprocess.run(
        [sys.executable, *command, "-m", tier, "-n", str(workers)],
        cwd=HERE.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


def test_kernels_equal_the_reference_in_the_interpreter() -> None:
    run_checks("not slow", interpret=True)


@pytest.mark.slow
def test_all_and_random_patterns_and_the_operator_pass_in_the_interpreter() -> None:
    run_checks("slow", interpret=True)


def test_without_a_gpu_the_backend_says_what_it_needs() -> None:
    spec = AttentionSpec.full((1, 2, 2))
    q = torch.zeros(1, 1, 4, 32)
    with pytest.raises(
        ValueError, match=r"Triton kernels run on CUDA, not on cpu \(for tests on CPU, start with TRITON"
    ):
        attention3d(q, q, q, spec, backend="triton")


@pytest.mark.parametrize(
    ("dtype", "head", "reason"),
    [
        (torch.float64, 64, "float16, bfloat16 and float32, not torch.float64"),
        (
            torch.bfloat16,
            80,
            "equal head sizes of 32, 64, 96, 128 for q, k and v; got 80 and 80 (v): pad with zeros to 96",
        ),
        (torch.float16, 160, "got 160 and 160 (v): use more heads of 128"),
    ],
)
def test_what_the_kernels_cannot_take_is_refused_with_the_reason(dtype: torch.dtype, head: int, reason: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    described = torch.empty(1, 1, 4, head, dtype=dtype, device="meta")
    q = FakeTensor(FakeTensorMode(), described, torch.device("cuda"))
    refusal = BACKENDS["triton"].unsupported(q, q, q, AttentionSpec.full((1, 2, 2)), return_lse=False)
    assert refusal is not None and reason in refusal
