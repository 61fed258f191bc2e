"""What lies in a folder of videos, before any work on it: names, contents, rates, sizes, and what is wrong with it."""

import hashlib
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidgen.data.decode import VideoError, VideoInfo
from vidgen.data.video import find_videos, probe
from vidgen.eval.clips import LOSSLESS, content_sha256


@dataclass(frozen=True)
class SurveyedVideo:
    """One readable video. `name` is its path below the folder, `sha256` of its bytes."""

    name: str
    path: Path
    sha256: str
    info: VideoInfo


@dataclass(frozen=True)
class Survey:
    """The readable videos of a folder, sorted by name, and for each of the others the reason."""

    root: str  # last part of the folder's path
    videos: tuple[SurveyedVideo, ...]
    excluded: dict[str, str]

    @property
    def manifest_sha256(self) -> str:
        lines = "\n".join(f"{video.sha256} {video.name}" for video in self.videos)
        return hashlib.sha256(lines.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The entry `inputs.real` or `inputs.fake` of a `vidgen.eval/1` result, less what extraction adds."""
        codecs = sorted({video.info.codec for video in self.videos})
        return {
            "root": self.root,
            "n_videos": len(self.videos),
            "manifest_sha256": self.manifest_sha256,
            "codec": codecs,
            "decoded_lossy": any(codec not in LOSSLESS for codec in codecs),
            "excluded": self.excluded,
        }


def survey(root: str | Path, *, allow_missing: bool = False) -> Survey:
    """Look at every video at or below `root`: can it be opened, and is it there twice? Only first frames are decoded.

    Args:
        allow_missing: leave out what is unreadable or doubled, and say so in `excluded`, instead of an error.

    Raises:
        ValueError: nothing there; unreadable or doubled videos.
    """
    root = Path(root)
    videos: dict[str, SurveyedVideo] = {}  # by content
    excluded: dict[str, str] = {}
    for path in find_videos(root):
        name = path.relative_to(root).as_posix() if path != root else path.name
        try:
            with warnings.catch_warnings():  # of damaged tails: reading will meet them again
                warnings.simplefilter("ignore")
                info = probe(path)
        except VideoError as error:
            excluded[name] = str(error)
            continue
        video = SurveyedVideo(name, path, content_sha256(path), info)
        if video.sha256 in videos:
            excluded[name] = f"the same bytes as {videos[video.sha256].name}"
        else:
            videos[video.sha256] = video
    if excluded and not allow_missing:
        raise ValueError(_cannot_be_used(root, excluded, len(videos) + len(excluded)))
    return Survey(root.name, tuple(sorted(videos.values(), key=lambda video: video.name)), excluded)


def without(one: Survey, unusable: dict[str, str], *, allow_missing: bool) -> Survey:
    """The survey less some of its videos, each with the reason; ValueError unless `allow_missing`."""
    excluded = one.excluded | unusable
    if unusable and not allow_missing:
        raise ValueError(_cannot_be_used(one.root, unusable, len(one.videos)))
    return Survey(one.root, tuple(video for video in one.videos if video.name not in unusable), excluded)


def _cannot_be_used(root: str | Path, unusable: dict[str, str], total: int) -> str:
    some = "; ".join(f"{name}: {reason}" for name, reason in list(unusable.items())[:3])
    return (
        f"{len(unusable)} of {total} videos in {root} cannot be used ({some}); mend or remove them, or leave them out "
        "with --allow-missing"
    )


def check_alike(real: Survey, fake: Survey, *, resampled: bool) -> None:
    """ValueError when the two folders usually differ in frame size or, unless `resampled`, in frame rate.

    A distance counts frames, not seconds, and squashes every size to one: such differences are measured as well.
    """
    pairs = [("frame size", *(_usual(one, lambda info: f"{info.height}x{info.width}") for one in (real, fake)))]
    if not resampled:
        pairs.append(("frame rate", *(_usual(one, lambda info: f"{info.fps:.3g} frames/s") for one in (real, fake))))
    for what, of_real, of_fake in pairs:
        if of_real != of_fake:
            raise ValueError(
                f"the usual {what} is {of_real} in {real.root} and {of_fake} in {fake.root}, and the distance would "
                "measure that too; bring both to one, or accept it with --allow-mismatch"
            )


def _usual(one: Survey, fact: Callable[[VideoInfo], str]) -> str:
    return Counter(fact(video.info) for video in one.videos).most_common(1)[0][0]
