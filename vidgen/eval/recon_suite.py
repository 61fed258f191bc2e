"""Runs a tokenizer over clips and tables what comes back: fidelity, rate, codebook use, speed and memory.

Clips of any length are streamed through tokenizers that stream, so memory does not grow with them; streamed and
one-shot results of such tokenizers are the same. Frames go from the decoder to the scores: no lossy file between.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor
from torch.utils.data import Dataset

from vidgen.data.video import iter_frames, to_tensor
from vidgen.eval.codebook import CodebookUsage
from vidgen.eval.metric import PairedFrameMean
from vidgen.eval.perceptual import FrameDistance, LpipsNet, why_lpips_is_missing
from vidgen.eval.reconstruction import SSIM_WINDOW, PerceptualScore, Psnr, Ssim
from vidgen.eval.report import environment_stamp, peak_memory_megabytes, write_csv, write_json
from vidgen.latents import Latents
from vidgen.tokenizers.base import Tokenizer

CHUNK_FRAMES = 16
SOURCE_BITS_PER_PIXEL = 24  # 8-bit RGB: what the compression ratio is measured against


@dataclass(frozen=True)
class Clip:
    """A named video that can be read in chunks ``3 t h w`` in [-1, 1] of any lengths."""

    name: str
    chunks: Callable[[], Iterator[Tensor]]


def clips_from_files(
    paths: Sequence[str | Path],
    *,
    max_frames: int | None = None,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
) -> list[Clip]:
    """Video files, image folders or images as clips; decoded while they are scored. Arguments as in ``iter_frames``."""

    def chunks_of(path: str | Path) -> Iterator[Tensor]:
        frames = iter_frames(path, max_frames=max_frames, fps=fps, size=size)
        while held := list(islice(frames, CHUNK_FRAMES)):
            yield to_tensor(np.stack(held))

    return [Clip(Path(path).name, lambda path=path: chunks_of(path)) for path in paths]


def clips_from_dataset(dataset: Dataset, count: int) -> list[Clip]:
    """The first ``count`` items (``{"video": 3 t h w, "id": …}``) of a dataset of this project."""
    return [Clip(f"item {index}", lambda index=index: iter([dataset[index]["video"]])) for index in range(count)]


@dataclass(frozen=True)
class ReconstructionReport:
    """Scores of one tokenizer: one row a clip, and the row ``total`` over all frames of all clips.

    A None in a row has its reason in ``missing`` under the same column.
    """

    tokenizer: str
    rows: list[dict[str, Any]]
    total: dict[str, Any]
    missing: dict[str, str]
    environment: dict[str, Any]
    conventions: dict[str, str] = field(default_factory=lambda: dict(CONVENTIONS))

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": "vidgen.reconstruction/1",
            "tokenizer": self.tokenizer,
            "total": self.total,
            "clips": self.rows,
            "missing": self.missing,
            "conventions": self.conventions,
            "environment": self.environment,
        }

    def write(self, path: str | Path) -> tuple[Path, Path]:
        """Write ``path`` with the suffixes .json (everything) and .csv (a line a clip, and the total); returns both."""
        json_path, csv_path = Path(path).with_suffix(".json"), Path(path).with_suffix(".csv")
        write_json(json_path, self.to_json())
        write_csv(csv_path, [*self.rows, self.total])
        return json_path, csv_path

    def table(self) -> Table:
        """For the terminal: the columns that have a number somewhere, and below them why the others have none."""
        columns = [column for column in TABLE_COLUMNS if self.total.get(column) is not None]
        caption = "\n".join(f"{column}: {reason}" for column, reason in self.missing.items())
        table = Table(title=f"reconstruction by {self.tokenizer}", caption=caption or None, caption_justify="left")
        table.add_column("clip", overflow="fold")
        for column in columns:
            table.add_column(TABLE_COLUMNS[column], justify="right")
        for row in [*self.rows, self.total]:
            table.add_row(row["clip"], *(_cell(row[column]) for column in columns), end_section=row is self.rows[-1])
        return table


TABLE_COLUMNS = {
    "frames": "frames",
    Psnr.key: "PSNR dB",
    Ssim.key: "SSIM",
    "lpips.alex.v0.1": "LPIPS alex",
    "lpips.vgg.v0.1": "LPIPS vgg",
    "lpips.squeeze.v0.1": "LPIPS squeeze",
    "squeezenet.features": "SqueezeNet dist.",
    "tokens": "tokens",
    "bits_per_pixel": "bits/pixel",
    "compression_ratio": "ratio",
    "codebook.usage": "codes used",
    "codebook.perplexity": "perplexity",
    "encode_frames_per_second": "enc. frames/s",
    "decode_frames_per_second": "dec. frames/s",
    "peak_memory_megabytes": "peak MB",
}

CONVENTIONS = {
    Psnr.key: "8-bit RGB levels, mean of per-frame PSNR, equal frames count 100 dB",
    "psnr.rgb.global": "8-bit RGB levels, squared error pooled over all frames",
    Ssim.key: "8-bit RGB levels, gaussian 11x11 sigma 1.5, valid places, mean over channels and frames",
    "squeezenet.features": "unit-normalised SqueezeNet 1.0 features, equal layer weights; not LPIPS",
    "tokens": "tokens of the clip (valid prefix where the tokenizer is variable-rate)",
    "bits": "fixed-length code of the ids, no entropy coding",
    "bits_per_pixel": "bits over frames x height x width",
    "compression_ratio": "24-bit RGB over bits",
    "values_ratio": "RGB values of the clip over values of its latents",
    "codebook.usage": "share of codes seen at least once in these clips, mean over codebooks",
    "encode_frames_per_second": "batch 1, time inside the tokenizer only, after a warm-up",
    "peak_memory_megabytes": "CUDA: tensors, since the start of the evaluation; CPU: peak resident set of the process",
}


@torch.no_grad()
def evaluate_reconstruction(
    tokenizer: Tokenizer,
    clips: Sequence[Clip],
    *,
    name: str,
    distances: Sequence[FrameDistance] = (),
    lpips_net: LpipsNet = "alex",
    on_clip: Callable[[dict[str, Any]], None] | None = None,
) -> ReconstructionReport:
    """Encode and decode every clip and score what comes back.

    Args:
        tokenizer: on its device, in eval mode.
        clips: at least one. A tokenizer that does not stream gets each whole clip at once: cut long clips.
        name: how the tokenizer is called in the report.
        distances: perceptual distances that have their weights (``SqueezeNetDistance``, ``LpipsDistance``).
        lpips_net: which LPIPS column says why it is missing when no ``LpipsDistance`` is among ``distances``.
        on_clip: called with each finished row.

    Raises:
        ValueError: no clips; a clip without frames; a tokenizer that changes the number or size of the frames.
    """
    if not clips:
        raise ValueError("expected at least one clip to reconstruct, got none")
    scores: list[PairedFrameMean] = [
        Psnr(),
        Ssim(),
        *(PerceptualScore(distance.to(tokenizer.device)) for distance in distances),
    ]
    usage = CodebookUsage(tokenizer.spec) if tokenizer.spec.discrete else None
    missing: dict[str, str] = {}
    if not any(score.key.startswith("lpips.") for score in scores):
        missing[f"lpips.{lpips_net}.v0.1"] = why_lpips_is_missing(lpips_net)
    if not any(score.key == "squeezenet.features" for score in scores):
        missing["squeezenet.features"] = (
            "not computed: give the path of ImageNet SqueezeNet 1.0 weights (--squeezenet-weights FILE)"
        )
    if usage is None:
        for column in ("bits", "bits_per_pixel", "compression_ratio", "codebook.usage", "codebook.perplexity"):
            missing[column] = "continuous latents have neither ids nor a fixed-length code"
    _warm_up(tokenizer, clips[0])
    if tokenizer.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(tokenizer.device)
    rows, totals = [], _Counts()
    for clip in clips:
        measured = _run_clip(tokenizer, clip, scores=scores, usage=usage)
        for column, reason in measured.missing.items():
            missing.setdefault(column, reason)
        row = _row(clip.name, measured.counts, measured.scores, measured.usage, missing, tokenizer)
        for score, of_clip in zip(scores, measured.scores, strict=True):
            score.merge(of_clip)
        if usage is not None and measured.usage is not None:
            usage.merge(measured.usage)
        totals.add(measured.counts)
        rows.append(row)
        if on_clip is not None:
            on_clip(row)
    total = _row("total", totals, scores, usage, missing, tokenizer)
    return ReconstructionReport(name, rows, total, missing, environment_stamp(tokenizer.device))


@dataclass
class _Counts:
    """Plain sums over a clip or over all clips."""

    frames: int = 0
    pixels: int = 0
    tokens: int = 0
    bits: float = 0.0
    height: int | None = None
    width: int | None = None
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0

    def add(self, other: "_Counts") -> None:
        self.frames += other.frames
        self.pixels += other.pixels
        self.tokens += other.tokens
        self.bits += other.bits
        self.encode_seconds += other.encode_seconds
        self.decode_seconds += other.decode_seconds


@dataclass
class _Measured:
    counts: _Counts
    scores: list[PairedFrameMean]
    usage: CodebookUsage | None
    missing: dict[str, str]


class _Clock:
    """Seconds spent inside the iterators it wraps, with whatever they pull from."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0
        self.device = device

    def timed(self, items: Iterator) -> Iterator:
        while True:
            start = time.perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            finally:
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
                self.seconds += time.perf_counter() - start
            yield item


