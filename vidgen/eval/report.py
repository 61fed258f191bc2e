"""Where a result came from, and how it is written: environment stamp, JSON, CSV, peak memory."""

import csv
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("vidgen", "torch", "diffusers", "accelerate", "numpy", "av", "lpips")
STATUS, CLEAR_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # Linux
# Of glibc, read when a process starts: freed memory stays there. By default large blocks go back to the system, and
# getting fresh pages is up to 5 % of a backward pass.
KEEPING_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}


def environment_stamp(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Device, versions and commit: what someone needs to know before comparing with these numbers."""
    device = torch.device(device)
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type} ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": git_commit(),
    }


def git_commit() -> str | None:
    """The checkout's commit, with ``+changes`` when tracked files differ from it; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "vidgen"], cwd=root, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+changes" if changed.returncode else "")


def code_digest(*sources: str) -> str:
    """Short hash of Python and CUDA sources, files or folders of the checkout: which code a result came from.

    Unlike a commit it changes with edits that are not committed, and does not when something else is.
    """
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for source in sources:
        paths = [root / source] if (root / source).is_file() else sorted((root / source).rglob("*"))
        for path in paths:
            if path.suffix in (".py", ".cu", ".cuh"):
                digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def record_stamp(device: torch.device | str, *sources: str) -> dict[str, Any]:
    """The environment with the digest of `sources` in place of the commit: what made a record that is kept.

    Where it is equal, the environment that a result states is that of its kept records too, speeds included.
    """
    stamp = environment_stamp(device)
    del stamp["commit"]
    return stamp | {"code": code_digest(*sources)}


def model_label(model: str | Path) -> str:
    """What tables call a model: its name or folder, and the run's for the `model` and `best` of a run folder."""
    path = Path(os.path.normpath(model))
    return path.parent.name if path.name in ("model", "best") and path.parent.name else path.name


def reset_peak_memory(device: torch.device | str) -> None:
    """Let `peak_memory_megabytes` forget what was before; without effect on systems other than Linux and CUDA."""
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR_PEAK.exists():
        CLEAR_PEAK.write_text("5")  # proc(5): the peak resident set becomes the present one


def peak_memory_megabytes(device: torch.device | str) -> float:
    """CUDA: most memory that tensors took since the last reset. Otherwise: peak resident set of the process."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if STATUS.exists():
        (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) / 2**10
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def write_json(path: str | Path, result: dict[str, Any]) -> None:
    """Write ``result`` atomically, indented; NaN is refused, since JSON has none."""
    _write(Path(path), json.dumps(result, indent=1, allow_nan=False) + "\n")


def write_csv(path: str | Path, rows: list[dict[str, Any]]) -> None:
    """Write one line a row, columns in order of first appearance; None is an empty cell."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _write(Path(path), text.getvalue())


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
