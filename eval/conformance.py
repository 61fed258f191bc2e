"""How much of diffusers' own suite passes on our classes? `python eval/conformance.py --repo DIFFUSERS -o FILE.json`.

DIFFUSERS is a checkout of huggingface/diffusers; the installed diffusers is what the tests run against.
"""

import os
import re
import sys
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import diffusers
import pytest
import tyro

from vidgen.eval.report import environment_stamp, write_json

ROOT = Path(__file__).resolve().parents[1]
SUITE = ROOT / "tests" / "external" / "test_diffusers_conformance.py"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is run, and where the counts go."""

    repo: Path
    """A checkout of huggingface/diffusers."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """JSON file to write."""


class Outcomes:
    """pytest plugin that counts outcomes by class and skips by reason."""

    def __init__(self) -> None:
        self.by_class: dict[str, Counter[str]] = {}
        self.reasons: Counter[str] = Counter()
        self.failures: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return  # set-up and tear-down count only where they decide the outcome
        name = report.nodeid.split("::", 1)[1]
        self.by_class.setdefault(name.split("::")[0], Counter())[report.outcome] += 1
        if report.skipped and isinstance(report.longrepr, tuple):
            self.reasons[report.longrepr[2].removeprefix("Skipped: ")] += 1
        if report.failed:
            self.failures.append(name)


def suite_version(repo: Path) -> str:
    """Version that the checkout's own source says it has."""
    found = re.search(r'__version__ = "([^"]+)"', (repo / "src" / "diffusers" / "__init__.py").read_text())
    if found is None:
        raise ValueError(f"{repo} says no version in src/diffusers/__init__.py; give the root of a diffusers checkout")
    return found[1]


def main(settings: Settings) -> int:
    version = suite_version(settings.repo)
    os.environ["DIFFUSERS_REPO"] = str(settings.repo.resolve())
    outcomes = Outcomes()
    status = pytest.main([str(SUITE), "-q", "-m", "external", "--rootdir", str(ROOT)], plugins=[outcomes])
    total = sum(outcomes.by_class.values(), Counter())
    result: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "suite": f"tests of diffusers {version}",
        "run_against": f"diffusers {diffusers.__version__}",
        "passed": total["passed"],
        "failed": total["failed"],
        "skipped": total["skipped"],
        "failures": outcomes.failures,
        "skip_reasons": dict(outcomes.reasons.most_common()),
        "by_class": {name: dict(counts) for name, counts in sorted(outcomes.by_class.items())},
        "environment": environment_stamp("cpu"),
    }
    write_json(settings.output, result)
    return int(status)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings, description=__doc__)))