class _Originals:
    """Frames that went into the tokenizer and whose reconstruction has not come out yet."""

    def __init__(self) -> None:
        self.held: list[Tensor] = []
        self.size: tuple[int, int] | None = None

    def watch(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        for chunk in chunks:
            self.size = (chunk.shape[-2], chunk.shape[-1])
            self.held.append(chunk)
            yield chunk

    def take(self, count: int) -> Tensor:
        held = torch.cat(self.held, dim=2) if self.held else torch.empty(1, 3, 0, 0, 0)
        self.held = [held[:, :, count:]]
        return held[:, :, :count]


def _run_clip(
    tokenizer: Tokenizer, clip: Clip, *, scores: Sequence[PairedFrameMean], usage: CodebookUsage | None
) -> _Measured:
    device, dtype = tokenizer.device, tokenizer.dtype
    counts, missing = _Counts(), {}
    fresh = [score.empty() for score in scores]
    clip_usage = usage.empty() if usage is not None else None
    originals = _Originals()
    reading, encoding, decoding = _Clock(device), _Clock(device), _Clock(device)

    def counted(latents: Iterable[Latents]) -> Iterator[Latents]:
        for chunk in latents:
            if clip_usage is not None:
                clip_usage.update(chunk)
            tokens, bits = _rate(chunk)
            counts.tokens += tokens
            counts.bits += bits
            yield chunk

    source = originals.watch(chunk[None] for chunk in clip.chunks())
    source = reading.timed(chunk.to(device, dtype) for chunk in source)
    latents = counted(encoding.timed(_encoded(tokenizer, source)))
    for fake in decoding.timed(_decoded(tokenizer, latents)):
        real = originals.take(fake.shape[2])
        if real.shape != fake.shape:
            raise ValueError(
                f"{type(tokenizer).__name__} gave back {tuple(fake.shape)} for {tuple(real.shape)} of clip "
                f"{clip.name}; a tokenizer must give back exactly the frames it got"
            )
        counts.frames += fake.shape[2]
        counts.pixels += fake.shape[2] * fake.shape[3] * fake.shape[4]
        # float64, which the scores need, does not exist on Apple's GPUs
        where = "cpu" if device.type == "mps" else device
        real, fake = real.to(where), fake.float().to(where)
        for score in fresh:
            if (smallest := _smallest_side(score)) > min(fake.shape[-2:]):
                missing[score.key] = f"left out for clips with a side below {smallest} pixels, such as {clip.name}"
            else:
                score.update(fake, real)
    if counts.frames == 0:
        raise ValueError(f"clip {clip.name} has no frames")
    if originals.take(1).shape[2]:
        raise ValueError(f"{type(tokenizer).__name__} gave back only {counts.frames} frames of clip {clip.name}")
    assert originals.size is not None
    counts.height, counts.width = originals.size
    counts.encode_seconds = encoding.seconds - reading.seconds
    counts.decode_seconds = decoding.seconds - encoding.seconds
    return _Measured(counts, fresh, clip_usage, missing)


def _encoded(tokenizer: Tokenizer, chunks: Iterator[Tensor]) -> Iterator[Latents]:
    if tokenizer.spec.streamable:
        yield from tokenizer.encode_stream(chunks)
    elif video := list(chunks):
        yield tokenizer.encode(torch.cat(video, dim=2))


def _decoded(tokenizer: Tokenizer, latents: Iterator[Latents]) -> Iterator[Tensor]:
    return iter(tokenizer.decode_stream(latents)) if tokenizer.spec.streamable else map(tokenizer.decode, latents)


def _warm_up(tokenizer: Tokenizer, clip: Clip) -> None:
    """Pay for memory pools, kernel choice and lazy set-up before the clocks run."""
    chunk = next(clip.chunks(), None)
    if chunk is not None:
        tokenizer.decode(tokenizer.encode(chunk[None].to(tokenizer.device, tokenizer.dtype)))


def _rate(latents: Latents) -> tuple[int, float]:
    """Tokens and fixed-length bits of a chunk, summed over its samples; only valid prefixes count."""
    number = latents.tokens.shape[1]
    lengths = [number] * len(latents) if latents.length is None else latents.length.tolist()
    bits = torch.zeros(number, dtype=torch.float64)
    places = latents.spec.slices(latents.size, start=latents.start)
    for part, place in zip(latents.spec.parts, places, strict=True):
        bits[place] = sum(float(np.log2(codes)) for codes in part.codebooks)
    return sum(lengths), sum(float(bits[:length].sum()) for length in lengths)


def _smallest_side(score: PairedFrameMean) -> int:
    if isinstance(score, Ssim):
        return SSIM_WINDOW
    return score.distance.smallest_side if isinstance(score, PerceptualScore) else 1


def _row(
    name: str,
    counts: _Counts,
    scores: Sequence[PairedFrameMean],
    usage: CodebookUsage | None,
    missing: dict[str, str],
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    row: dict[str, Any] = {"clip": name, "frames": counts.frames, "height": counts.height, "width": counts.width}
    for score in scores:
        row |= score.compute() if score.count else {score.key: None}
    row |= {
        "tokens": counts.tokens,
        "values_ratio": 3 * counts.pixels / (counts.tokens * tokenizer.spec.channels),
        "bits": counts.bits or None,
        "bits_per_pixel": counts.bits / counts.pixels or None,
        "compression_ratio": SOURCE_BITS_PER_PIXEL * counts.pixels / counts.bits if counts.bits else None,
    }
    row |= usage.compute() if usage is not None else {"codebook.usage": None, "codebook.perplexity": None}
    row |= {
        "encode_frames_per_second": counts.frames / counts.encode_seconds,
        "decode_frames_per_second": counts.frames / counts.decode_seconds,
        "peak_memory_megabytes": peak_memory_megabytes(tokenizer.device),
    }
    return row | {column: None for column in missing if column not in row}


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
