"""A user's own training set: a folder of videos, with captions in a table, in text files, or as class folders."""

import copy
import csv
import hashlib
import json
import warnings
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from vidgen.data.decode import MAX_PIXELS, DamagedVideoWarning, VideoError
from vidgen.data.shapes import item_generator
from vidgen.data.video import find_videos, iter_frames, probe, to_tensor

MOST_IN_A_ROW = 16  # videos that cannot be read, before a folder counts as broken


@dataclass(frozen=True)
class LabelledVideo:
    """One video of a training set."""

    path: Path
    caption: str | None
    class_label: int | None


class VideoFolder(Dataset):
    """Map-style dataset of clips from the videos below a folder; item i is a function of the files and (seed, i) alone.

    Captions are taken from the first of these that is there:
    - `metadata.csv` or `metadata.jsonl` in `root`: columns `file_name` (relative to `root`) and `text` or `caption`;
      only the files listed are used;
    - `NAME.txt` beside `NAME.mp4`: its text;
    - class folders, when every video lies in a folder of `root`: the folder's name is the caption, and its place in the
      sorted `class_names` is the `class_label`.

    Each item is `{"video": float32 3 t h w in [-1, 1], "caption": str, "id": str}`, with class folders also
    `"class_label": int`. A clip covers `num_frames` frames of one video from a random time, scaled to cover
    `height` × `width` and cropped at the centre, or with `zoom` at a random place. When the file turns out to end
    before its header says, its last frames are taken.

    Args:
        fps: frames per second that every video is resampled to; None takes the frames as they are.
        stride: take every n-th frame.
        seed: of the random places.
        clips_per_video: items per video; item i comes from video `i % len(videos)`, each time from another place.
        captions_required: raise for a video without a caption, which otherwise counts as "".
        repeat_last_frame: lengthen videos that are too short with their last frame, instead of raising.
        zoom: above 1, each clip is scaled to cover its size times a factor from 1 to this one, all ratios equally
            likely, cropped at a random place and mirrored half of the time.
        allow_missing: take the next video, and warn once, in the place of one that cannot be read or is too short.
        max_pixels: largest height × width that is decoded.

    Raises:
        ValueError: no videos, a broken table, a missing caption where required; at an item (VideoError) for a video
            that cannot be decoded or is too short, naming the file.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        num_frames: int,
        height: int,
        width: int,
        fps: float | None = None,
        stride: int = 1,
        seed: int = 0,
        clips_per_video: int = 1,
        captions_required: bool = False,
        repeat_last_frame: bool = False,
        zoom: float = 1.0,
        allow_missing: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if min(num_frames, height, width, stride, clips_per_video) < 1:
            raise ValueError(
                "num_frames, height, width, stride and clips_per_video must be at least 1; "
                f"got {num_frames}, {height}, {width}, {stride}, {clips_per_video}"
            )
        if zoom < 1:
            raise ValueError(f"zoom must be at least 1 (frames cover the whole clip), got {zoom}")
        self.root = Path(root)
        self.num_frames, self.height, self.width = num_frames, height, width
        self.fps, self.stride, self.seed, self.clips_per_video = fps, stride, seed, clips_per_video
        self.repeat_last_frame, self.zoom, self.max_pixels = repeat_last_frame, zoom, max_pixels
        self.allow_missing = allow_missing
        self.missing: set[Path] = set()
        self.videos, self.class_names = list_videos(self.root)
        uncaptioned = [video.path for video in self.videos if video.caption is None]
        if captions_required and uncaptioned:
            raise ValueError(
                f"expected a caption for every video; {len(uncaptioned)} of {len(self.videos)} have none, the first is "
                f"{uncaptioned[0]}; write {uncaptioned[0].stem}.txt beside it or list it in metadata.csv"
            )

    def __len__(self) -> int:
        return len(self.videos) * self.clips_per_video

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in 0…{len(self) - 1}; got {index}")
        turn, number = divmod(index, len(self.videos))
        video, frames = self._readable(number, index)
        name = video.path.relative_to(self.root) if video.path != self.root else video.path.name
        item = {"video": to_tensor(frames), "caption": video.caption or "", "id": f"{name}#{turn}"}
        return item if video.class_label is None else item | {"class_label": video.class_label}

    def captions(self) -> list[str]:
        """The caption of every video that has one."""
        return [video.caption for video in self.videos if video.caption]

    def split(self, share: float) -> tuple["VideoFolder", "VideoFolder"]:
        """Training and validation sets with no video in common; the names of the files decide.

        Args:
            share: of the videos for validation, above 0 and below 1; each side gets at least one video.
        """
        if not 0 < share < 1 or len(self.videos) < 2:
            raise ValueError(f"a split takes a share in (0, 1) and 2 videos; got {share} and {len(self.videos)} videos")
        ranked = sorted(self.videos, key=lambda video: hashlib.sha256(video.path.name.encode()).digest())
        count = min(max(round(share * len(ranked)), 1), len(ranked) - 1)
        training, validation = copy.copy(self), copy.copy(self)
        held_out = {video.path for video in ranked[:count]}
        training.videos = [video for video in self.videos if video.path not in held_out]
        validation.videos = [video for video in self.videos if video.path in held_out]
        return training, validation

    def _readable(self, number: int, index: int) -> tuple[LabelledVideo, np.ndarray]:
        """The video of that number, or the next one that can be read where that is allowed, and item `index` of it."""
        tries = min(len(self.videos), MOST_IN_A_ROW)
        for later in range(tries):
            video = self.videos[(number + later) % len(self.videos)]
            generator = item_generator(self.seed, index)
            place = float(torch.rand((), generator=generator))
            try:
                if self.zoom == 1:
                    return video, self._clip(video.path, place=place, size=(self.height, self.width))
                return video, self._zoomed(video.path, place=place, generator=generator)
            except VideoError as error:
                if not self.allow_missing:
                    raise
                if video.path not in self.missing:
                    self.missing.add(video.path)
                    warnings.warn(f"{error}; the next video is taken", DamagedVideoWarning, stacklevel=3)
        raise VideoError(f"expected a video that can be read; {tries} in a row of {self.root} cannot")

    def _zoomed(self, path: Path, *, place: float, generator: torch.Generator) -> np.ndarray:
        """uint8 `t h w 3`: scaled, cropped and mirrored by the next draws of the generator."""
        power, down, right, mirror = torch.rand(4, generator=generator).tolist()
        scale = self.zoom**power
        frames = self._clip(path, place=place, size=(round(self.height * scale), round(self.width * scale)))
        top, left = round(down * (frames.shape[1] - self.height)), round(right * (frames.shape[2] - self.width))
        frames = frames[:, top : top + self.height, left : left + self.width]
        return np.ascontiguousarray(frames[:, :, ::-1] if mirror < 0.5 else frames)

    def _clip(self, path: Path, *, place: float, size: tuple[int, int]) -> np.ndarray:
        """uint8 `t h w 3`: the frames from `place` (0: earliest, 1: latest possible start) at (height, width)."""
        info = probe(path, max_pixels=self.max_pixels)
        covered = (self.num_frames - 1) * self.stride + 1  # frames from the first to the last of the clip
        start = place * max((info.duration or 0) - covered / (self.fps or info.fps), 0)
        frames = list(
            iter_frames(
                path,
                fps=self.fps,
                size=size,
                start=start,
                stride=self.stride,
                max_frames=self.num_frames,
                max_pixels=self.max_pixels,
            )
        )
        if len(frames) < self.num_frames and start > 0:
            readable = iter_frames(path, fps=self.fps, size=size, max_pixels=self.max_pixels)
            frames = list(deque(readable, maxlen=covered))[:: self.stride]
        if len(frames) < self.num_frames:
            if not self.repeat_last_frame:
                raise VideoError(
                    f"expected a video that gives {self.num_frames} frames; {path} gives {len(frames)}; "
                    "remove it, ask for fewer frames (num_frames, stride), raise fps, or repeat its last frame "
                    "(repeat_last_frame)"
                )
            frames.extend(frames[-1:] * (self.num_frames - len(frames)))
        return np.stack(frames)


def list_videos(root: Path) -> tuple[list[LabelledVideo], tuple[str, ...]]:
    """The videos of a training set in a fixed order, and the names of its classes (none without class folders)."""
    tables = [path for path in (root / "metadata.csv", root / "metadata.jsonl") if path.is_file()]
    if len(tables) == 2:
        raise ValueError(f"expected one table; {root} holds both metadata.csv and metadata.jsonl; delete one")
    if tables:
        return _listed_videos(tables[0]), ()
    paths = find_videos(root)
    texts = [path.with_suffix(".txt") if path.is_file() else path.with_name(f"{path.name}.txt") for path in paths]
    if any(text.is_file() for text in texts):
        captions = [text.read_text(encoding="utf-8").strip() if text.is_file() else None for text in texts]
        return [LabelledVideo(path, caption, None) for path, caption in zip(paths, captions, strict=True)], ()
    folders = [path.relative_to(root).parts[:-1] for path in paths]
    if not all(folders):
        return [LabelledVideo(path, None, None) for path in paths], ()
    names = sorted({parts[0] for parts in folders})
    return [
        LabelledVideo(path, parts[0], names.index(parts[0])) for path, parts in zip(paths, folders, strict=True)
    ], tuple(names)


def _listed_videos(table: Path) -> list[LabelledVideo]:
    with table.open(encoding="utf-8-sig", newline="") as file:
        if table.suffix == ".csv":
            rows = list(csv.DictReader(file))
        else:
            rows = [_parse_line(line, f"{table} line {number}") for number, line in enumerate(file, 1) if line.strip()]
    if not rows:
        raise ValueError(f"expected at least one row in {table}; it has none")
    videos = []
    for number, row in enumerate(rows, 1):
        if not row.get("file_name"):
            raise ValueError(
                f"expected a file_name in row {number} of {table}; its columns are {', '.join(map(str, row))}"
            )
        name = Path(str(row["file_name"]))
        if name.is_absolute() or ".." in name.parts:
            raise ValueError(
                f"expected a file_name relative to {table.parent} and below it in row {number} of {table}, got "
                f"{str(name)!r}; move the video there (or link to it) and correct file_name"
            )
        path = table.parent / name
        if not path.exists():
            raise ValueError(f"expected the file of row {number} of {table}; {path} does not exist; correct file_name")
        videos.append(LabelledVideo(path, row.get("text") or row.get("caption") or None, None))
    return videos


def _parse_line(line: str, place: str) -> dict[str, str]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"expected a JSON object in {place}; {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object in {place}; got {line.strip()[:60]!r}")
    return row
