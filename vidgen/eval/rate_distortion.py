"""Quality over rate: tokenizers beside video codecs on the same frames, and how much more rate one needs than another.

The points are subjects of a reconstruction evaluation, so their scores, intervals and records are those of
`recon_suite`; here they get their rates, are joined to curves and compared. Rates have names:

- ``packets``: bytes of a codec's packets, which include its headers and the key frame that every clip begins with;
- ``fixed-length``: ceil(log2 K) bits for each id out of K;
- ``order-0 entropy``: what each id costs when it is coded by its frequency over all clips scored here. The frequencies
  themselves are not counted, and with few clips for a large codebook the number is too small.

Neither the decoder of a codec nor that of a tokenizer is counted. Continuous latents have no rate until something
quantises them, and have no curve.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from vidgen.eval.bd_rate import bd_rate, rate_excess
from vidgen.eval.bootstrap import Estimate
from vidgen.eval.charts import Series, curve_chart, stacked
from vidgen.eval.metric import PairedMetric
from vidgen.eval.recon_report import CONVENTIONS, SCHEMA, ReconstructionReport, SubjectResult, rounded
from vidgen.eval.report import write_csv, write_json

PACKETS, FIXED, ENTROPY = "packets", "fixed-length", "order-0 entropy"
RATES = {
    PACKETS: "bytes of the packets, no container",
    FIXED: "ceil(log2 K) bits an id",
    ENTROPY: "by frequencies over these clips, without the table",
}
# Columns of the table behind the scores: key in `SubjectResult.total`, header. Codecs have no parameters.
COST_COLUMNS = {
    "encode_frames_per_second": "encode frames/s",
    "decode_frames_per_second": "decode frames/s",
    "parameters": "parameters",
    "peak_memory_megabytes": "memory MB",
}
MOST_UNDEFINED = 0.05  # share of resamples without a number from which there is no interval
PLOTTED = ("psnr.rgb.frame_mean.cap100", "msssim.rgb.gauss11", "ssim.rgb.gauss11.valid", "lpips.", "vmaf_v0.6.1")


@dataclass(frozen=True)
class Family:
    """Subjects, by name, whose points make one curve: a codec at several qualities, or tokenizers of one kind."""

    name: str
    members: tuple[str, ...]


class Curve(NamedTuple):
    """The points of a family under one way to count bits.

    Args:
        rates: bits per pixel, ``r k``: row 0 of all clips, the others of resampled clips; one column a member.
        qualities: score -> ``r k``, in its own units.
    """

    family: Family
    rate: str
    rates: np.ndarray
    qualities: dict[str, np.ndarray]

    @property
    def name(self) -> str:
        return self.family.name if self.rate == PACKETS else f"{self.family.name} ({self.rate})"


class Comparison(NamedTuple):
    """How much more rate a curve needs than the anchor at equal `score`, in percent; None with a reason.

    `kind` is "bd-rate" for curves and "rate-excess" for a single point, held against the anchor's curve.
    """

    curve: str
    anchor: str
    score: str
    kind: str
    percent: Estimate | None
    reason: str | None

    def to_json(self) -> dict[str, Any]:
        percent = None if self.percent is None else self.percent.to_json()
        return self._asdict() | {"percent": percent}


@dataclass(frozen=True)
class RateDistortionReport:
    """A reconstruction report whose subjects are points of curves.

    Args:
        anchor: the family that the others are compared with.
    """

    scored: ReconstructionReport
    families: Sequence[Family]
    anchor: str

    @cached_property
    def weights(self) -> np.ndarray:
        """``r clips``: every clip once, then how often each clip is drawn in each resample."""
        clips = len(self.scored.subjects[0].records)
        draws = self.scored.bootstrap.draws(clips) if clips > 1 else np.empty((0, clips))
        return np.concatenate([np.ones((1, clips)), draws])

    @cached_property
    def curves(self) -> list[Curve]:
        found = []
        for family in self.families:
            subjects = [self._subject(name) for name in family.members]
            for rate, bits_of in _countable(subjects).items():
                pixels = [_counted(subject, "pixels") for subject in subjects]
                rates = np.stack(
                    [self.weights @ bits_of(one) / (self.weights @ n) for one, n in zip(subjects, pixels)], 1
                )
                found.append(Curve(family, rate, rates, self._qualities(subjects)))
        return found

    @cached_property
    def comparisons(self) -> list[Comparison]:
        anchors = [curve for curve in self.curves if curve.family.name == self.anchor]
        if not anchors:
            return []
        others = [curve for curve in self.curves if curve.family.name != self.anchor]
        return [self._compared(curve, anchors[0], score) for curve in others for score in self.compared_scores]

    @property
    def compared_scores(self) -> list[str]:
        """Those that are better in one direction and that every curve has."""
        judged = [metric.key for metric in self.scored.subjects[0].metrics if metric.higher_is_better is not None]
        return [key for key in judged if all(key in curve.qualities for curve in self.curves)]

    def _subject(self, name: str) -> SubjectResult:
        return next(subject for subject in self.scored.subjects if subject.name == name)

    def _qualities(self, subjects: Sequence[SubjectResult]) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for metrics in zip(*(subject.metrics for subject in subjects)):
            columns = [self._scores(subject, metric) for subject, metric in zip(subjects, metrics)]
            known = [column for column in columns if column is not None]
            if len(known) == len(columns):
                found[metrics[0].key] = np.stack(known, axis=1)
        return found

    def _scores(self, subject: SubjectResult, metric: PairedMetric) -> np.ndarray | None:
        clips = subject.of_clips(metric)
        sums = {term: self.weights @ np.array([clip[term] for clip in clips]) for term in metric.terms}
        if not sums[metric.weight][0]:
            return None
        with np.errstate(divide="ignore", invalid="ignore"):  # a resample of clips that could not be scored is NaN
            return metric.scores(sums)[metric.key]

    def _compared(self, curve: Curve, anchor: Curve, score: str) -> Comparison:
        metric = next(metric for metric in self.scored.subjects[0].metrics if metric.key == score)
        sign = 1 if metric.higher_is_better else -1
        ours, theirs = sign * curve.qualities[score], sign * anchor.qualities[score]
        single = ours.shape[1] == 1
        kind = "rate-excess" if single else "bd-rate"
        if theirs.shape[1] < 2:
            reason = "the anchor is a single point"
            return Comparison(curve.name, anchor.name, score, kind, None, reason)
        if single:
            percent = rate_excess(curve.rates[:, 0], ours[:, 0], anchor.rates, theirs)
        else:
            percent = bd_rate(curve.rates, ours, anchor.rates, theirs)
        if np.isnan(percent[0]):
            reason = "the qualities do not meet, or a curve does not rise with its rate"
            return Comparison(curve.name, anchor.name, score, kind, None, reason)
        return Comparison(curve.name, anchor.name, score, kind, self._estimate(percent), None)

    def _estimate(self, values: np.ndarray) -> Estimate:
        samples = values[1:]
        if not len(samples) or np.isnan(samples).mean() > MOST_UNDEFINED:
            return Estimate(float(values[0]), None, None)
        return Estimate(float(values[0]), *self.scored.bootstrap.interval(samples))

    def points(self) -> list[dict[str, Any]]:
        """A row a point, in the order of the curves: rate with its interval, scores of all clips, and cost."""
        rows = []
        for curve in self.curves:
            for column, member in enumerate(curve.family.members):
                scores = {key: float(values[0, column]) for key, values in curve.qualities.items()}
                bits = self._estimate(curve.rates[:, column])
                row = {"curve": curve.name, "point": member, "rate": curve.rate, "bits_per_pixel": bits.value}
                row |= {"bits_per_pixel_low": bits.low, "bits_per_pixel_high": bits.high} | scores
                total = self._subject(member).total
                rows.append(row | {key: total.get(key) for key in COST_COLUMNS})
        return rows

    def to_json(self) -> dict[str, Any]:
        """The reconstruction result with curves and comparisons.

        The bits of tokens differ: `total` of a subject has log2 K of each id out of K, a point what its `rate` says.
        """
        return self.scored.to_json() | {
            "schema": SCHEMA,
            "kind": "rate-distortion",
            "anchor": self.anchor,
            "points": self.points(),
            "comparisons": [one.to_json() for one in self.comparisons],
            "conventions": CONVENTIONS | {f"points.{rate}": counted for rate, counted in RATES.items()},
        }

    def write(self, path: str | Path) -> tuple[Path, Path]:
        """Write ``path`` with the suffixes .json (everything) and .csv (a line a point)."""
        json_path, csv_path = Path(path).with_suffix(".json"), Path(path).with_suffix(".csv")
        write_json(json_path, self.to_json())
        write_csv(csv_path, self.points())
        return json_path, csv_path

    def tables(self) -> list[Table]:
        """The points with intervals, and the comparisons with the anchor."""
        keys = self.compared_scores
        shown = Table(title=f"{self.scored.protocol.name}, clips: {self.scored.inputs['clips']}")
        shown.add_column("point")
        for header in ("rate", "bits/pixel", *keys, *COST_COLUMNS.values()):
            shown.add_column(header, justify="left" if header == "rate" else "right")
        for curve in self.curves:
            for column, member in enumerate(curve.family.members):
                last = column == len(curve.family.members) - 1
                scores = [str(self._estimate(curve.qualities[key][:, column])) for key in keys]
                rate = str(self._estimate(curve.rates[:, column]))
                total = self._subject(member).total
                cost = [rounded(total.get(key)) for key in COST_COLUMNS]
                shown.add_row(member, curve.rate, rate, *scores, *cost, end_section=last)
        if not self.comparisons:
            return [shown]
        compared = Table(title=f"more rate than {self.anchor} at equal quality, %")
        compared.add_column("curve")
        for key in keys:
            compared.add_column(key, justify="right")
        for curve in dict.fromkeys(one.curve for one in self.comparisons):
            cells = [_percent(one) for one in self.comparisons if one.curve == curve]
            compared.add_row(curve, *cells)
        return [shown, compared]

    def notes(self) -> list[str]:
        """What belongs below the tables."""
        records = self.scored.subjects[0].records
        frames = [record["counts"]["frames"] for record in records]
        length = f"{min(frames)}" if min(frames) == max(frames) else f"{min(frames)} to {max(frames)}"
        notes = [
            f"clips of {length} frames: every clip of a codec begins with a key frame, whose cost falls with length",
            "; ".join(f"{rate}: {counted}" for rate, counted in RATES.items()) + "; no decoder is counted",
        ]
        bare = [one.name for one in self.scored.subjects if one.usage is None and "encoder" not in one.identity]
        if bare:
            notes.append(f"{', '.join(bare)}: no bits, since continuous latents have none until they are quantised")
        reasons = {f"{one.curve}: {one.reason}": None for one in self.comparisons if one.reason is not None}
        missing = {key: reason for one in self.scored.subjects for key, reason in one.missing.items()}
        notes += [*reasons, *(f"{key}: {reason}" for key, reason in missing.items())]
        return notes + [f"left out: {one['clip']}: {one['reason']}" for one in self.scored.inputs["excluded"]]

    def charts(self) -> list[str]:
        """An SVG a score that is plotted."""
        drawn = [key for key in self.compared_scores if key.startswith(PLOTTED)]
        colours = {family.name: number for number, family in enumerate(self.families)}
        charts = []
        for key in drawn:
            series = [
                Series(
                    curve.name,
                    [(float(x), float(y)) for x, y in zip(curve.rates[0], curve.qualities[key][0])],
                    dashed=curve.rate == ENTROPY,
                    colour=colours[curve.family.name],
                )
                for curve in self.curves
            ]
            charts.append(curve_chart(series, x_label="bits per pixel", y_label=key))
        return charts

    def plot(self, path: Path) -> None:
        """Write the charts as one SVG file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(stacked(self.charts()), encoding="utf-8")


