"""Cuts long videos into equally short and small pieces, lossless, which training reads in milliseconds."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vidgen.data.decode import VideoError
from vidgen.data.shapes import item_generator
from vidgen.data.sources import NO_FAMILIES, Families, split_by_source
from vidgen.data.video import find_videos, iter_frames, probe
from vidgen.data.write import write_video

DESCRIPTION = "pieces.json"
SIDES = ("train", "unseen")
UNFINISHED, FINISHED = ".pieces.unfinished", ".pieces.finished"  # in the folder: being cut, to be moved out


@dataclass(frozen=True, kw_only=True)
class Cutting:
    """How pieces are cut.

    Args:
        num_frames, height, width: of every piece.
        stride: take every n-th frame of a video.
        pieces: most pieces of a video, from places evenly spread over it.
        zooms: piece n is scaled to cover `zooms[n % len(zooms)]` times its size; a place in there is drawn for it.
        unseen: share of the sources that are kept apart.
    """

    num_frames: int = 17
    height: int = 64
    width: int = 64
    stride: int = 1
    pieces: int = 16
    zooms: tuple[int, ...] = (1, 2)
    unseen: float = 0.3

    def __post_init__(self) -> None:
        if min(self.num_frames, self.height, self.width, self.stride, self.pieces, *self.zooms) < 1:
            raise ValueError(f"every number of a cutting is at least 1, got {self}")
        if any(max(self.zooms) % zoom for zoom in self.zooms):
            raise ValueError(f"every zoom must divide the largest one, got {self.zooms}; for example 1 2 4")


def cut_by_source(
    videos: str | Path, folder: str | Path, cutting: Cutting, *, families: Families = NO_FAMILIES
) -> dict[str, Any]:
    """Fill `folder/train` and `folder/unseen` with pieces of `videos`, split by source; returns what is there.

    Each piece is a folder of PNGs, `NAME-00`, named by the video's place below `videos`. Videos that cannot be decoded
    or are too short are left out and listed with the reason; of damaged ones the sound part is taken. What an earlier
    call with the same arguments has finished is taken as it is. Nothing that was there before is changed or removed;
    `train`, `unseen` and `pieces.json` appear when all is cut.

    Args:
        families: files of `videos` that are one source, whatever their names.

    Returns:
        `folder/pieces.json`: the cutting, the sources of each side, the number of pieces by video, what was left out.

    Raises:
        ValueError: no videos, or nothing usable on one of the sides; two videos whose pieces would have one name;
            `folder` holds pieces of another cutting or split, other things under their names, or lies in `videos`.
    """
    root, folder = Path(videos), Path(folder)
    names = {path: str(path.relative_to(root)) if path != root else path.name for path in find_videos(root)}
    wanted = json.loads(json.dumps({"videos": list(names.values()), **asdict(cutting)}))
    split = split_by_source(names, unseen=cutting.unseen, families=families)
    described = folder / DESCRIPTION
    if (folder / FINISHED).is_dir() and not described.is_file():
        _move_out(folder)  # a call was stopped at its very end
    if described.is_file():
        found = json.loads(described.read_text())
        by_name = {**wanted, "videos": [path.name for path in names]}  # how earlier versions listed them
        same_split = (split.train_sources, split.unseen_sources) == (found["train_sources"], found["unseen_sources"])
        if found["cutting"] not in (wanted, by_name) or not same_split:
            raise ValueError(
                f"{folder} holds pieces that were cut otherwise; choose another folder, or remove its "
                f"{', '.join((*SIDES, DESCRIPTION))}"
            )
        return found
    _check_place(root, folder)
    _check_names(names.values())
    counts: dict[str, dict[str, int]] = {side: {} for side in SIDES}
    excluded = {}
    unfinished = folder / UNFINISHED
    if unfinished.exists():
        shutil.rmtree(unfinished)  # of a call that was stopped
    for side, paths in zip(SIDES, (split.train, split.unseen), strict=True):
        for path in paths:
            name = names[path]
            try:
                counts[side][name] = cut(path, unfinished / side, cutting, name=piece_name(name))
            except VideoError as error:
                excluded[name] = str(error).replace(str(path), name)
        if not counts[side]:
            raise ValueError(f"no video of the side {side!r} gives a piece: {excluded}; give more videos")
    result = {
        "cutting": wanted,
        "train_sources": split.train_sources,
        "unseen_sources": split.unseen_sources,
        "pieces": counts,
        "excluded": excluded,
    }
    (unfinished / DESCRIPTION).write_text(json.dumps(result, indent=1) + "\n")
    unfinished.rename(folder / FINISHED)
    _move_out(folder)
    return result


def piece_name(name: str) -> str:
    """What the pieces of a video are called, by its path below the folder of videos: `a/b.mp4` -> `a-b-mp4`."""
    return name.replace("/", "-").replace(".", "-")


def _check_place(root: Path, folder: Path) -> None:
    """ValueError where pieces would mix with the videos, or with what somebody else has put there."""
    if folder.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{folder} is in {root}, where pieces would count as videos; choose a folder outside of it")
    for side in SIDES:
        if (folder / side).exists():
            raise ValueError(
                f"{folder / side} exists, and there is no {folder / DESCRIPTION} that says it holds pieces; choose "
                "another folder, or move it away"
            )


def _check_names(names: Iterable[str]) -> None:
    """ValueError for two videos whose pieces would have one name."""
    taken: dict[str, str] = {}
    for name in names:
        other = taken.setdefault(piece_name(name), name)
        if other != name:
            raise ValueError(f"pieces of {other} and {name} would have the same name; rename one of the videos")


def _move_out(folder: Path) -> None:
    """Put what lies finished in `folder/FINISHED` under its names, the description last."""
    for name in (*SIDES, DESCRIPTION):
        if (folder / FINISHED / name).exists():
            (folder / FINISHED / name).rename(folder / name)
    (folder / FINISHED).rmdir()


def cut(path: Path, folder: Path, cutting: Cutting, *, name: str) -> int:
    """Write the pieces of one video, `NAME-00` and so on; returns how many.

    Raises:
        VideoError: it is too short, or no video.
    """
    info = probe(path)
    # A header can promise more frames than there are: pieces that do not fill are dropped.
    promised = max(int((info.duration or 0) * info.fps) // cutting.stride // cutting.num_frames, 1)
    taken = {round(place) for place in np.linspace(0, promised - 1, min(cutting.pieces, promised))}
    scale = max(cutting.zooms)
    size = (cutting.height * scale, cutting.width * scale)
    written = 0
    for number, frames in enumerate(_groups(path, size, cutting)):
        if number not in taken:
            continue
        zoom = cutting.zooms[written % len(cutting.zooms)]
        tile = iter(_tile(frames, zoom, cutting, name, written))
        write_video(folder / f"{name}-{written:02d}", tile, fps=info.fps / cutting.stride)
        written += 1
    if written == 0:
        raise VideoError(f"gives fewer than {cutting.num_frames} frames")
    return written


def _groups(path: Path, size: tuple[int, int], cutting: Cutting) -> Iterator[np.ndarray]:
    frames = iter_frames(path, size=size, stride=cutting.stride)
    while len(held := list(islice(frames, cutting.num_frames))) == cutting.num_frames:
        yield np.stack(held)


def _tile(frames: np.ndarray, zoom: int, cutting: Cutting, name: str, number: int) -> np.ndarray:
    """uint8 `t h w 3` at the largest zoom -> a piece at `zoom`, from a place that the name and number decide."""
    factor = frames.shape[1] // (cutting.height * zoom)
    t, h, w, _ = frames.shape
    smaller = frames.reshape(t, h // factor, factor, w // factor, factor, 3).mean((2, 4)).round().astype(np.uint8)
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])
    places = torch.rand(2, generator=item_generator(seed, number)).tolist()
    top = round(places[0] * (smaller.shape[1] - cutting.height))
    left = round(places[1] * (smaller.shape[2] - cutting.width))
    return smaller[:, top : top + cutting.height, left : left + cutting.width]
