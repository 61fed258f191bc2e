"""Runs a feature network over videos: reads clips, keeps what is done on disk, shares the videos among processes."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor

from vidgen.data.decode import VideoError
from vidgen.data.video import iter_frames
from vidgen.eval.extractors.base import FeatureExtractor
from vidgen.eval.features import FeatureSet, joined
from vidgen.eval.precision import without_tf32
from vidgen.eval.preprocess import clip_span, clip_starts, preprocess
from vidgen.eval.protocol import ClipRule, FeatureProtocol, Preprocess
from vidgen.eval.ranks import gathered, of_this_process
from vidgen.eval.video_survey import Survey, SurveyedVideo, without
from vidgen.files import save_tensors

CHUNK_FRAMES = 16
PIECE_FRAMES = 64
BATCH_CLIPS = 8
TOO_SHORT = "too short for a clip"


def extraction_conditions(extractor: FeatureExtractor, protocol: FeatureProtocol, *, seed: int) -> dict[str, Any]:
    """What decides the features of a video, JSON-able: two sets made under equal conditions may be compared.

    Raises:
        ValueError: the network has other weights than `protocol` names.
    """
    protocol.check_weights(extractor.weights.sha256)
    return json.loads(
        json.dumps(
            {
                "extractor": extractor.identity(),
                "names": {kind: extractor.distance_name(kind) for kind in "fk"},
                "clip": asdict(protocol.clip),
                "preprocess": asdict(protocol.preprocess),
                "seed": seed if protocol.clip.offset == "random" else None,
            }
        )
    )


@dataclass(frozen=True)
class Examined:
    """What extraction will find: the survey less what it cannot use, and how many videos and rows of features."""

    survey: Survey
    num_videos: int
    num_rows: int


def examine(
    videos: Survey,
    extractor: FeatureExtractor,
    protocol: FeatureProtocol,
    *,
    count: int | None,
    cache: Path | None,
    seed: int = 0,
    allow_missing: bool = False,
) -> Examined:
    """Decode, before any network runs, every frame that `extract_features` will take; its arguments are the same.

    Videos whose features are in the cache were decoded when those were made. Processes share the others.

    Raises:
        ValueError: damaged videos, or (where the protocol does not drop them) videos that are too short, without
            `allow_missing`; fewer than `count` videos that can be used.
    """
    known = FeatureCache.at(cache, extraction_conditions(extractor, protocol, seed=seed)).rows
    candidates = _in_drawn_order(videos, seed)
    wanted = len(candidates) if count is None else count
    rows: dict[str, int] = {}
    dropped: dict[str, str] = {}
    unusable: dict[str, str] = {}
    while candidates and len(rows) < wanted:
        missing = wanted - len(rows)
        tried, candidates = candidates[:missing], candidates[missing:]
        for name, found in gathered(
            [(one.name, _rows_of(one, extractor, protocol, known)) for one in of_this_process(tried)]
        ):
            if isinstance(found, int) and found:
                rows[name] = found
            elif isinstance(found, int):
                (dropped if protocol.clip.short == "drop" else unusable)[name] = TOO_SHORT
            else:
                unusable[name] = found
    survey = without(videos, unusable, allow_missing=allow_missing)
    if count is not None and len(rows) < count:
        raise ValueError(_too_few(protocol, videos, count, len(rows), dropped | unusable))
    return Examined(survey, len(rows), sum(rows.values()))


def _rows_of(
    video: SurveyedVideo, extractor: FeatureExtractor, protocol: FeatureProtocol, known: dict[str, Tensor]
) -> int | str:
    """How many rows of features a video gives, 0 when it is too short; or what is wrong with its frames."""
    if video.sha256 in known:
        return len(known[video.sha256])
    rule = protocol.clip
    reads_all = rule.offset != "first" or rule.clips_per_video > 1
    try:
        frames = sum(
            1
            for _ in islice(iter_frames(video.path, fps=rule.fps, strict=True), None if reads_all else clip_span(rule))
        )
    except VideoError as error:
        return str(error)
    clips = len(clip_starts(frames, rule, torch.Generator())) or (1 if rule.short == "repeat-last" and frames else 0)
    length = rule.frames or math.ceil(min(frames, rule.max_frames or frames) / rule.stride)
    if clips and length < extractor.least_frames:
        return f"{extractor.name} needs at least {extractor.least_frames} frames, and it gives {length}"
    return clips * (length if extractor.per_frame else 1)


def extract_features(
    videos: Survey,
    extractor: FeatureExtractor,
    protocol: FeatureProtocol,
    *,
    count: int | None,
    cache: Path | None,
    seed: int = 0,
    allow_missing: bool = False,
    device: torch.device | str = "cpu",
    say: Callable[[str], None] = lambda line: None,
) -> FeatureSet:
    """Features of `count` videos (None: of all), drawn by `seed` and not by their order in the folder.

    In a process group every rank reads its share, and all ranks return the same set.

    Args:
        cache: folder where features are kept under the hash of everything that made them; a second run reads them, a
            run that was cut short goes on. None keeps nothing.
        allow_missing: leave out videos that turn out to be damaged while they are read, instead of an error.
        say: told what happens.

    Raises:
        ValueError: a damaged video; fewer than `count` videos that are long enough.
    """
    conditions = extraction_conditions(extractor, protocol, seed=seed)
    kept = FeatureCache.at(cache, conditions)
    work = _Extraction(extractor.to(device), protocol, seed, kept, allow_missing=allow_missing, device=device)
    candidates = _in_drawn_order(videos, seed)
    wanted = len(candidates) if count is None else count
    found, dropped = FeatureSet(torch.empty(0, extractor.num_features), (), conditions), {}
    # Some turn out too short: then as many of the others are tried.
    while candidates and found.num_videos < wanted:
        missing = wanted - found.num_videos
        tried, candidates = candidates[:missing], candidates[missing:]
        rows, names, left_out = work.run(of_this_process(tried))
        found = joined([found, *gathered([FeatureSet(rows, names, conditions)])])
        dropped |= dict(gathered(list(left_out.items())))
        say(f"{found.num_videos} of {wanted} videos of {videos.root} ({work.read} read from the cache)")
    if count is not None and found.num_videos < count:
        raise ValueError(_too_few(protocol, videos, count, found.num_videos, dropped))
    # where every video is taken from its first frame on, nothing was drawn
    draws = protocol.clip.offset == "random" or bool(candidates)
    inputs: dict[str, Any] = {**videos.to_json(), "seed": seed if draws else None}
    inputs |= {"excluded": inputs["excluded"] | dropped, "n_videos": found.num_videos, "n_rows": len(found.features)}
    inputs |= {"clip_rule": clip_rule(protocol.clip, seed)}
    return FeatureSet(found.features, found.videos, conditions, inputs)


def clip_rule(rule: ClipRule, seed: int) -> str:
    """In words, for a result."""
    place = (
        f"offset drawn by (seed {seed}, content of the video)" if rule.offset == "random" else f"{rule.offset} frames"
    )
    return f"{rule.clips_per_video} a video, {place}"


class FeatureCache:
    """Features by content of the video, in small files written whole; several processes may add to one folder."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.rows: dict[str, Tensor] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for shard in sorted(folder.glob("*.safetensors")):
                self.rows |= load_file(shard)

    @classmethod
    def at(cls, root: Path | None, conditions: dict[str, Any]) -> "FeatureCache":
        """The folder for these conditions: another network, clip rule or preprocessing is another folder."""
        key = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()
        return cls(None if root is None else root / key[:32])

    def add(self, rows: dict[str, Tensor]) -> None:
        self.rows |= rows
        if self.folder is None:
            return
        name = hashlib.sha256("".join(sorted(rows)).encode()).hexdigest()[:32]
        unfinished = self.folder / f"{name}.{os.getpid()}.part"
        save_tensors(rows, unfinished)
        os.replace(unfinished, self.folder / f"{name}.safetensors")