def _countable(subjects: Sequence[SubjectResult]) -> dict[str, Callable[[SubjectResult], np.ndarray]]:
    """The ways to count bits that all subjects have: name -> bits of each clip."""
    if all("encoder" in subject.identity for subject in subjects):
        return {PACKETS: lambda subject: _counted(subject, "bits")}
    if all(subject.usage is not None for subject in subjects):
        return {FIXED: fixed_length_bits, ENTROPY: entropy_bits}
    return {}


def _counted(subject: SubjectResult, what: str) -> np.ndarray:
    return np.array([record["counts"][what] for record in subject.records], dtype=np.float64)


def fixed_length_bits(subject: SubjectResult) -> np.ndarray:
    """Of the ids of each clip, each in a whole number of bits."""
    usages = [subject.usage_of([record]) for record in subject.records]
    return np.array(
        [
            sum(one.counts[name].total * math.ceil(math.log2(size)) for name, size in one.sizes.items())
            for one in usages
        ],
        dtype=np.float64,
    )


def entropy_bits(subject: SubjectResult) -> np.ndarray:
    """Of the ids of each clip when each costs -log2 of its frequency over all clips, one table a codebook."""
    everything = subject.usage_of(subject.records)
    bits = np.zeros(len(subject.records))
    for number, record in enumerate(subject.records):
        for name, seen in subject.usage_of([record]).counts.items():
            whole = everything.counts[name]
            frequencies = whole.counts[np.searchsorted(whole.ids.numpy(), seen.ids.numpy())].double() / whole.total
            bits[number] -= float((seen.counts * frequencies.log2()).sum())
    return bits


def _percent(one: Comparison) -> str:
    if one.percent is None:
        return "–"
    if one.percent.low is None or one.percent.high is None:
        return f"{one.percent.value:+.1f}"
    return f"{one.percent.value:+.1f} [{one.percent.low:+.1f}, {one.percent.high:+.1f}]"
