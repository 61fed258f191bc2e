"""Cut videos into training and unseen pieces, split by source: `python tokenizers/real_clips.py DIR -o OUT`."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from vidgen.data.pieces import Cutting, cut_by_source
from vidgen.data.sources import read_families

FAMILIES = Path(__file__).with_name("families.json")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is cut, and where the pieces go."""

    videos: tyro.conf.Positional[Path]
    """Folder of videos."""
    output_dir: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Gets `train/`, `unseen/` and `pieces.json`."""
    cutting: tyro.conf.OmitArgPrefixes[Cutting] = field(default_factory=Cutting)
    """How pieces are cut."""
    families: Path = FAMILIES
    """Which files are one source though their names differ: JSON, source -> patterns of names. The file beside this
    script names the clips of this project, one by one."""


def main() -> int:
    """Cut, and say what lies where; 2 after a mistake that the user can mend."""
    settings = tyro.cli(Settings, description=__doc__)
    try:
        families = read_families(settings.families)
        found = cut_by_source(settings.videos, settings.output_dir, settings.cutting, families=families)
    except ValueError as error:
        print(f"tokenizers/real_clips.py: {error}", file=sys.stderr)
        return 2
    for side in ("train", "unseen"):
        pieces = found["pieces"][side]
        print(f"{settings.output_dir / side}: {sum(pieces.values())} pieces of {len(pieces)} videos")
        print(f"  sources: {', '.join(found[f'{side}_sources'])}")
    for name, reason in found["excluded"].items():
        print(f"left out: {name}: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
