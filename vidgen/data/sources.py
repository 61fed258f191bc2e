"""Which recording a video file comes from, and a split into training and unseen sources that no recording crosses.

Files of one recording share people, places and cameras: a score on one of them after training on another says
nothing about videos that a model has never seen.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType

Families = Mapping[str, Sequence[str]]
"""Files that show one room, one table or one film: name of the source -> patterns of their names (`talk_*.mp4`)."""
NO_FAMILIES: Families = MappingProxyType({})
ROTATION = re.compile(r"_(0|90|180|270)(_rotated)?$")


@dataclass(frozen=True)
class SourceSplit:
    """Files by side; each side is sorted, and so are the names of its sources."""

    train: list[Path]
    unseen: list[Path]
    train_sources: list[str]
    unseen_sources: list[str]


def read_families(path: str | Path) -> Families:
    """Families from a JSON file such as `{"talk": ["talk_*.mp4", "interview.mov"]}`.

    Raises:
        ValueError: no such file, or other content.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"expected a JSON file that says which videos are one source; {path} does not exist")
    try:
        found = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"expected families in JSON, and {path} is none ({error})") from None
    well_formed = isinstance(found, dict) and all(
        isinstance(patterns, list) and all(isinstance(pattern, str) for pattern in patterns)
        for patterns in found.values()
    )
    if not well_formed:
        raise ValueError(
            f'{path} must say which files are one source, such as {{"talk": ["talk_*.mp4", "interview.mov"]}}; '
            f"got {json.dumps(found)[:60]}"
        )
    return found


def source_of(path: str | Path, families: Families = NO_FAMILIES) -> str:
    """The name of the recording that a file shows.

    The suffix says nothing (`rabbit.mp4` and `rabbit.webm` are a format pair), nor does a rotation at the end of the
    name (`video_90`). Files of a family are one source; of several families that fit a name, the first.
    """
    path = Path(path)
    for source, patterns in families.items():
        if any(fnmatchcase(path.name, pattern) for pattern in patterns):
            return source
    return ROTATION.sub("", path.stem)


def split_by_source(paths: Iterable[str | Path], *, unseen: float, families: Families = NO_FAMILIES) -> SourceSplit:
    """Whole sources to either side; the hashes of their names decide, whatever else there is.

    Args:
        unseen: share of the sources that training never sees, above 0 and below 1; each side gets at least one.
        families: files that are one source, whatever their names.

    Raises:
        ValueError: a share out of range, fewer than two sources.
    """
    files = {path: source_of(path, families) for path in sorted(Path(path) for path in paths)}
    sources = set(files.values())
    if not 0 < unseen < 1 or len(sources) < 2:
        raise ValueError(f"a split takes a share in (0, 1) and 2 sources; got {unseen} and {len(sources)} sources")
    ranked = sorted(sources, key=lambda source: hashlib.sha256(source.encode()).digest())
    held = set(ranked[: min(max(round(unseen * len(ranked)), 1), len(ranked) - 1)])
    return SourceSplit(
        [path for path, source in files.items() if source not in held],
        [path for path, source in files.items() if source in held],
        sorted(sources - held),
        sorted(held),
    )
