"""How good are the tokenizers of real video? `python eval/real_tokenizers.py PIECES/unseen --models real-fsq real-kl`.

Each tokenizer on pieces of sources that it was not trained on (`tokenizers/real_clips.py` cuts them), beside baselines
that get as many bits for every single clip: x264 at the greatest crf that takes at least as many, frames scaled down
and up again by bicubic interpolation, and the same with every fourth frame alone and the others mixed from their
neighbours. Ids count by their fixed length. Real channels have no bits, so they are rounded to `--level-bits` each
here, before decoding: 256 or 64 levels from -4 to 4 deviations. Results of clips that are scored already are kept in
`--records`; what `vidgen models` shows of a built-in one goes to `scores.json` beside its weights.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor
from torch.nn import functional as F

import vidgen
from vidgen.data import find_videos
from vidgen.eval.clips import Clip, ClipSet, Exclusion, clips_for_protocol
from vidgen.eval.codebook import CodebookUsage
from vidgen.eval.codecs import CODECS, CodecSubject
from vidgen.eval.perceptual import SqueezeNetDistance
from vidgen.eval.protocol import ClipRule, Preprocess, ReconstructionProtocol
from vidgen.eval.recon_report import SubjectResult
from vidgen.eval.recon_suite import evaluate
from vidgen.eval.report import code_digest, environment_stamp, model_label, write_csv, write_json
from vidgen.eval.subjects import Counts, Pair, Subject, TokenizerSubject
from vidgen.loading import PRETRAINED
from vidgen.tokenizers.base import Tokenizer

PROTOCOL = ReconstructionProtocol(
    name="real_tokenizers.v1",
    clip=ClipRule(),
    preprocess=Preprocess(),
    metrics=("psnr.rgb.frame_mean.cap100", "ssim.rgb.gauss11.valid", "tdiff_psnr.rgb.frame_mean.cap100"),
    source="eval/real_tokenizers.py: whole pieces, 8-bit levels, every frame counts the same",
)
SOURCE = "eval/real_tokenizers.py"  # of subjects, whose kept results another version of it must not take up
LARGEST = 4.0  # value of a rounded channel, in deviations
SOURCE_BITS = 24
COLUMNS = ("psnr.rgb.frame_mean.cap100", "ssim.rgb.gauss11.valid", "tdiff_psnr.rgb.frame_mean.cap100")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is scored."""

    clips: tyro.conf.Positional[Path]
    """Folder of unseen pieces."""
    models: tuple[str, ...] = ("real-fsq", "real-kl")
    """Folders of tokenizers, or names of built-in ones."""
    level_bits: tuple[int, ...] = (8, 6)
    """Bits of a channel of tokenizers without ids, which have rows for each."""
    squeezenet_weights: Path | None = None
    """ImageNet SqueezeNet 1.0, for the perceptual distance."""
    records: Path = Path("runs/real_tokenizers")
    """Results of single clips, from which an interrupted call goes on."""
    results: Path = Path("eval/results/real_tokenizers.csv")
    """The table; JSON lies beside it."""


class RoundedSubject(TokenizerSubject):
    """A continuous tokenizer whose channels are rounded to `level_bits` bits, so that its clips have a size."""

    def __init__(self, tokenizer: Tokenizer, name: str, *, level_bits: int) -> None:
        super().__init__(tokenizer, name)
        self.level_bits = level_bits

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"level_bits": self.level_bits, "largest": LARGEST, "code": code_digest(SOURCE)}

    def pairs(self, clip: Clip, counts: Counts, usage: CodebookUsage | None) -> Iterator[Pair]:
        for start, chunk in whole(clip):
            latents = self.tokenizer.encode(chunk.to(self.device))
            step = 2 * LARGEST / (2**self.level_bits - 1)
            levels = ((latents.tokens.clamp(-LARGEST, LARGEST) + LARGEST) / step).round()
            decoded = self.tokenizer.decode(replace(latents, tokens=levels * step - LARGEST))
            counts.tokens += latents.tokens.shape[1]
            counts.values += latents.tokens.numel()
            counts.bits += self.level_bits * latents.tokens.numel()
            yield counted(counts, start, decoded.float().cpu(), chunk)


class BudgetSubject(Subject):
    """A baseline that gets a number of bits for each clip, by the clip's name."""

    device = torch.device("cpu")

    def __init__(self, name: str, budgets: dict[str, float]) -> None:
        self.name, self.budgets = name, budgets

    def identity(self) -> dict[str, Any]:
        return {"class": type(self).__name__, "budgets": self.budgets, "code": code_digest(SOURCE)}

    def check(self, clips: Sequence[Clip]) -> list[Exclusion]:
        missing = [clip.name for clip in clips if clip.name not in self.budgets]
        if missing:
            raise ValueError(f"{self.name} has no number of bits for {missing[0]}")
        return []


class X264Subject(BudgetSubject):
    """x264 at the greatest crf with at least as many bits; the best crf where none takes so many."""

    def pairs(self, clip: Clip, counts: Counts, usage: CodebookUsage | None) -> Iterator[Pair]:
        low, high = 0, CODECS["x264"].worst_crf
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.bits(clip, middle) >= self.budgets[clip.name] else (low, middle - 1)
        yield from CodecSubject("x264", low).pairs(clip, counts, usage)

    def bits(self, clip: Clip, crf: int) -> float:
        counts = Counts()
        for _ in CodecSubject("x264", crf).pairs(clip, counts, None):
            pass
        return counts.bits


