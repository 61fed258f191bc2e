"""Puts two results side by side if their conditions are equal, and names the condition if they are not."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from vidgen.eval.bootstrap import Bootstrap, Estimate, differences
from vidgen.eval.metric import MeanOfSums, PairedMetric
from vidgen.eval.protocol import differing_conditions
from vidgen.eval.reconstruction import METRICS

SCHEMA = "vidgen.eval/1"
SPLIT_SCORE = "inception_score.frames"  # has parts of the frames, and no interval over prompts


@dataclass(frozen=True)
class Scored:
    """One column of a result: a model's scores, and the sums that paired differences are made of."""

    name: str
    scores: dict[str, Estimate]
    sums: dict[str, list[dict[str, float]]]  # one a clip; of generated videos one a prompt


def read_result(path: str | Path) -> dict[str, Any]:
    """A result in the schema `vidgen.eval/1`; ValueError for anything else."""
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"expected a result of `vidgen eval`, {path} is no JSON ({error})") from None
    schema = result.get("schema") if isinstance(result, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"expected a result with the schema {SCHEMA}, {path} has {schema}; evaluate again")
    if "protocol" not in result:
        raise ValueError(f"{path} does not say under which conditions it was made; evaluate again")
    return result


def why_incomparable(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """The conditions in which two results differ; empty when their numbers can stand side by side."""
    if first["protocol"]["sha256"] != second["protocol"]["sha256"]:
        conditions = differing_conditions(first["protocol"]["conditions"], second["protocol"]["conditions"])
        return [f"protocol {difference}" for difference in conditions]
    return differing_conditions(_beside_protocol(first), _beside_protocol(second)) + _unlike_weights(first, second)


def compare(first: dict[str, Any], second: dict[str, Any], *, settings: Bootstrap) -> Table:
    """A row a score: every model of both results, and each of the second minus the first of the first.

    Raises:
        ValueError: other protocols or other clips, with the conditions that differ.
    """
    reasons = why_incomparable(first, second)
    if reasons:
        raise ValueError(f"these results are not comparable: {'; '.join(reasons)}")
    ours, theirs = columns_of(first), columns_of(second)
    table = Table(title=f"{first['protocol']['id']} {first['protocol']['sha256'][:12]}")
    table.add_column("score")
    for column in [*ours, *theirs]:
        table.add_column(column.name, justify="right")
    for column in theirs:
        table.add_column(f"{column.name} − {ours[0].name}", justify="right")
    changes = [paired_differences(column, ours[0], settings) for column in theirs]
    for key in dict.fromkeys(key for column in [*ours, *theirs] for key in column.scores):
        found = [*(column.scores.get(key) for column in [*ours, *theirs]), *(change.get(key) for change in changes)]
        table.add_row(key, *("–" if one is None else str(one) for one in found))
    return table


def columns_of(result: dict[str, Any]) -> list[Scored]:
    """The models of a result; a distance between two sets of videos is one column."""
    if "subjects" not in result:
        name = Path(str(result["inputs"].get("fake", {}).get("root", result["metric"]))).name
        return [Scored(name, {one["metric"]: _estimate(one) for one in result.get("results", [result])}, {})]
    return [
        Scored(
            subject["name"],
            {key: Estimate(score["value"], score["low"], score["high"]) for key, score in subject["scores"].items()}
            | {key: Estimate(split["mean"], None, None) for key in (SPLIT_SCORE,) if (split := subject.get(key))},
            subject["sums"],
        )
        for subject in result["subjects"]
    ]


def _estimate(one: dict[str, Any]) -> Estimate:
    low, high = (one.get("uncertainty") or {}).get("ci95") or (None, None)
    return Estimate(one["value"], low, high)


def paired_differences(ours: Scored, theirs: Scored, settings: Bootstrap) -> dict[str, Estimate]:
    """`ours` minus `theirs` by score; without an interval where a result holds no sums of clips."""
    found = {
        key: Estimate(score.value - theirs.scores[key].value, None, None)
        for key, score in ours.scores.items()
        if key in theirs.scores
    }
    for key, clips in ours.sums.items():
        if key in theirs.sums:
            found |= differences(_reader(key, clips[0]), clips, theirs.sums[key], settings)
    return found


def _reader(key: str, sums: dict[str, float]) -> PairedMetric:
    """What reads the sums that stand under `key`: the metric itself, or any mean."""
    known = METRICS.get(key)
    return known.empty() if known is not None and set(known.terms) == set(sums) else MeanOfSums(key, tuple(sums))


def _beside_protocol(result: dict[str, Any]) -> dict[str, Any]:
    """What moves numbers and is in no protocol: which clips; of distances the network, the fake videos, the draws."""
    inputs = result.get("inputs", {})
    if "real" not in inputs:
        return {"inputs": {name: inputs[name] for name in ("clips", "manifest_sha256") if name in inputs}}
    numbers = ("n_videos", "n_rows", "seed")
    return {
        "inputs": {
            "real": {name: inputs["real"].get(name) for name in (*numbers, "manifest_sha256")},
            "fake": {name: inputs["fake"].get(name) for name in numbers},
        },
        "extractor": result["extractor"],
        "uncertainty": {"seed": result["uncertainty"]["seed"]},
    }


def _unlike_weights(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Of the scores that both results have, those whose networks had other weights."""
    ours, theirs = first.get("weights", {}), second.get("weights", {})
    both = [key for key in ours if key in theirs]
    return differing_conditions({key: ours[key] for key in both}, {key: theirs[key] for key in both}, "weights")
