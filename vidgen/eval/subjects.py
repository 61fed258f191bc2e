"""What is being scored: a tokenizer, or a folder of reconstructions made elsewhere; both give pairs of frames."""

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vidgen.data import VideoError, find_videos, iter_frames, probe, to_tensor
from vidgen.data.decode import IMAGE_FPS, IMAGE_SUFFIXES
from vidgen.data.video import VIDEO_SUFFIXES
from vidgen.eval.clips import LOSSLESS, Clip, Exclusion, content_sha256, target_size
from vidgen.eval.codebook import CodebookUsage
from vidgen.eval.flops import count_flops
from vidgen.eval.protocol import ReconstructionProtocol
from vidgen.eval.ranks import gathered, of_this_process
from vidgen.latents import Latents
from vidgen.nn.fingerprint import weights_sha256
from vidgen.tokenizers.base import Tokenizer


@dataclass
class Counts:
    """Plain sums over a clip or over all clips."""

    frames: int = 0
    pixels: int = 0
    tokens: int = 0
    values: int = 0  # numbers in the tokens
    bits: float = 0.0
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0

    def add(self, other: "Counts") -> None:
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))


class Pair(NamedTuple):
    """A piece of a clip and of its reconstruction, ``1 3 t h w`` in [-1, 1], and the index of its first frame."""

    start: int
    video: Tensor
    reference: Tensor


