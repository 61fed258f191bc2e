"""`vidgen eval doctor`: which weights, codecs, devices and packages are here, and what each is for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg


@dataclass(frozen=True, kw_only=True)
class Command:
    """Tell what scores can be computed on this machine. Nothing is downloaded, and exit is 0 whatever is missing.

    Weight files are known by their digests, wherever they lie and whatever their names; commands take them by path.

    Example: vidgen eval doctor --weights ~/weights/
    """

    weights: Annotated[tuple[Path, ...], arg(metavar="DIRS")] = ()
    """Folders to look for weight files in, besides torch's own cache."""


def run(command: Command) -> None:
    """Do it; errors are for the user."""
    from vidgen.eval.doctor import HUB, examine

    absent = [folder for folder in command.weights if not folder.expanduser().is_dir()]
    if absent:
        raise ValueError(f"--weights takes folders; there is none at {absent[0]}")
    for section in examine([HUB, *command.weights]):
        print(section.title)
        width = max(len(finding.name) for finding in section.findings)
        for finding in section.findings:
            print(f"  {'yes' if finding.present else 'no ':3}  {finding.name:<{width}}  {finding.detail}")
