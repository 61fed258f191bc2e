"""Scores folders of generated videos: prompts obeyed, likeness to the prompt, motion, diversity, Inception Score."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor

from vidgen.data import read_video, to_tensor
from vidgen.eval.bootstrap import Bootstrap, Estimate
from vidgen.eval.clip_records import ClipRecords
from vidgen.eval.clips import content_sha256
from vidgen.eval.inception_score import InceptionScore, SplitScore
from vidgen.eval.prompt_score import OfPrompt, PromptScore
from vidgen.eval.recon_report import rounded
from vidgen.eval.report import environment_stamp, record_stamp, write_csv, write_json
from vidgen.eval.samples import conditions_file, cost_file, samples_in

SCHEMA = "vidgen.eval/1"
SOURCES = ("vidgen/data", "vidgen/eval")  # the code that decides what a record holds
# Rows of the terminal table below the scores: key in `FolderResult.cost`, label.
COST_ROWS = {
    "parameters": "parameters",
    "seconds_per_video": "seconds/video",
    "peak_memory_megabytes": "peak memory MB",
}
_ARROWS = {True: " ↑", False: " ↓", None: ""}


@dataclass(frozen=True)
class FolderResult:
    """One folder: prompt -> key -> score, and the Inception Score where its network was given.

    Args:
        conditions: what has to be equal in folders that are compared: prompts, samples, sizes, sampling.
        weights: score -> digest of the network behind it.
        cost: what making the videos took, where that is known.
    """

    name: str
    videos: int
    of_prompts: dict[str, dict[str, OfPrompt]]
    scores: Sequence[PromptScore]
    inception: SplitScore | None
    bootstrap: Bootstrap
    conditions: dict[str, Any]
    weights: dict[str, str]
    cost: dict[str, Any]

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """Key -> mean over the prompts that have it, with its interval."""
        return {key: self.score_of[key].estimate(self.found(key), self.bootstrap) for key in self.score_of}

    @cached_property
    def score_of(self) -> dict[str, PromptScore]:
        keys: dict[str, PromptScore] = {}
        for scores in self.of_prompts.values():
            for key in scores:
                keys.setdefault(key, next(one for one in self.scores if key in one.keys))
        return keys

    def found(self, key: str) -> list[OfPrompt]:
        return [scores[key] for scores in self.of_prompts.values() if key in scores]

    def sums(self, key: str) -> list[dict[str, float]]:
        """Of each prompt, for differences that are paired by prompt; zeros where a prompt has no such score."""
        values = [scores.get(key) for scores in self.of_prompts.values()]
        return [{"total": 0.0 if one is None else one.value, "count": float(one is not None)} for one in values]

    @property
    def missing(self) -> list[str]:
        """Why some prompts have no score."""
        reasons = []
        for score in self.scores:
            without = sum(not (score.keys & scores.keys()) for scores in self.of_prompts.values())
            if without:
                reasons.append(f"{score.missing}: {without} of {len(self.of_prompts)} prompts have no such score")
        return reasons

    def to_json(self) -> dict[str, Any]:
        inception = None if self.inception is None else self.inception._asdict()
        scores = {
            key: one.to_json() | {"prompts": len(self.found(key)), "interval": self.score_of[key].interval}
            for key, one in self.estimates.items()
        }
        return {
            "name": self.name,
            "conditions": self.conditions,
            "cost": self.cost,
            "videos": self.videos,
            "prompts": len(self.of_prompts),
            "scores": scores,
            "sums": {key: self.sums(key) for key in scores},
            "higher_is_better": {key: score.higher_is_better for key, score in self.score_of.items()},
            InceptionScore.key: inception,
            "missing": self.missing,
            "of_prompts": self.rows(),
        }

    def rows(self) -> list[dict[str, Any]]:
        """One a prompt."""
        return [
            {"prompt": prompt} | {key: one.value for key, one in scores.items()}
            for prompt, scores in self.of_prompts.items()
        ]


@dataclass(frozen=True)
class GenerationReport:
    """Folders scored alike."""

    folders: Sequence[FolderResult]
    absent: dict[str, str]  # score -> why it was not asked for
    bootstrap: Bootstrap

    def conditions(self) -> dict[str, Any]:
        """Those of the folders; by name of the folder where they differ."""
        found: dict[str, Any] = {"kind": "generation"}
        for key in self.folders[0].conditions:
            of_folders = {folder.name: folder.conditions[key] for folder in self.folders}
            values = list(of_folders.values())
            found[key] = values[0] if all(value == values[0] for value in values) else of_folders
        return found

    def to_json(self) -> dict[str, Any]:
        conditions = self.conditions()
        return {
            "schema": SCHEMA,
            "kind": "generation",
            "protocol": {
                "id": "generation.v1",
                "version": 1,
                "sha256": hashlib.sha256(canonical(conditions)).hexdigest(),
                "conditions": conditions,
                "source": "vidgen: what decides which videos are compared",
            },
            "weights": {key: digest for folder in self.folders for key, digest in folder.weights.items()},
            "uncertainty": self.bootstrap.to_json() | {"unit": "prompt", "method": "as each score says"},
            "subjects": [folder.to_json() for folder in self.folders],
            "absent": self.absent,
            "environment": environment_stamp(),
        }

    def write(self, path: Path) -> tuple[Path, Path]:
        """Write ``path`` with the suffixes .json (everything) and .csv (a line a prompt)."""
        json_path, csv_path = path.with_suffix(".json"), path.with_suffix(".csv")
        write_json(json_path, self.to_json())
        write_csv(csv_path, [{"subject": one.name} | row for one in self.folders for row in one.rows()])
        return json_path, csv_path

    def table(self) -> Table:
        """A row a score, a column a folder."""
        table = Table(title="generated videos")
        table.add_column(f"{self.bootstrap.level:.0%} intervals over prompts")
        for folder in self.folders:
            table.add_column(folder.name, justify="right")
        directions = {key: one.higher_is_better for folder in self.folders for key, one in folder.score_of.items()}
        for key, is_better in directions.items():
            cells = [str(folder.estimates[key]) if key in folder.estimates else "–" for folder in self.folders]
            table.add_row(key + _ARROWS[is_better], *cells)
        if any(folder.inception for folder in self.folders):
            cells = [
                f"{one.mean:.4g} ± {one.deviation:.2g}" if (one := each.inception) else "–" for each in self.folders
            ]
            table.add_row(f"{InceptionScore.key} ↑", *cells)
        table.add_section()
        table.add_row("prompts", *(f"{len(folder.of_prompts):,}" for folder in self.folders))
        table.add_row("videos", *(f"{folder.videos:,}" for folder in self.folders))
        for key, label in COST_ROWS.items():
            cells = [rounded(folder.cost.get(key)) for folder in self.folders]
            if any(cell != "–" for cell in cells):
                table.add_row(label, *cells)
        return table

    def notes(self) -> list[str]:
        """Below the table: intervals of another kind than its heading says, and why numbers are missing."""
        scores = {key: score for folder in self.folders for key, score in folder.score_of.items()}
        notes = [f"{key}: {one.interval}" for key, one in scores.items() if one.interval != PromptScore.interval]
        notes += [f"{folder.name}: {reason}" for folder in self.folders for reason in folder.missing]
        return notes + [f"{key}: {reason}" for key, reason in self.absent.items()]


def score_folder(
    folder: Path,
    scores: Sequence[PromptScore],
    *,
    name: str,
    videos: Mapping[str, Sequence[Path]] | None = None,
    inception: InceptionScore | None = None,
    bootstrap: Bootstrap | None = None,
    records: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> FolderResult:
    """Score ``{prompt}-{index}`` videos, one prompt in memory at a time.

    Args:
        videos: prompt -> those of the folder that are scored; all of them by default.
        inception: a fresh one for each folder; it has to see every video again in each run.
        records: a folder for the scores of single prompts, from which an interrupted run goes on.
        say: told every 100 prompts.
    """
    weights = {key: digest for score in scores for key, digest in score.weights().items()}
    keys = sorted(key for score in scores for key in score.keys)
    kept, known = None, {}
    if records is not None:
        conditions = {"scores": keys, "weights": weights, "made_by": record_stamp("cpu", *SOURCES)}
        kept = ClipRecords(records, name, identity=conditions)
        known = kept.read()
        kept.open()
    found: dict[str, dict[str, Any]] = {}
    by_prompt = samples_in(folder) if videos is None else videos
    for prompt, paths in by_prompt.items():
        content = hashlib.sha256("\n".join(content_sha256(path) for path in paths).encode()).hexdigest()
        record = known.get((prompt, content))
        if record is None or inception is not None:
            clips = [to_tensor(read_video(path).frames) for path in paths]
            if inception is not None:
                for clip in clips:
                    inception.update(clip)
            if record is None:
                record = {"clip": prompt, "sha256": content} | _record(prompt, clips, scores)
                if kept is not None:
                    kept.append(record)
        found[prompt] = record
        if len(found) % 100 == 0:
            say(f"{name}: {len(found)} of {len(by_prompt)} prompts scored")
    of_prompts = {
        prompt: {key: OfPrompt(*score) for key, score in record["scores"].items()} for prompt, record in found.items()
    }
    if inception is not None:
        weights |= inception.weights()
    sampling = _read(conditions_file(folder))
    conditions = {
        "prompts": len(by_prompt),
        "prompts_sha256": hashlib.sha256(canonical(list(by_prompt))).hexdigest(),
        "samples": sorted({len(paths) for paths in by_prompt.values()}),
        "sizes": sorted({size for record in found.values() for size in record["sizes"]}),
        "sampling": {key: sampling[key] for key in ("seed", "fps", "settings") if key in sampling},
    }
    return FolderResult(
        name,
        sum(len(paths) for paths in by_prompt.values()),
        of_prompts,
        scores,
        None if inception is None else inception.compute(),
        bootstrap or Bootstrap(),
        conditions,
        weights,
        _read(cost_file(folder)),
    )


def _record(prompt: str, clips: Sequence[Tensor], scores: Sequence[PromptScore]) -> dict[str, Any]:
    """The scores of a prompt's ``3 t h w`` videos, and their sizes."""
    found = {key: list(one) for score in scores for key, one in score.of_prompt(prompt, clips).items()}
    return {"scores": found, "sizes": sorted({"x".join(map(str, clip.shape[1:])) for clip in clips})}


def _read(path: Path) -> dict[str, Any]:
    """What lies beside a folder whose videos were made here; nothing of others."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def canonical(value: Any) -> bytes:
    """JSON that is equal exactly when the values are."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
