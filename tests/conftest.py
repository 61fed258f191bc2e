"""What every test may count on: no network, few threads, and the shared clips and weights when they are there."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16")  # AMX kills processes on some virtual machines

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]

# one thread here and in every process that a test starts: another count rounds differently
torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout that holds the tests."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real clips, weights and digits: `$VIDGEN_SHARED`, else `../shared` beside the repository.

    A clone without it skips the tests that need it; in CI (`CI=true`) it has to be there.
    """
    folder = Path(os.environ.get("VIDGEN_SHARED") or REPOSITORY.parent / "shared")
    if not folder.is_absolute():
        folder = REPOSITORY / folder
    if not (folder / "clips" / "manifest.csv").is_file():
        reason = f"shared material not found at {folder}: set VIDGEN_SHARED to the folder that holds clips/manifest.csv"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder.resolve()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """GPU tests say why they are skipped on a machine without CUDA."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; torch.cuda.is_available() is False"))
