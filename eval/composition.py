"""Do generators compose? `python eval/composition.py MODEL … [--ceilings TOKENIZER …]`.

Models that were trained with `--hold-out` are asked for the 20 pairs of colour and shape that they never saw, and for
the 12 that they did; one object and two, prompts of the test split, each share with a 95 % Wilson interval. The
ceiling of a tokenizer (trained with `--hold-out` too) is what it keeps of rendered videos of the same prompts. One
JSON for each question, with the prompts that failed; `composition.csv` has a row for each share of all of them, the
README a table. The score `taken_for_trained` is the share of single objects of the wrong shape whose shape the colour
was trained with.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from scores import percent, write_between

import vidgen
from vidgen.data.shapes import SHAPES, TRAINED_PAIRS, parse_caption
from vidgen.eval.interval import share
from vidgen.eval.obedience import TEST_SEED, evaluate_obedience
from vidgen.eval.oracle import Oracle
from vidgen.eval.report import write_csv, write_json
from vidgen.training.models import run_file

RESULTS = Path(__file__).resolve().parent / "results"
QUESTIONS = [(pairs, objects) for objects in (1, 2) for pairs in ("held out", "trained")]


def held_out(model: Path) -> str:
    """Name of the run that `model` is of; ValueError unless its run file says that pairs were held out."""
    file = run_file(model)
    if file is None:
        raise ValueError(f"no run.json says what {model} was trained on; give the folder of a training run")
    if not json.loads(file.read_text())["data"].get("hold_out", False):
        raise ValueError(f"{model} was trained on all pairs of colour and shape; train it with --hold-out")
    return file.parent.name


def taken_for_trained(prompts: list[dict[str, Any]]) -> dict[str, Any]:
    """Of one-object videos of a wrong shape: the share that shows a shape which the asked colour was trained with.

    A model that takes colour for shape has a share near 1; a third to a half is chance (`by_chance`).
    """
    hits, chances = [], []
    for prompt in prompts:
        asked, seen = parse_caption(prompt["prompt"]).objects, prompt["seen"]["objects"]
        if len(asked) == len(seen) == 1 and seen[0]["shape"] != asked[0].shape:
            hits.append((asked[0].colour, seen[0]["shape"]) in TRAINED_PAIRS)
            others = [shape for shape in SHAPES if shape != asked[0].shape]
            chances.append(sum((asked[0].colour, shape) in TRAINED_PAIRS for shape in others) / len(others))
    return {**share(hits), "by_chance": sum(chances) / len(chances)} if hits else {}


def ask(subject: Any, name: str, *, pairs: Any, objects: int, prompts: int, batch_size: int) -> dict[str, Any]:
    """The answer to one question, with the prompts that failed."""
    question: dict[str, Any] = {"num_prompts": prompts, "objects": objects, "pairs": pairs, "batch_size": batch_size}
    result = evaluate_obedience(subject, seed=TEST_SEED, name=name, **question)
    failed = [prompt for prompt in result.pop("prompts") if not prompt["right"]["all_right"]]
    return {**result, "taken_for_trained": taken_for_trained(failed), "failed": failed}


def rows(folder: Path) -> list[dict[str, Any]]:
    """One row for each share of each question that was asked: what `composition.csv` holds."""
    found = []
    for file in sorted(folder.glob("composition_*.json")):
        result = json.loads(file.read_text())
        key = {"model": result["model"], "pairs": result["pairs"], "objects": result["objects"]}
        scores = {**result["attributes"], "taken_for_trained": result["taken_for_trained"]}
        found += [{**key, "score": score, **values} for score, values in scores.items() if values]
    return found


def table(folder: Path) -> str:
    """Markdown: what is all right of each question, the ceilings last."""
    headings = [f"{'two objects, ' if objects == 2 else ''}pairs {pairs}" for pairs, objects in QUESTIONS]
    lines = [f"| model | N | {' | '.join(headings)} |", "|---" * (len(headings) + 2) + "|"]
    names = {file.stem.split("_", 3)[3] for file in folder.glob("composition_*.json")}
    for name in sorted(names, key=lambda name: (name.endswith("-ceiling"), name)):
        places = [result_file(folder, name, pairs, objects) for pairs, objects in QUESTIONS]
        results = [json.loads(place.read_text()) if place.is_file() else None for place in places]
        cells = [percent(result["attributes"]["all_right"]) if result else "" for result in results]
        prompts = next(result["num_prompts"] for result in results if result)
        lines.append(f"| {name} | {prompts} | {' | '.join(cells)} |")
    return "\n".join(lines)


def result_file(folder: Path, name: str, pairs: str, objects: int) -> Path:
    return folder / f"composition_{pairs.split()[0]}_{objects}_{name}.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="*", help="folders of pipelines, RUN/model")
    parser.add_argument("--ceilings", type=Path, nargs="*", default=[], help="folders of tokenizers, RUN/model")
    parser.add_argument("--pairs", nargs="*", choices=("held out", "trained"), default=["held out", "trained"])
    parser.add_argument("--objects", nargs="*", type=int, choices=(1, 2), default=[1, 2])
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=25)
    parser.add_argument("--output-dir", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    subjects: dict[str, Any] = {}
    for folder in arguments.ceilings:
        tokenizer: Any = vidgen.load(folder)
        subjects[f"{held_out(folder)}-ceiling"] = Oracle(tokenizer)
    for folder in arguments.models:
        subjects[held_out(folder)] = vidgen.load(folder)
    for name, subject in subjects.items():
        for pairs, objects in QUESTIONS:
            if pairs not in arguments.pairs or objects not in arguments.objects:
                continue
            question = {"pairs": pairs, "objects": objects, "prompts": arguments.prompts}
            result = ask(subject, name, **question, batch_size=arguments.batch_size)
            write_json(result_file(arguments.output_dir, name, pairs, objects), result)
            write_csv(arguments.output_dir / "composition.csv", rows(arguments.output_dir))
            print(name, pairs, objects, result["attributes"]["all_right"], flush=True)
    if arguments.output_dir == RESULTS:
        write_between("composition", table(RESULTS))


if __name__ == "__main__":
    main()
