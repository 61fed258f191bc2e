"""What a test cannot do without: where it is absent, the test is skipped with the reason, and fails in CI."""

import importlib.util
import os

import pytest

IN_CI = os.environ.get("CI", "").lower() == "true"


def absent(reason: str) -> None:
    """Skip, or fail where everything has to be there."""
    if IN_CI:
        pytest.fail(reason)
    pytest.skip(reason)


def needs_triton() -> None:
    if importlib.util.find_spec("triton") is None:
        absent("triton is not installed, which PyTorch's CUDA wheels bring; pip install triton")