class _Extraction:
    """One process's part of the work."""

    def __init__(
        self,
        extractor: FeatureExtractor,
        protocol: FeatureProtocol,
        seed: int,
        cache: FeatureCache,
        *,
        allow_missing: bool,
        device: torch.device | str,
    ) -> None:
        self.extractor, self.protocol, self.seed, self.cache = extractor, protocol, seed, cache
        self.allow_missing, self.device = allow_missing, device
        self.read = 0

    def run(self, videos: Sequence[SurveyedVideo]) -> tuple[Tensor, tuple[str, ...], dict[str, str]]:
        """Rows ``n d``, the video of each row, and the videos left out with their reasons."""
        unread = [video for video in videos if video.sha256 not in self.cache.rows]
        self.read += len(videos) - len(unread)
        left_out: dict[str, str] = {}
        self._fill_cache(unread, left_out)
        rows = {video.name: self.cache.rows[video.sha256] for video in videos if video.name not in left_out}
        left_out |= {name: TOO_SHORT for name, row in rows.items() if not len(row)}
        names = tuple(name for name, row in rows.items() for _ in row)
        features = torch.cat([torch.empty(0, self.extractor.num_features), *rows.values()])
        return features, names, left_out

    def _fill_cache(self, videos: Sequence[SurveyedVideo], left_out: dict[str, str]) -> None:
        """Write the features of finished videos after every batch, so that a run cut short loses one batch."""
        rows: dict[str, list[Tensor]] = {}
        for batch in _of_one_shape(self._clips(videos, left_out)):
            for (content, _), features in zip(batch, self._features(batch), strict=True):
                rows.setdefault(content, []).append(features)
            last = batch[-1][0]
            self._keep({content: rows.pop(content) for content in list(rows) if content != last}, videos, left_out)
        unread = [video.sha256 for video in videos if video.sha256 not in self.cache.rows]
        self._keep({content: rows.get(content, []) for content in unread}, videos, left_out)

    def _keep(self, rows: dict[str, list[Tensor]], videos: Sequence[SurveyedVideo], left_out: dict[str, str]) -> None:
        """Cache whole videos; of one that turned out to be damaged there are rows from before the damage."""
        damaged = {video.sha256 for video in videos if video.name in left_out}
        none = torch.empty(0, self.extractor.num_features)
        whole = {content: torch.cat([none, *parts]) for content, parts in rows.items() if content not in damaged}
        if whole:
            self.cache.add(whole)

    def _clips(self, videos: Sequence[SurveyedVideo], left_out: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
        """The preprocessed clips ``3 t h w`` of all videos, each with the content hash of its video."""
        clip_rule, steps = self.protocol.clip, self.protocol.preprocess
        piece = PIECE_FRAMES if self.extractor.per_frame else None
        for video in videos:
            generator = torch.Generator().manual_seed(int(_draw(self.seed, video.sha256)[:15], 16))
            count = 0
            try:
                for clip in read_clips(video.path, clip_rule, steps, generator=generator, piece=piece):
                    count += 1
                    yield video.sha256, clip
            except VideoError as error:
                if not self.allow_missing:
                    raise
                left_out[video.name] = str(error)
                continue
            if not count and clip_rule.short == "error":
                raise ValueError(
                    f"{self.protocol.name} takes clips over {clip_span(clip_rule)} frames, and {video.path} is "
                    "shorter; remove it or choose another protocol"
                )

    @torch.no_grad()
    def _features(self, batch: list[tuple[str, Tensor]]) -> Tensor:
        """Clips of one shape -> ``b n d``."""
        clips = torch.stack([clip for _, clip in batch]).to(self.device)
        with without_tf32():
            return self.extractor(clips).float().cpu()


def read_clips(
    path: Path, rule: ClipRule, steps: Preprocess, *, generator: torch.Generator, piece: int | None = None
) -> Iterator[Tensor]:
    """The preprocessed clips ``3 t h w`` of a video; none when it is shorter than `rule` asks and is to be dropped.

    Args:
        generator: draws where clips begin.
        piece: yield each clip in pieces of at most so many frames.
    """
    needs_length = rule.offset != "first" or rule.clips_per_video > 1
    # counted by decoding: what headers claim is often wrong
    total = sum(1 for _ in iter_frames(path, fps=rule.fps, size=(2, 2), strict=True)) if needs_length else None
    starts = [0] if total is None else clip_starts(total, rule, generator)
    if not starts and rule.short == "repeat-last":
        starts = [0]
    for start in starts:
        span = clip_span(rule)
        frames = islice(
            iter_frames(path, fps=rule.fps, strict=True), start, None if span is None else start + span, rule.stride
        )
        if rule.frames is None and piece is not None:
            while held := list(islice(frames, piece)):
                yield torch.cat(list(_preprocessed(iter(held), steps)), dim=1)
            continue
        clip = torch.cat(list(_preprocessed(frames, steps)), dim=1)
        missing = 0 if rule.frames is None else rule.frames - clip.shape[1]
        if missing and rule.short != "repeat-last":
            return
        yield torch.cat([clip, clip[:, -1:].expand(-1, missing, -1, -1)], dim=1)


def _preprocessed(frames: Iterator[np.ndarray], steps: Preprocess) -> Iterator[Tensor]:
    """uint8 `h w 3` frames -> floats ``3 t h' w'``, a few at a time: clips at full size would need much memory."""
    while held := list(islice(frames, CHUNK_FRAMES)):
        yield preprocess(rearrange(torch.from_numpy(np.stack(held)), "t h w c -> 1 c t h w"), steps)[0]


def _of_one_shape(clips: Iterator[tuple[str, Tensor]]) -> Iterator[list[tuple[str, Tensor]]]:
    """Batches of at most `BATCH_CLIPS` clips in order."""
    batch: list[tuple[str, Tensor]] = []
    for item in clips:
        if batch and (len(batch) == BATCH_CLIPS or item[1].shape != batch[0][1].shape):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _too_few(protocol: FeatureProtocol, videos: Survey, count: int, found: int, left_out: dict[str, str]) -> str:
    short = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:3])
    return (
        f"{protocol.name} needs {count} videos, and {videos.root} has {found} that can be used "
        f"({len(left_out)} are left out{': ' + short if short else ''}); add videos"
    )


def _in_drawn_order(videos: Survey, seed: int) -> list[SurveyedVideo]:
    return sorted(videos.videos, key=lambda video: _draw(seed, video.name))


def _draw(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()
