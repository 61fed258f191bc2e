"""Do generators compose? `python eval/composition.py MODEL … [--ceilings TOKENIZER …]`.

Models that were trained with `--hold-out` are asked for the 20 pairs of colour and shape that they never saw, and for
the 12 that they did; one object and two, prompts of the test split, each share with a 95 % Wilson interval. The
ceiling of a tokenizer (trained with `--hold-out` too) is what it keeps of rendered videos of the same prompts. One
JSON for each question; `composition.csv` has a row for each share.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import vidgen
from vidgen.eval.obedience import TEST_SEED, evaluate_obedience
from vidgen.eval.oracle import Oracle
from vidgen.eval.report import write_csv, write_json
from vidgen.training.models import run_file

RESULTS = Path(__file__).resolve().parent / "results"


def held_out(model: Path) -> str:
    """Name of the run that `model` is of; ValueError unless its run file says that pairs were held out."""
    file = run_file(model)
    if file is None:
        raise ValueError(f"no run.json says what {model} was trained on; give the folder of a training run")
    if not json.loads(file.read_text())["data"].get("hold_out", False):
        raise ValueError(f"{model} was trained on all pairs of colour and shape; train it with --hold-out")
    return file.parent.name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="*", help="folders of pipelines, RUN/model")
    parser.add_argument("--ceilings", type=Path, nargs="*", default=[], help="folders of tokenizers, RUN/model")
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
    rows = []
    for name, subject in subjects.items():
        for pairs in ("held out", "trained"):
            for objects in (1, 2):
                settings: dict[str, Any] = {"num_prompts": arguments.prompts, "objects": objects, "pairs": pairs}
                result = evaluate_obedience(
                    subject, seed=TEST_SEED, name=name, batch_size=arguments.batch_size, **settings
                )
                write_json(arguments.output_dir / f"composition_{pairs.split()[0]}_{objects}_{name}.json", result)
                for score, values in result["attributes"].items():
                    rows.append({"model": name, "pairs": pairs, "objects": objects, "score": score, **values})
                print(name, pairs, objects, result["attributes"]["all_right"], flush=True)
    write_csv(arguments.output_dir / "composition.csv", rows)


if __name__ == "__main__":
    main()