class Subject(ABC):
    """Something whose reconstructions of clips are scored."""

    name: str
    device: torch.device

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides its reconstructions, JSON-able: two subjects of one identity give the same scores."""

    @abstractmethod
    def pairs(self, clip: Clip, counts: Counts, usage: CodebookUsage | None) -> Iterator[Pair]:
        """Every frame of ``clip`` beside its reconstruction, in order; ``counts`` and ``usage`` grow on the way."""

    def cost(self, clip: Clip) -> dict[str, Any]:
        """Columns about the model itself, measured on a piece of ``clip``, after which the clocks may run."""
        return {}

    @abstractmethod
    def check(self, clips: Sequence[Clip]) -> list[Exclusion]:
        """The clips that can be seen before work starts not to be scorable; ValueError for what concerns them all."""

    @property
    def phase_period(self) -> int:
        """Frames in one row of tokens: the period of PSNR by phase."""
        return 1

    def new_usage(self) -> CodebookUsage | None:
        return None


class TokenizerSubject(Subject):
    """A tokenizer on its device, in eval mode. Clips stream through tokenizers that stream."""

    def __init__(self, tokenizer: Tokenizer, name: str) -> None:
        self.tokenizer, self.name, self.device = tokenizer, name, tokenizer.device

    def identity(self) -> dict[str, Any]:
        return {
            "class": type(self.tokenizer).__name__,
            "config_sha256": hashlib.sha256(self.tokenizer.to_json_string().encode()).hexdigest(),
            "weights_sha256": weights_sha256(self.tokenizer),
            "dtype": str(self.tokenizer.dtype).removeprefix("torch."),
            "device": self.device.type,
        }

    def check(self, clips: Sequence[Clip]) -> list[Exclusion]:
        """A tokenizer takes clips of any length and size."""
        return []

    @property
    def phase_period(self) -> int:
        strides = [part.stride[part.axes.index("t")] for part in self.tokenizer.spec.parts if "t" in part.axes]
        return max(strides, default=1)

    def new_usage(self) -> CodebookUsage | None:
        return CodebookUsage(self.tokenizer.spec) if self.tokenizer.spec.discrete else None

    @torch.no_grad()
    def cost(self, clip: Clip) -> dict[str, Any]:
        """Counts operations on the first chunk, which also pays for memory pools, kernel choice and lazy set-up."""
        columns: dict[str, Any] = {"parameters": sum(weight.numel() for weight in self.tokenizer.parameters())}
        chunk = next(clip.chunks(), None)
        if chunk is None:
            raise ValueError(f"clip {clip.name} has no frames")
        video = chunk[None].to(self.device, self.tokenizer.dtype)
        with frozen(self.tokenizer), count_flops() as encoding:
            latents = self.tokenizer.encode(video)
        with frozen(self.tokenizer), count_flops() as decoding:
            self.tokenizer.decode(latents)
        frames = video.shape[2]
        return columns | {
            "encode_gflop_per_frame": encoding.get_total_flops() / 1e9 / frames,
            "decode_gflop_per_frame": decoding.get_total_flops() / 1e9 / frames,
        }

    @torch.no_grad()
    def pairs(self, clip: Clip, counts: Counts, usage: CodebookUsage | None) -> Iterator[Pair]:
        tokenizer = self.tokenizer
        originals = _Originals()
        reading, encoding, decoding = (_Clock(self.device) for _ in range(3))

        def counted(latents: Iterable[Latents]) -> Iterator[Latents]:
            for chunk in latents:
                if usage is not None:
                    usage.update(chunk)
                tokens, bits = _rate(chunk)
                counts.tokens += tokens
                counts.values += tokens * tokenizer.spec.channels
                counts.bits += bits
                yield chunk

        source = originals.watch(chunk[None] for chunk in clip.chunks())
        source = reading.timed(chunk.to(self.device, tokenizer.dtype) for chunk in source)
        latents = counted(encoding.timed(tokenizer.encode_chunks(source)))
        for fake in decoding.timed(tokenizer.decode_chunks(latents)):
            real = originals.take(fake.shape[2])
            if real.shape != fake.shape:
                raise ValueError(
                    f"{type(tokenizer).__name__} gave back {tuple(fake.shape)} for {tuple(real.shape)} of clip "
                    f"{clip.name}; a tokenizer must give back exactly the frames it got"
                )
            # float64, which the scores need, does not exist on Apple's GPUs
            where = "cpu" if self.device.type == "mps" else self.device
            yield Pair(counts.frames, fake.float().to(where), real.to(where))
            counts.frames += fake.shape[2]
            counts.pixels += fake.shape[2] * fake.shape[3] * fake.shape[4]
        if originals.take(1).shape[2]:
            raise ValueError(f"{type(tokenizer).__name__} gave back only {counts.frames} frames of clip {clip.name}")
        counts.encode_seconds = encoding.seconds - reading.seconds
        counts.decode_seconds = decoding.seconds - encoding.seconds


class FolderSubject(Subject):
    """A folder of reconstructions of what a protocol takes from each clip, found by name whatever their suffix.

    They need the length and size of what is scored, and its frame rate where they have one (images need not). Write
    them lossless (folders of PNGs, ffv1): an mp4 of a 42 dB reconstruction scores 34 dB.
    """

    device = torch.device("cpu")

    def __init__(
        self, folder: str | Path, name: str, *, originals: dict[str, Path], protocol: ReconstructionProtocol
    ) -> None:
        self.folder, self.name, self.originals, self.protocol = Path(folder), name, originals, protocol
        self.files = {_bare(str(path.relative_to(folder))): path for path in find_videos(folder)}

    def identity(self) -> dict[str, Any]:
        codecs = sorted({found for path in self.files.values() if (found := _codec(path)) is not None})
        contents = {name: content_sha256(path) for name, path in sorted(self.files.items())}
        return {"class": "folder", "codecs": codecs, "decoded_lossy": not set(codecs) <= LOSSLESS, "files": contents}

    def check(self, clips: Sequence[Clip]) -> list[Exclusion]:
        """Decodes every reconstruction to its end; the processes of a launch share them."""
        wrong = [(clip.name, self._why_unlike(clip)) for clip in of_this_process(clips)]
        return [Exclusion(name, reason) for name, reason in gathered(wrong) if reason is not None]

    def _why_unlike(self, clip: Clip) -> str | None:
        """What tells the reconstruction from what is scored; None when they are alike."""
        path = self.files.get(_bare(clip.name))
        if path is None:
            return (
                f"{self.folder} has no reconstruction of it: expected a file or folder of its name, whatever the suffix"
            )
        try:
            fake = probe(path)
            length = sum(1 for _ in iter_frames(path, strict=True))
        except VideoError as error:
            return f"its reconstruction is damaged: {error}"
        real = probe(self.originals[clip.name])
        size = target_size(self.protocol.preprocess, real.height, real.width) or (real.height, real.width)
        fps = (self.protocol.clip.fps or real.fps) / self.protocol.clip.stride
        has_times = (fake.codec, fake.fps) != ("images", IMAGE_FPS)
        if size != (fake.height, fake.width) or (has_times and abs(fps - fake.fps) > 0.01 * fps):
            return (
                f"is scored at {size[0]}x{size[1]} and {fps:.2f} frames/s, and its reconstruction in {self.folder} has "
                f"{fake.height}x{fake.width} and {fake.fps:.2f} frames/s; make them equal"
            )
        frames = sum(chunk.shape[1] for chunk in clip.chunks()) if clip.frames is None else clip.frames
        if frames != length:
            return f"has {frames} frames, and its reconstruction in {self.folder} {length}; make them equally long"
        return None

    def pairs(self, clip: Clip, counts: Counts, usage: CodebookUsage | None) -> Iterator[Pair]:
        fakes = iter_frames(self.files[_bare(clip.name)], strict=True)
        for real in clip.chunks():
            frames = list(islice(fakes, real.shape[1]))
            assert len(frames) == real.shape[1], "check has compared the lengths"
            yield Pair(counts.frames, to_tensor(np.stack(frames))[None], real[None])
            counts.frames += real.shape[1]
            counts.pixels += real.shape[1] * real.shape[2] * real.shape[3]


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No parameter wants a gradient: PyTorch's counter of operations fails where one is the input of a module."""
    wanting = [weight for weight in module.parameters() if weight.requires_grad]
    for weight in wanting:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in wanting:
            weight.requires_grad_(True)


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

    def watch(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        for chunk in chunks:
            self.held.append(chunk)
            yield chunk

    def take(self, count: int) -> Tensor:
        held = torch.cat(self.held, dim=2) if self.held else torch.empty(1, 3, 0, 0, 0)
        self.held = [held[:, :, count:]]
        return held[:, :, :count]


def _rate(latents: Latents) -> tuple[int, float]:
    """Tokens of a chunk, and bits (log2 of each id's codebook size), over its samples; only valid prefixes count."""
    number = latents.tokens.shape[1]
    lengths = [number] * len(latents) if latents.length is None else latents.length.tolist()
    bits = torch.zeros(number, dtype=torch.float64)
    places = latents.spec.slices(latents.size, start=latents.start)
    for part, place in zip(latents.spec.parts, places, strict=True):
        bits[place] = sum(float(np.log2(codes)) for codes in part.codebooks)
    return sum(lengths), sum(float(bits[:length].sum()) for length in lengths)


def _codec(path: Path) -> str | None:
    """None of a file that cannot be opened, which `check` reports where a clip wants it."""
    try:
        return probe(path).codec
    except VideoError:
        return None


def _bare(name: str) -> str:
    """The name of a clip without the suffix of a video or an image."""
    path = Path(name)
    return str(path.with_suffix("")) if path.suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES else name
