"""Scores folders of generated videos: prompts obeyed, likeness to the prompt, motion, diversity, Inception Score."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.table import Table

from vidgen.data import read_video, to_tensor
from vidgen.eval.bootstrap import Bootstrap, Estimate
from vidgen.eval.inception_score import InceptionScore, SplitScore
from vidgen.eval.prompt_score import OfPrompt, PromptScore
from vidgen.eval.report import environment_stamp, write_csv, write_json
from vidgen.eval.samples import samples_in

SCHEMA = "vidgen.eval/1"
_ARROWS = {True: " ↑", False: " ↓", None: ""}


@dataclass(frozen=True)
class FolderResult:
    """One folder: prompt -> key -> score, and the Inception Score where its network was given."""

    name: str
    videos: int
    of_prompts: dict[str, dict[str, OfPrompt]]
    scores: Sequence[PromptScore]
    inception: SplitScore | None
    bootstrap: Bootstrap

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
        return {
            "name": self.name,
            "videos": self.videos,
            "prompts": len(self.of_prompts),
            "scores": {key: one.to_json() | {"prompts": len(self.found(key))} for key, one in self.estimates.items()},
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

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "kind": "generation",
            "uncertainty": self.bootstrap.to_json() | {"unit": "prompt", "method": "bootstrap over prompts"},
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
        return table

    def notes(self) -> list[str]:
        """Below the table: why numbers are missing."""
        notes = [f"{folder.name}: {reason}" for folder in self.folders for reason in folder.missing]
        return notes + [f"{key}: {reason}" for key, reason in self.absent.items()]


def score_folder(
    folder: Path,
    scores: Sequence[PromptScore],
    *,
    name: str,
    inception: InceptionScore | None = None,
    bootstrap: Bootstrap | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> FolderResult:
    """Score ``{prompt}-{index}`` videos, one prompt in memory at a time.

    Args:
        inception: a fresh one for each folder.
        say: told every 100 prompts.
    """
    of_prompts: dict[str, dict[str, OfPrompt]] = {}
    videos = 0
    by_prompt = samples_in(folder)
    for prompt, paths in by_prompt.items():
        clips = [to_tensor(read_video(path).frames) for path in paths]
        videos += len(clips)
        found: dict[str, OfPrompt] = {}
        for score in scores:
            found |= score.of_prompt(prompt, clips)
        of_prompts[prompt] = found
        if inception is not None:
            for clip in clips:
                inception.update(clip)
        if len(of_prompts) % 100 == 0:
            say(f"{name}: {len(of_prompts)} of {len(by_prompt)} prompts scored")
    split = None if inception is None else inception.compute()
    return FolderResult(name, videos, of_prompts, scores, split, bootstrap or Bootstrap())