class BicubicSubject(BudgetSubject):
    """8-bit RGB frames, as large as the bits allow; of every `stride` frames one, the others mixed from neighbours."""

    def __init__(self, name: str, budgets: dict[str, float], *, stride: int) -> None:
        super().__init__(name, budgets)
        self.stride = stride

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"stride": self.stride}

    def pairs(self, clip: Clip, counts: Counts, usage: CodebookUsage | None) -> Iterator[Pair]:
        for start, video in whole(clip):
            t, h, w = video.shape[2:]
            kept = sorted({*range(0, t, self.stride), t - 1})
            scale = min(1.0, math.sqrt(self.budgets[clip.name] / (SOURCE_BITS * len(kept) * h * w)))
            size = max(1, round(h * scale)), max(1, round(w * scale))
            frames = video[0, :, kept].transpose(0, 1)
            small = F.interpolate(frames, size, mode="bicubic", antialias=True)
            small = (small.clamp(-1, 1) * 127.5).round() / 127.5
            large = F.interpolate(small, (h, w), mode="bicubic").clamp(-1, 1)
            counts.bits += SOURCE_BITS * len(kept) * size[0] * size[1]
            yield counted(counts, start, between(large, kept)[None], video)


def between(frames: Tensor, places: Sequence[int]) -> Tensor:
    """`n 3 h w` at the frames `places` -> `3 t h w`, the frames between mixed from their two neighbours."""
    mixed = []
    for number, (left, right) in enumerate(pairwise(places)):
        for place in range(left, right):
            share = (place - left) / (right - left)
            mixed.append((1 - share) * frames[number] + share * frames[number + 1])
    return torch.stack([*mixed, frames[-1]], dim=1)


def whole(clip: Clip) -> Iterator[tuple[int, Tensor]]:
    """The clip in one piece `1 3 t h w` from frame 0."""
    yield 0, torch.cat(list(clip.chunks()), dim=1)[None]


def counted(counts: Counts, start: int, video: Tensor, reference: Tensor) -> Pair:
    counts.frames += video.shape[2]
    counts.pixels += video.shape[2] * video.shape[3] * video.shape[4]
    return Pair(start, video, reference)


def tokenizer_subjects(model: str, level_bits: Sequence[int]) -> list[TokenizerSubject]:
    """The subjects of a model by name or folder, one for each precision. ValueError for what is no tokenizer."""
    tokenizer = vidgen.load(model)
    if not isinstance(tokenizer, Tokenizer):
        raise ValueError(f"expected a video tokenizer, and {model!r} is a {type(tokenizer).__name__}")
    device, name = "cuda" if torch.cuda.is_available() else "cpu", model_label(model)
    tokenizer = tokenizer.eval().to(device)  # pyright: ignore[reportArgumentType]
    if tokenizer.spec.discrete:
        return [TokenizerSubject(tokenizer, name)]
    first, *others = level_bits
    return [
        RoundedSubject(tokenizer, name, level_bits=first),
        *(RoundedSubject(tokenizer, f"{name} at {bits} bits", level_bits=bits) for bits in others),
    ]


def table_row(result: SubjectResult, *, equal_to: str) -> dict[str, Any]:
    """What the table says of a subject."""
    row = {"subject": result.name, "bits_of": equal_to, "clips": len(result.records)}
    row |= {column: result.total.get(column) for column in COLUMNS}
    row |= {key: value for key, value in result.total.items() if key == "squeezenet.features"}
    extra = ("bits_per_pixel", "compression_ratio", "codebook.usage", "codebook.perplexity", "parameters")
    return row | {column: result.total.get(column) for column in extra}


def score(settings: Settings) -> list[dict[str, Any]]:
    """Rows of the table: each tokenizer, then its baselines; written as soon as they are there."""
    files = {path.name: path for path in find_videos(settings.clips)}
    clips = clips_for_protocol(files, PROTOCOL)
    distances = []
    if settings.squeezenet_weights is not None:
        distances.append(SqueezeNetDistance.from_file(settings.squeezenet_weights))
    rows: list[dict[str, Any]] = []
    identities: dict[str, Any] = {}
    subjects = [tokenizer_subjects(model, settings.level_bits) for model in settings.models]
    for plain, *_ in subjects:
        identities[plain.name] = plain.identity()
    for subject in chain.from_iterable(subjects):

        def scored(one: Subject, *, of: str = subject.name) -> SubjectResult:
            found = evaluate(
                [one], clips, protocol=PROTOCOL, distances=distances, records=settings.records / of
            ).subjects[0]
            rows.append(table_row(found, equal_to=of))
            write(settings, rows, clips, identities)
            return found

        own = scored(subject)
        budgets = {record["clip"]: record["counts"]["bits"] for record in own.records}
        scored(X264Subject("x264", budgets))
        scored(BicubicSubject("bicubic", budgets, stride=1))
        scored(BicubicSubject("bicubic, every 4th frame", budgets, stride=4))
    return rows


def write(settings: Settings, rows: list[dict[str, Any]], clips: ClipSet, identities: dict[str, Any]) -> None:
    write_csv(settings.results, rows)
    result = {"rows": rows, "clips": clips.to_json(), "protocol": PROTOCOL.to_json(), "tokenizers": identities}
    write_json(settings.results.with_suffix(".json"), {**result, "environment": environment_stamp()})


def main() -> int:
    """Score and print; 2 after a mistake that the user can mend."""
    try:
        settings = tyro.cli(Settings, description=__doc__)
        for row in score(settings):
            if row["subject"] in settings.models and row["subject"] in vidgen.builtin_names():
                said = f"PSNR {row['psnr.rgb.frame_mean.cap100']:.1f} dB on real clips of unseen sources"
                write_json(PRETRAINED / row["subject"] / "scores.json", {"summary": said})
            print(", ".join(f"{name} {value}" for name, value in row.items() if value is not None))
    except ValueError as error:
        print(f"eval/real_tokenizers.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
