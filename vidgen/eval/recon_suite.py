"""Scores subjects on clips under a protocol: one record a clip, sums over all clips, kept on disk and shared by ranks.

Clips of any length are streamed through tokenizers that stream, so memory does not grow with them; streamed and
one-shot results of such tokenizers are the same. Frames go from the decoder to the scores: no lossy file between.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from vidgen.eval.bootstrap import Bootstrap
from vidgen.eval.clip_records import ClipRecords
from vidgen.eval.clips import Clip, ClipSet, Exclusion, cannot_be_scored, clips_from_dataset, clips_from_files
from vidgen.eval.codebook import CodebookUsage
from vidgen.eval.metric import PairedFrameMean, PairedMetric
from vidgen.eval.perceptual import FrameDistance
from vidgen.eval.pixels import MISTAKEN_RANGE, check_range
from vidgen.eval.protocol import ReconstructionProtocol
from vidgen.eval.protocols import get_protocol
from vidgen.eval.psnr import PhaseMean, WorstFrames
from vidgen.eval.ranks import gathered, of_this_process
from vidgen.eval.recon_report import ReconstructionReport, SubjectResult
from vidgen.eval.reconstruction import scores_for
from vidgen.eval.report import environment_stamp, peak_memory_megabytes, record_stamp, reset_peak_memory
from vidgen.eval.subjects import Counts, Subject, TokenizerSubject
from vidgen.nn.fingerprint import weights_sha256
from vidgen.tokenizers.base import Tokenizer

# The code that decides what a record holds.
SOURCES = (
    "vidgen/latents.py",
    *(f"vidgen/{part}" for part in ("kernels", "nn", "bottlenecks", "schedulers", "tokenizers", "data", "eval")),
)

__all__ = ["Clip", "clips_from_dataset", "clips_from_files", "evaluate", "evaluate_reconstruction"]


def evaluate_reconstruction(
    tokenizer: Tokenizer,
    clips: Sequence[Clip],
    *,
    name: str,
    protocol: str = "recon.v1",
    distances: Sequence[FrameDistance] = (),
) -> ReconstructionReport:
    """Encode and decode every clip and score what comes back: `evaluate` for one tokenizer and clips of any kind."""
    preset = get_protocol(protocol, ReconstructionProtocol)
    return evaluate([TokenizerSubject(tokenizer, name)], ClipSet(list(clips)), protocol=preset, distances=distances)


def evaluate(
    subjects: Sequence[Subject],
    clips: ClipSet,
    *,
    protocol: ReconstructionProtocol,
    distances: Sequence[FrameDistance] = (),
    bootstrap: Bootstrap | None = None,
    records: Path | None = None,
    on_clip: Callable[[str, str], None] | None = None,
    allow_missing: bool = False,
) -> ReconstructionReport:
    """Score the reconstructions of every subject on every clip.

    Under `accelerate launch` the clips are shared between the processes, and every process gets the whole report.

    Args:
        distances: perceptual distances that have their weights (`SqueezeNetDistance`, `LpipsDistance`).
        bootstrap: how intervals are made.
        records: a folder for the results of single clips, from which an interrupted run goes on.
        on_clip: called with the names of the subject and of each clip that is about to be scored.
        allow_missing: leave out, for all subjects alike, the clips that one of them has no reconstruction of that can
            be scored (a folder's is absent, damaged or of other length, size or rate; frames hold NaN), and record why.

    Raises:
        ValueError: no clips, a clip without frames or with one name twice, a tokenizer that changes the number or size
            of the frames; clips as above without `allow_missing`. NaN shows only while scoring: all other clips are
            scored (and their records kept) before that error.
    """
    if not clips.clips:
        raise ValueError("expected at least one clip to reconstruct, got none")
    names = [clip.name for clip in clips.clips]
    if len(set(names)) < len(names):
        raise ValueError(f"every clip needs a name of its own; {len(names) - len(set(names))} names came before")
    if len({subject.name for subject in subjects}) < len(subjects):
        raise ValueError(f"every subject needs a name of its own, got {', '.join(one.name for one in subjects)}")
    before = clips
    for subject in subjects:
        clips = _left(before, clips, subject.check(clips.clips), allow_missing=allow_missing)
    scorer = Scorer(protocol, distances)
    results = []
    for subject in subjects:
        result, unscorable = scorer.score(subject, clips.clips, records=records, on_clip=on_clip)
        clips = _left(before, clips, unscorable, allow_missing=allow_missing)
        results.append(result)
    kept = {clip.name for clip in clips.clips}
    results = [
        replace(result, records=[record for record in result.records if record["clip"] in kept]) for result in results
    ]
    return ReconstructionReport(
        protocol,
        clips.to_json(),
        results,
        bootstrap or Bootstrap(),
        environment_stamp(subjects[0].device),
        weights=scorer.weights,
    )


def _left(before: ClipSet, clips: ClipSet, excluded: Sequence[Exclusion], *, allow_missing: bool) -> ClipSet:
    """``clips`` less some more of those that there were ``before``; ValueError unless that is allowed, or for none."""
    if not excluded:
        return clips
    if not allow_missing:
        raise ValueError(cannot_be_scored(excluded, len(before.clips)))
    gone = {one.clip for one in excluded}
    left = [clip for clip in clips.clips if clip.name not in gone]
    if not left:
        raise ValueError(f"no clip is left to score: {excluded[0].clip}: {excluded[0].reason}")
    origin = dict(clips.origin)
    if all(clip.frames is not None for clip in left) and "frames" in origin:
        origin["frames"] = sum(clip.frames or 0 for clip in left)
    return ClipSet(left, [*clips.excluded, *excluded], origin)


class Unscorable(ValueError):
    """A reconstruction whose pixels are no pixels."""


@dataclass
class Scorer:
    """Scores one clip after the other under a protocol."""

    protocol: ReconstructionProtocol
    distances: Sequence[FrameDistance]

    def score(
        self,
        subject: Subject,
        clips: Sequence[Clip],
        *,
        records: Path | None,
        on_clip: Callable[[str, str], None] | None,
    ) -> tuple[SubjectResult, list[Exclusion]]:
        """The records of all clips and what follows from them, and the clips that it could not score."""
        for distance in self.distances:
            distance.to(subject.device)
        metrics, missing = scores_for(self.protocol, self.distances)
        identity = subject.identity()
        known: dict[tuple[str, str], dict[str, Any]] = {}
        kept = None
        if records is not None:
            conditions = {
                "subject": identity,
                "protocol": self.protocol.sha256,
                "metrics": [metric.key for metric in metrics],
                "distances": self.weights,
                "made_by": record_stamp(subject.device, *SOURCES),
            }
            kept = ClipRecords(records, subject.name, identity=conditions)
            known = kept.read()
            kept.open()
        cost = subject.cost(clips[0])
        reset_peak_memory(subject.device)
        done, unscorable = [], []
        for clip in of_this_process(clips):
            record = known.get((clip.name, clip.sha256))
            if record is None:
                if on_clip is not None:
                    on_clip(subject.name, clip.name)
                try:
                    record = self.record(subject, clip, metrics)
                except Unscorable as error:
                    unscorable.append(Exclusion(clip.name, str(error)))
                    continue
                if kept is not None and clip.sha256:  # what has no known content cannot be recognised later
                    kept.append(record)
            done.append(record)
        of_clip = {record["clip"]: record for record in gathered(done)}
        ordered = [of_clip[clip.name] for clip in clips if clip.name in of_clip]
        for record in ordered:
            for key, reason in record["missing"].items():
                missing.setdefault(key, reason)
        result = SubjectResult(subject.name, identity, ordered, metrics, missing, cost, subject.new_usage())
        return result, gathered(unscorable)

    @cached_property
    def weights(self) -> dict[str, str]:
        """The digest of each distance's network."""
        return {distance.key: weights_sha256(distance) for distance in self.distances}

    @torch.no_grad()
    def record(self, subject: Subject, clip: Clip, metrics: Sequence[PairedMetric]) -> dict[str, Any]:
        """Score one clip; everything in the record adds up over clips or is about this clip alone."""
        counts, usage = Counts(), subject.new_usage()
        fresh = [metric.empty() for metric in metrics]
        phases, worst = PhaseMean(subject.phase_period), WorstFrames()
        missing: dict[str, str] = {}
        height = width = 0
        for start, video, reference in subject.pairs(clip, counts, usage):
            height, width = video.shape[-2:]
            try:
                check_range(video, limit=MISTAKEN_RANGE, name=f"what {subject.name} made of it")
            except ValueError as error:
                raise Unscorable(str(error)) from None
            for metric in fresh:
                if metric.smallest_side > min(height, width):
                    side = metric.smallest_side
                    missing[metric.key] = f"left out for clips with a side below {side} pixels, such as {clip.name}"
                elif isinstance(metric, PairedFrameMean) and metric.key == self.lead:
                    scores = metric.frame_scores(video, reference)
                    metric.count(scores)
                    phases.update(scores, start=start)
                    worst.update(scores[0], clip=clip.name, start=start)
                else:
                    metric.update(video, reference, start=start)
        if counts.frames == 0:
            raise ValueError(f"clip {clip.name} has no frames")
        for metric in fresh:
            if not metric.has_seen and metric.key not in missing:
                missing[metric.key] = f"nothing to score in some clips (one frame, or all moving), such as {clip.name}"
        return {
            "clip": clip.name,
            "sha256": clip.sha256,
            "height": height,
            "width": width,
            "counts": asdict(counts),
            "peak_memory_megabytes": peak_memory_megabytes(subject.device),
            "sums": {metric.key: _listed(metric) for metric in fresh},
            "usage": None if usage is None else _listed(usage),
            "phases": phases.to_json(),
            "worst": [list(frame) for frame in worst.frames],
            "missing": missing,
        }

    @property
    def lead(self) -> str | None:
        """The first score of the protocol that is a PSNR of frames: it ranks frames and shows seams."""
        keys = [key for key in self.protocol.metrics if key.startswith("psnr.") and ".frame_mean." in key]
        return keys[0] if keys else None


def _listed(metric: PairedMetric | CodebookUsage) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in metric.state_dict().items()}
