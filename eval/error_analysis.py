"""Where does a generator of the shapes world go wrong, and was it still learning? One call, one table.

    python eval/error_analysis.py runs/shapes-masked [--prompts 96] [-o errors.csv]

Subjects: `ceiling`, the ground-truth tokens through the tokenizer, which is what a perfect generator would reach; each
checkpoint that the run still has (`--keep` of the training), which makes the learning curve; and `model`, its last one.
Rows of each, by number of objects:
    attribute    shares right; `all_right` first of all
    size, colour, shape, motion, background    the same for the prompts with one word
    alone        among the videos that are not all right, those where this attribute is all that is wrong
    confusion    one object: "wanted > seen", of the prompts with the wanted word
Prompts are those of the selection split, so that what is learned here may choose settings. A checkpoint that the table
has already, by the same settings, is not scored again.
"""

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import vidgen
from vidgen.data import parse_caption
from vidgen.eval.detector import ATTRIBUTES
from vidgen.eval.interval import share
from vidgen.eval.obedience import SELECTION_SEED, evaluate_obedience
from vidgen.eval.oracle import Oracle
from vidgen.eval.report import environment_stamp, write_csv, write_json
from vidgen.training.checkpoint import CheckpointFolder

RESULTS = Path(__file__).resolve().parent / "results"
WORDS = ("size", "colour", "shape", "motion")
PARTS = ("count", "background", *WORDS)


def subjects(model: Path, *, curve: bool) -> Iterator[tuple[str, Any]]:
    """Names and pipelines, the cheapest first; `model` is a run folder, a saved pipeline or a built-in name."""
    run = model if (model / "model").is_dir() else model.parent
    pipeline: Any = vidgen.load(model / "model" if (model / "model").is_dir() else model)
    yield "ceiling", Oracle(pipeline.video_tokenizer)
    yield "model", pipeline
    checkpoints = CheckpointFolder(run / "checkpoints", keep=1)
    for step in checkpoints.steps() if curve else []:
        yield f"step {step}", with_averages(pipeline, checkpoints.load(step).averages)


def with_averages(pipeline: Any, averages: dict[str, Any]) -> Any:
    """The pipeline with the averaged weights of a checkpoint, whose names begin with the component's."""
    for part in ("transformer", "text_encoder"):
        weights = {name.removeprefix(f"{part}."): value for name, value in averages.items() if name.startswith(part)}
        foreign = getattr(pipeline, part).load_state_dict(weights, strict=False).unexpected_keys  # frozen ones are left
        if foreign:
            raise ValueError(
                f"the checkpoint holds {foreign[0]}, which {part} lacks; use --no-curve (adapters, control)"
            )
    return pipeline


def table(subject: str, result: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of one subject, from a result of `evaluate_obedience`."""
    rights = [one["right"] for one in result["prompts"]]
    scenes = [parse_caption(one["prompt"]) for one in result["prompts"]]
    groups: dict[tuple[str, str], list[bool]] = {}
    for name in ("all_right", *(name for name in ATTRIBUTES if name != "all_right")):
        groups["attribute", name] = [right[name] for right in rights]
    words: dict[tuple[str, str], list[bool]] = defaultdict(list)
    confusions: dict[tuple[str, str, str], int] = defaultdict(int)
    for scene, right, one in zip(scenes, rights, result["prompts"], strict=True):
        words["background", scene.background].append(right["background"])
        for name in WORDS:
            for word in {getattr(item, name) for item in scene.objects}:
                words[name, word].append(right[name])
        seen = one["seen"]["objects"]
        if len(scene.objects) == len(seen) == 1:
            for name in WORDS:
                confusions[name, getattr(scene.objects[0], name), seen[0][name]] += 1
        if len(scene.objects) == 1:
            confusions["background", scene.background, one["seen"]["background"]] += 1
    groups |= dict(sorted(words.items()))
    wrong = [[name for name in PARTS if not right[name]] for right in rights if not right["all_right"]]
    if wrong:
        groups |= {("alone", name): [names == [name] for names in wrong] for name in PARTS}
    for (name, wanted, seen_word), count in sorted(confusions.items(), key=lambda pair: -pair[1]):
        if wanted != seen_word:
            asked = len(words[name, wanted])
            groups["confusion", f"{wanted} > {seen_word}"] = [True] * count + [False] * (asked - count)
    about = {"subject": subject, "objects": result["objects"]}
    return [
        {**about, "group": group, "word": word, "videos": len(values), **share(values)}
        for (group, word), values in groups.items()
    ]


def earlier_rows(place: Path, settings: str) -> list[dict[str, Any]]:
    """The rows of a table that was made with these settings before."""
    described = place.with_suffix(".json")
    if not place.is_file() or not described.is_file() or json.loads(described.read_text())["settings"] != settings:
        return []
    with place.open() as file:
        return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="run folder, saved pipeline or built-in name")
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--objects", type=int, nargs="*", choices=(1, 2), default=(1, 2))
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--no-curve", action="store_true", help="leave the checkpoints out")
    parser.add_argument("--guidance-scale", type=float, help="in place of the model's own")
    parser.add_argument("--steps", type=int, help="decoding steps in place of the model's own")
    parser.add_argument("--candidates", type=int, default=1, help="videos to choose each one from")
    parser.add_argument("-o", "--output", type=Path, help="CSV; by default error_analysis.csv in the model's folder")
    arguments = parser.parse_args()
    place = arguments.output or RESULTS / f"error_analysis_{arguments.model.name}.csv"
    if arguments.output is None and arguments.model.is_dir():
        place = arguments.model / "error_analysis.csv"
    call = {
        "num_candidates": arguments.candidates,
        "guidance_scale": arguments.guidance_scale,
        "num_inference_steps": arguments.steps,
    }
    call = {name: value for name, value in call.items() if value is not None}
    settings = f"{arguments.prompts} prompts, {call}"
    rows = earlier_rows(place, settings)
    done = {(row["subject"], int(row["objects"])) for row in rows if row["subject"] != "model"}
    rows = [row for row in rows if row["subject"] != "model"]  # the last weights change while a run goes on
    for subject, pipeline in subjects(arguments.model, curve=not arguments.no_curve):
        for objects in arguments.objects:
            if (subject, objects) in done:
                continue
            result = evaluate_obedience(
                pipeline,
                num_prompts=arguments.prompts,
                seed=SELECTION_SEED,
                objects=objects,
                batch_size=arguments.batch_size,
                split="selection",
                **({} if subject == "ceiling" else call),
            )
            rows += table(subject, result)
            write_csv(place, rows)
            write_json(
                place.with_suffix(".json"),
                {"schema": "vidgen.error_analysis/1", "settings": settings, "environment": environment_stamp()},
            )
            shares = {name: round(value["share"], 3) for name, value in result["attributes"].items()}
            print(subject, objects, shares, flush=True)
    print(place)


if __name__ == "__main__":
    main()
