"""Which clips are scored and how they are read: every file is checked before work starts, then cut by a protocol."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from vidgen.data import VideoError, VideoInfo, find_videos, iter_frames, to_tensor
from vidgen.data.decode import image_files, open_video
from vidgen.data.video import choose_frames
from vidgen.eval.preprocess import short_side_size
from vidgen.eval.protocol import ClipRule, Preprocess, ReconstructionProtocol
from vidgen.eval.ranks import gathered, of_this_process

CHUNK_FRAMES = 16
LOSSLESS = frozenset({"ffv1", "rawvideo", "images", "png", "huffyuv", "utvideo", "gif"})


@dataclass(frozen=True)
class Clip:
    """A named video that can be read in chunks ``3 t h w`` in [-1, 1] of any lengths.

    Args:
        sha256: of its content; empty where that is unknown.
        frames: how many it has; None where nobody has counted.
    """

    name: str
    chunks: Callable[[], Iterator[Tensor]]
    sha256: str = ""
    frames: int | None = None


@dataclass(frozen=True)
class Exclusion:
    """A clip that is not scored, and why."""

    clip: str
    reason: str


@dataclass(frozen=True)
class ClipSet:
    """Clips in a fixed order, those left out, and what a result says about where they came from."""

    clips: list[Clip]
    excluded: list[Exclusion] = field(default_factory=list)
    origin: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        listed = "\n".join(sorted(f"{clip.sha256} {clip.name}" for clip in self.clips))
        return {
            **self.origin,
            "clips": len(self.clips),
            "manifest_sha256": hashlib.sha256(listed.encode()).hexdigest(),
            "excluded": [{"clip": one.clip, "reason": one.reason} for one in self.excluded],
        }


@dataclass(frozen=True)
class CheckedFile:
    """What was found in a file: the frames that the rule takes, all of them decoded once."""

    name: str
    path: Path
    sha256: str
    frames: int
    info: VideoInfo


def find_clips(entries: Sequence[str | Path]) -> dict[str, Path]:
    """The videos at or below ``entries`` by name: the path relative to its entry. ValueError for two of one name."""
    found: dict[str, Path] = {}
    for entry in entries:
        for path in find_videos(entry):
            name = path.name if path == Path(entry) else str(path.relative_to(entry))
            if name in found:
                raise ValueError(f"two clips are called {name}: {found[name]} and {path}; give their common folder")
            found[name] = path
    return found


def clips_for_protocol(
    files: Mapping[str, Path], protocol: ReconstructionProtocol, *, allow_missing: bool = False
) -> ClipSet:
    """The clips of ``protocol`` out of ``files``, each checked to its last frame before anything is scored.

    Args:
        files: as ``find_clips`` gives them.
        allow_missing: leave out what cannot be scored (damaged, too short, content that came before) and record it.

    Raises:
        ValueError: such files without ``allow_missing``; fewer clips than the protocol wants; a way to read frames
            that only feature networks take.
    """
    _check_readable(protocol)
    checked = gathered([_checked(name, path, protocol) for name, path in of_this_process(list(files.items()))])
    order = {name: place for place, name in enumerate(files)}
    usable, excluded, seen = [], [], {}
    for one in sorted(checked, key=lambda one: order[one.clip if isinstance(one, Exclusion) else one.name]):
        if isinstance(one, Exclusion):
            excluded.append(one)
        elif one.sha256 in seen:
            excluded.append(Exclusion(one.name, f"has the same content as {seen[one.sha256]}"))
        else:
            seen[one.sha256] = one.name
            usable.append(one)
    if excluded and not allow_missing:
        raise ValueError(cannot_be_scored(excluded, len(files)))
    wanted = protocol.num_videos
    if len(usable) < (wanted or 1):
        raise ValueError(f"{protocol.name} needs {wanted or 'at least 1'} videos, got {len(usable)}; give more clips")
    usable = usable[:wanted]
    clips = [_clip(one, protocol) for one in usable]
    codecs = sorted({one.info.codec for one in usable})
    origin = {
        "frames": sum(one.frames for one in usable),
        "codecs": codecs,
        "decoded_lossy": any(codec not in LOSSLESS for codec in codecs),
    }
    return ClipSet(clips, excluded, origin)


def cannot_be_scored(excluded: Sequence[Exclusion], total: int) -> str:
    """What to say where nobody has allowed that clips are left out."""
    shown = "; ".join(f"{one.clip}: {one.reason}" for one in excluded[:3])
    more = f" and {len(excluded) - 3} more" if len(excluded) > 3 else ""
    return (
        f"{len(excluded)} of {total} clips cannot be scored ({shown}{more}); mend or remove them, or pass "
        "--allow-missing to leave them out and have them listed in the result"
    )


def clips_from_files(
    paths: Sequence[str | Path],
    *,
    max_frames: int | None = None,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
) -> list[Clip]:
    """Video files, image folders or images as clips, unchecked; decoded while they are scored. As ``iter_frames``."""
    rule = ClipRule(max_frames=max_frames, fps=fps)
    return [Clip(Path(path).name, lambda path=path: _chunks(path, rule, size)) for path in paths]


def clips_from_dataset(dataset: Dataset, count: int) -> list[Clip]:
    """The first ``count`` items (``{"video": 3 t h w, "id": …}``) of a dataset of this project."""
    return [Clip(f"item {index}", lambda index=index: iter([dataset[index]["video"]])) for index in range(count)]


def _chunks(path: str | Path, rule: ClipRule, size: tuple[int, int] | None) -> Iterator[Tensor]:
    frames = iter_frames(path, fps=rule.fps, size=size, stride=rule.stride, max_frames=rule.frames or rule.max_frames)
    while held := list(islice(frames, CHUNK_FRAMES)):
        yield to_tensor(np.stack(held))


def _checked(name: str, path: Path, protocol: ReconstructionProtocol) -> CheckedFile | Exclusion:
    """Decode every frame that the protocol takes, without converting it."""
    rule = protocol.clip
    most = rule.frames or rule.max_frames
    try:
        info, pictures = open_video(path, strict=True)
        frames, shape = 0, None
        for picture in choose_frames(pictures, info, fps=rule.fps, stride=rule.stride, max_frames=most):
            frames += 1
            if not protocol.preprocess.resizes and shape not in (None, (picture.picture.height, picture.picture.width)):
                return Exclusion(name, "its frames change size on the way; choose a protocol that resizes")
            shape = picture.picture.height, picture.picture.width
    except VideoError as error:
        return Exclusion(name, str(error))
    if rule.frames is not None and frames < rule.frames:
        return Exclusion(name, f"has {frames} frames and {protocol.name} takes {rule.frames}")
    return CheckedFile(name, path, content_sha256(path), frames, info)


def content_sha256(path: Path) -> str:
    """Of a file, or of the images in a folder one after the other."""
    digest = hashlib.sha256()
    for file in image_files(path) if path.is_dir() else [path]:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _clip(one: CheckedFile, protocol: ReconstructionProtocol) -> Clip:
    size = target_size(protocol.preprocess, one.info.height, one.info.width)
    return Clip(one.name, lambda: _chunks(one.path, protocol.clip, size), one.sha256, one.frames)


def _check_readable(protocol: ReconstructionProtocol) -> None:
    resizes = protocol.preprocess.resizes
    readable = len(resizes) <= 1 and all(one.kernel == "swscale" and one.fit != "squash" for one in resizes)
    if not readable or protocol.clip.offset != "first" or protocol.clip.clips_per_video != 1:
        raise ValueError(
            f"{protocol.name} asks for frames that reconstruction does not read: expected one swscale resize (cover or "
            f"short-side) and one clip from the start of each video, got {protocol.preprocess} and {protocol.clip}"
        )


def target_size(preprocess: Preprocess, height: int, width: int) -> tuple[int, int] | None:
    """What a frame of ``height`` × ``width`` becomes; None when it keeps its size."""
    if not preprocess.resizes:
        return None
    resize = preprocess.resizes[-1]
    if resize.fit != "short-side":
        return resize.height, resize.width
    return short_side_size(height, width, side=resize.height)
