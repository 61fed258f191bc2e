"""Cuts long videos into equally short and small pieces, lossless, which training reads in milliseconds."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vidgen.data.decode import VideoError
from vidgen.data.shapes import item_generator
from vidgen.data.sources import split_by_source
from vidgen.data.video import find_videos, iter_frames, probe
from vidgen.data.write import write_video

DESCRIPTION = "pieces.json"


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


def cut_by_source(videos: str | Path, folder: str | Path, cutting: Cutting) -> dict[str, Any]:
    """Fill `folder/train` and `folder/unseen` with pieces of `videos`, split by source; returns what is there.

    Each piece is a folder of PNGs, `NAME-00`. Videos that cannot be decoded or are too short are left out and listed
    with the reason; of damaged ones the sound part is taken. What an earlier call with the same arguments has finished
    is taken as it is.

    Returns:
        `folder/pieces.json`: the cutting, the sources of each side, the number of pieces by video, what was left out.

    Raises:
        ValueError: no videos, or nothing usable on one of the sides; `folder` holds pieces of another cutting.
    """
    folder = Path(folder)
    wanted = json.loads(json.dumps({"videos": [path.name for path in find_videos(videos)], **asdict(cutting)}))
    described = folder / DESCRIPTION
    if described.is_file():
        found = json.loads(described.read_text())
        if found["cutting"] != wanted:
            raise ValueError(f"{folder} holds pieces that were cut otherwise; remove it or choose another folder")
        return found
    split = split_by_source(find_videos(videos), unseen=cutting.unseen)
    counts: dict[str, dict[str, int]] = {"train": {}, "unseen": {}}
    excluded = {}
    for side, paths in (("train", split.train), ("unseen", split.unseen)):
        shutil.rmtree(folder / side, ignore_errors=True)
        for path in paths:
            try:
                counts[side][path.name] = cut(path, folder / side, cutting)
            except VideoError as error:
                excluded[path.name] = str(error).replace(str(path), path.name)
        if not counts[side]:
            raise ValueError(f"no video of the side {side!r} gives a piece: {excluded}; give more videos")
    result = {
        "cutting": wanted,
        "train_sources": split.train_sources,
        "unseen_sources": split.unseen_sources,
        "pieces": counts,
        "excluded": excluded,
    }
    described.write_text(json.dumps(result, indent=1) + "\n")
    return result


def cut(path: Path, folder: Path, cutting: Cutting) -> int:
    """Write the pieces of one video; returns how many. VideoError for one that is too short or no video."""
    info = probe(path)
    # A header can promise more frames than there are: pieces that do not fill are dropped.
    promised = max(int((info.duration or 0) * info.fps) // cutting.stride // cutting.num_frames, 1)
    taken = {round(place) for place in np.linspace(0, promised - 1, min(cutting.pieces, promised))}
    scale = max(cutting.zooms)
    size = (cutting.height * scale, cutting.width * scale)
    name = path.name.replace(".", "-")
    written = 0
    for number, frames in enumerate(_groups(path, size, cutting)):
        if number not in taken:
            continue
        zoom = cutting.zooms[written % len(cutting.zooms)]
        write_video(folder / f"{name}-{written:02d}", iter(_tile(frames, zoom, cutting, name, written)), fps=info.fps)
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
