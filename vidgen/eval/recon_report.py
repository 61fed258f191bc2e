"""What a reconstruction evaluation found, with intervals, differences and cost: table, JSON (`vidgen.eval/1`), CSV."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from vidgen.eval.bootstrap import Bootstrap, Estimate, differences, estimates
from vidgen.eval.codebook import CodebookUsage
from vidgen.eval.metric import PairedMetric
from vidgen.eval.protocol import ReconstructionProtocol
from vidgen.eval.psnr import BadFrame, PhaseMean, WorstFrames
from vidgen.eval.report import write_csv, write_json
from vidgen.eval.subjects import Counts

SCHEMA = "vidgen.eval/1"
SOURCE_BITS_PER_PIXEL = 24  # 8-bit RGB: what the compression ratio is measured against

CONVENTIONS = {
    "psnr": "dB; colours, pooling over frames or samples, what no error counts as; 8-bit levels but for .float, .floor",
    "ssim": "window, where it fits; mean over channels and frames; msssim: five scales",
    "lpips": "LPIPS v0.1 of the lpips package, mean over frames, no rounding to 8 bits",
    "squeezenet.features": "unit-normalised SqueezeNet 1.0 features, equal layer weights; not LPIPS",
    "tdiff_psnr": "PSNR of the differences of neighbouring frames, peak 255",
    "flicker": "levels of 255: change from frame to frame on pixels that stand still in the original, minus its own",
    "warping_error": "levels of 255: change along the original's motion; .original: of the original; .coverage: share",
    "tokens": "tokens of the clip (valid prefix where the tokenizer is variable-rate)",
    "bits": "log2 of the codebook size of each id, no entropy coding; of codecs: of their packets",
    "bits_per_pixel": "bits over frames x height x width",
    "compression_ratio": "24-bit RGB over bits",
    "values_ratio": "RGB values of the clip over values of its tokens",
    "codebook.usage": "share of codes seen at least once in these clips, mean over codebooks",
    "gflop_per_frame": "multiply and add count as two; on the first chunk of the first clip",
    "encode_frames_per_second": "batch 1, wall clock inside the tokenizer only, after a warm-up",
    "peak_memory_megabytes": "CUDA: tensors; CPU: resident set of the process; since this subject's first clip",
}
# Rows of the terminal table below the scores: key, label.
COST_ROWS = {
    "parameters": "parameters",
    "encode_gflop_per_frame": "encode GFLOP/frame",
    "decode_gflop_per_frame": "decode GFLOP/frame",
    "encode_frames_per_second": "encode frames/s",
    "decode_frames_per_second": "decode frames/s",
    "peak_memory_megabytes": "peak memory MB",
    "tokens": "tokens",
    "values_ratio": "values ratio",
    "bits_per_pixel": "bits/pixel",
    "compression_ratio": "compression ratio",
    "codebook.usage": "codes used",
    "codebook.perplexity": "perplexity",
}


@dataclass(frozen=True)
class SubjectResult:
    """One subject's records in the order of the clips, and what follows from them.

    Args:
        metrics: what can read the sums in the records; never updated.
        missing: column -> why it has no number.
        usage: an empty one for discrete tokenizers.
    """

    name: str
    identity: dict[str, Any]
    records: list[dict[str, Any]]
    metrics: list[PairedMetric]
    missing: dict[str, str]
    cost: dict[str, Any]
    usage: CodebookUsage | None

    def of_clips(self, metric: PairedMetric) -> list[dict[str, float]]:
        """The sums of each clip."""
        return [{term: sum(parts) for term, parts in record["sums"][metric.key].items()} for record in self.records]

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """One a clip."""
        return [self._row(record["clip"], [record]) for record in self.records]

    @cached_property
    def total(self) -> dict[str, Any]:
        """Over all clips."""
        return self._row("total", self.records) | self.cost

    def estimates(self, settings: Bootstrap) -> dict[str, Estimate]:
        """Every score of the total with its interval."""
        found: dict[str, Estimate] = {}
        for metric in self.metrics:
            found |= estimates(metric, self.of_clips(metric), settings)
        return found

    @cached_property
    def phases(self) -> dict[str, float | None]:
        merged = None
        for record in self.records:
            of_clip = PhaseMean.from_json(record["phases"])
            if merged is None:
                merged = of_clip
            else:
                merged.merge(of_clip)
        return merged.compute() if merged is not None else {}

    @cached_property
    def worst(self) -> list[BadFrame]:
        merged = WorstFrames()
        for record in self.records:
            of_clip = WorstFrames()
            of_clip.frames = [BadFrame(*frame) for frame in record["worst"]]
            merged.merge(of_clip)
        return merged.frames

    def usage_of(self, records: Sequence[dict[str, Any]]) -> CodebookUsage:
        """Over some of the records; of discrete tokenizers only."""
        assert self.usage is not None
        merged = self.usage.empty()
        for record in records:
            of_clip = self.usage.empty()
            of_clip.load_state_dict({key: torch.tensor(v, dtype=torch.int64) for key, v in record["usage"].items()})
            merged.merge(of_clip)
        return merged

    def _row(self, name: str, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
        row: dict[str, Any] = {"clip": name}
        counts = Counts()
        for record in records:
            counts.add(Counts(**record["counts"]))
        row |= {"frames": counts.frames}
        for metric in self.metrics:
            merged = metric.empty()
            for record in records:
                merged.merge(_restored(metric, record))
            row |= merged.compute() if merged.has_seen else {metric.key: None}
        row |= _rates(counts)
        if self.usage is not None:
            row |= self.usage_of(records).compute()
        row["peak_memory_megabytes"] = max(record["peak_memory_megabytes"] for record in records)
        return row | {column: None for column in self.missing if column not in row}


def _restored(metric: PairedMetric, record: dict[str, Any]) -> PairedMetric:
    of_clip = metric.empty()
    sums = record["sums"][metric.key]
    of_clip.load_state_dict({term: torch.tensor(parts, dtype=torch.float64) for term, parts in sums.items()})
    return of_clip


def _rates(counts: Counts) -> dict[str, Any]:
    rates: dict[str, Any] = {}
    if counts.tokens:
        rates |= {"tokens": counts.tokens, "values_ratio": 3 * counts.pixels / counts.values}
    if counts.bits:
        rates |= {
            "bits": counts.bits,
            "bits_per_pixel": counts.bits / counts.pixels,
            "compression_ratio": SOURCE_BITS_PER_PIXEL * counts.pixels / counts.bits,
        }
    if counts.encode_seconds and counts.decode_seconds:
        rates |= {
            "encode_frames_per_second": counts.frames / counts.encode_seconds,
            "decode_frames_per_second": counts.frames / counts.decode_seconds,
        }
    return rates


@dataclass(frozen=True)
class ReconstructionReport:
    """Subjects scored on the same clips under one protocol.

    Args:
        weights: perceptual score -> digest of its network.
    """

    protocol: ReconstructionProtocol
    inputs: dict[str, Any]
    subjects: list[SubjectResult]
    bootstrap: Bootstrap
    environment: dict[str, Any]
    weights: dict[str, str] = field(default_factory=dict)

    @cached_property
    def estimates(self) -> list[dict[str, Estimate]]:
        """Of each subject: score -> value and interval."""
        return [subject.estimates(self.bootstrap) for subject in self.subjects]

    @cached_property
    def differences(self) -> list[dict[str, Estimate]]:
        """Of each subject after the first: score -> its value minus the first's, paired by clip."""
        first = self.subjects[0]
        found = []
        for subject in self.subjects[1:]:
            of_subject: dict[str, Estimate] = {}
            for ours, theirs in zip(subject.metrics, first.metrics, strict=True):
                of_subject |= differences(ours, subject.of_clips(ours), first.of_clips(theirs), self.bootstrap)
            found.append(of_subject)
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "kind": "reconstruction",
            "protocol": self.protocol.to_json(),
            "inputs": self.inputs,
            "weights": self.weights,
            "uncertainty": self.bootstrap.to_json(),
            "subjects": [
                {
                    "name": subject.name,
                    "identity": subject.identity,
                    "scores": {key: one.to_json() for key, one in of_subject.items()},
                    "higher_is_better": {metric.key: metric.higher_is_better for metric in subject.metrics},
                    "total": subject.total,
                    "psnr_by_phase": subject.phases,
                    "worst_frames": [frame._asdict() for frame in subject.worst],
                    "missing": subject.missing,
                    "clips": subject.rows,
                    "sums": {metric.key: subject.of_clips(metric) for metric in subject.metrics},
                }
                for subject, of_subject in zip(self.subjects, self.estimates, strict=True)
            ],
            "differences": [
                {
                    "of": subject.name,
                    "minus": self.subjects[0].name,
                    "scores": {key: one.to_json() for key, one in found.items()},
                }
                for subject, found in zip(self.subjects[1:], self.differences, strict=True)
            ],
            "conventions": CONVENTIONS,
            "environment": self.environment,
        }

    def write(self, path: str | Path) -> tuple[Path, Path]:
        """Write ``path`` with the suffixes .json (everything) and .csv (a line a subject and clip, and the totals)."""
        json_path, csv_path = Path(path).with_suffix(".json"), Path(path).with_suffix(".csv")
        write_json(json_path, self.to_json())
        rows = [{"subject": one.name} | row for one in self.subjects for row in [*one.rows, one.total]]
        write_csv(csv_path, rows)
        return json_path, csv_path

    def table(self) -> Table:
        """For the terminal: a row a score, a column a subject, value and interval; the cost below."""
        keys = list(dict.fromkeys(key for found in self.estimates for key in found))
        table = Table(title=f"{self.protocol.name}, clips: {self.inputs['clips']}")
        table.add_column(f"{self.bootstrap.level:.0%} intervals over clips", overflow="fold")
        for subject in self.subjects:
            table.add_column(subject.name, justify="right")
        for subject in self.subjects[1:]:
            table.add_column(f"{subject.name} − {self.subjects[0].name}", justify="right")
        arrows = {metric.key: _ARROWS[metric.higher_is_better] for metric in self.subjects[0].metrics}
        for key in keys:
            cells = [str(found[key]) if key in found else "–" for found in [*self.estimates, *self.differences]]
            table.add_row(f"{key} {arrows.get(key, '')}".strip(), *cells, end_section=key == keys[-1])
        for column, label in COST_ROWS.items():
            cells = [rounded(subject.total.get(column)) for subject in self.subjects]
            if any(cell != "–" for cell in cells):
                table.add_row(label, *cells)
        return table

    def notes(self) -> list[str]:
        """What belongs below the table: seams, worst frames, and the reason for every score that is missing."""
        notes = []
        for subject in self.subjects:
            phases = [f"{phase} {value:.2f}" for phase, value in subject.phases.items() if value is not None]
            if len(phases) > 2:
                notes.append(f"{subject.name}: PSNR by place in a temporal block: {', '.join(phases)} dB")
            if subject.worst:
                worst = ", ".join(f"{frame.clip} #{frame.frame} {frame.score:.2f}" for frame in subject.worst[:3])
                notes.append(f"{subject.name}: worst frames: {worst} dB")
        reasons = {key: reason for subject in self.subjects for key, reason in subject.missing.items()}
        notes += [f"{key}: {reason}" for key, reason in reasons.items()]
        notes += [f"left out: {one['clip']}: {one['reason']}" for one in self.inputs["excluded"]]
        lossy = [subject.name for subject in self.subjects if subject.identity.get("decoded_lossy")]
        notes += [f"{name}: read from lossy video, which caps what can be scored" for name in lossy]
        if self.inputs["clips"] < 2:
            notes.append("no intervals: they need at least two clips")
        return notes


_ARROWS = {True: "↑", False: "↓", None: ""}


def rounded(value: Any) -> str:
    """A cell of a table: four digits of a float, all of an integer, a dash for None."""
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
