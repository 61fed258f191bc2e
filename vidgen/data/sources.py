"""Which recording a video file comes from, and a split into training and unseen sources that no recording crosses.

Files of one recording share people, places and cameras: a score on one of them after training on another says
nothing about videos that a model has never seen.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# One room, one table or one film in several files, by the beginning of their names (each was looked at).
FAMILIES = {
    "asl_": "asl",
    "learning_area_": "learning_area",  # toys on the same table
    "media_bbb_": "big_buck_bunny",
    "media_sample_portrait": "media_office",  # the same man, upright, turned and with a damaged stream
    "media_sample_with_invalid_nalu": "media_office",
    "media_sample_empty_track": "media_office",
}
ROTATION = re.compile(r"_(0|90|180|270)(_rotated)?$")


@dataclass(frozen=True)
class SourceSplit:
    """Files by side; each side is sorted, and so are the names of its sources."""

    train: list[Path]
    unseen: list[Path]
    train_sources: list[str]
    unseen_sources: list[str]


def source_of(path: str | Path) -> str:
    """The name of the recording that a file shows.

    The suffix says nothing (`rabbit.mp4` and `rabbit.webm` are a format pair), nor does a rotation at the end of the
    name (`video_90`); known families of files are one source each.
    """
    stem = Path(path).stem
    for beginning, source in FAMILIES.items():
        if stem.startswith(beginning):
            return source
    return ROTATION.sub("", stem)


def split_by_source(paths: Iterable[str | Path], *, unseen: float) -> SourceSplit:
    """Whole sources to either side; the hashes of their names decide, whatever else there is.

    Args:
        unseen: share of the sources that training never sees, above 0 and below 1; each side gets at least one.

    Raises:
        ValueError: a share out of range, fewer than two sources.
    """
    files = sorted(Path(path) for path in paths)
    sources = {source_of(path) for path in files}
    if not 0 < unseen < 1 or len(sources) < 2:
        raise ValueError(f"a split takes a share in (0, 1) and 2 sources; got {unseen} and {len(sources)} sources")
    ranked = sorted(sources, key=lambda source: hashlib.sha256(source.encode()).digest())
    held = set(ranked[: min(max(round(unseen * len(ranked)), 1), len(ranked) - 1)])
    return SourceSplit(
        [path for path in files if source_of(path) not in held],
        [path for path in files if source_of(path) in held],
        sorted(sources - held),
        sorted(held),
    )
