"""Score pipelines of the moving digits: `python eval/digit_scores.py MODEL … [--digits-dir DIR]`.

One digit and two, told by caption or, where the pipeline is told classes, by class; each share with a 95 % Wilson
interval. With the MNIST files also the ceiling: clips in handwriting of the test split, through each model's tokenizer
and without one. One JSON for each model and number of digits; `digit_obedience.csv` has a row for each share
of all of them, the README a table.
"""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from scores import percent, write_between

import vidgen
from vidgen.conditioning import ClassEncoder
from vidgen.data.digits import MovingDigits, parse_digits
from vidgen.eval.digit_obedience import evaluate_digits
from vidgen.eval.obedience import TEST_SEED
from vidgen.eval.report import model_label, write_csv, write_json
from vidgen.nn.fingerprint import weights_sha256
from vidgen.pipelines import VideoPipeline

RESULTS = Path(__file__).resolve().parent / "results"


class DigitOracle:
    """Draws captions in handwriting of the test split and passes them through a tokenizer, if there is one."""

    device = torch.device("cpu")

    def __init__(self, digits_dir: Path, tokenizer: Any = None) -> None:
        self.world, self.tokenizer = MovingDigits(digits_dir, "test"), tokenizer

    def set_progress_bar_config(self, **options: Any) -> None:
        """There is no bar."""

    def __call__(self, *, prompt: list[str], generator: list[torch.Generator], output_type: str) -> Any:
        assert output_type == "pt"
        scenes = [parse_digits(text) for text in prompt]
        videos = torch.stack(
            [self.world.render(scene, generator=source) for scene, source in zip(scenes, generator, strict=True)]
        )
        if self.tokenizer is not None:
            videos = self.tokenizer.decode(self.tokenizer.encode(videos)).clamp(-1, 1)
        return SimpleNamespace(frames=(videos.transpose(1, 2) + 1) / 2)


def subjects(models: list[str], digits_dir: Path | None) -> dict[str, Any]:
    """Pipelines and oracles by the name that their results get; one ceiling for each tokenizer."""
    found: dict[str, Any] = {} if digits_dir is None else {"ground-truth": DigitOracle(digits_dir)}
    measured = set()
    for model in models:
        pipeline: Any = vidgen.load(model)
        name = model_label(model)
        found[name] = pipeline
        tokenizer = pipeline.video_tokenizer
        if digits_dir is not None and weights_sha256(tokenizer) not in measured:
            found[f"{name}-ceiling"] = DigitOracle(digits_dir, tokenizer)
            measured.add(weights_sha256(tokenizer))
    return found


def result_file(folder: Path, name: str, digits: int) -> Path:
    return folder / f"digits_{digits}_{name}.json"


def shares(result: dict[str, Any]) -> dict[str, Any]:
    """The scores of one result: prompts obeyed, each attribute, and prompts that fit a video made for another one."""
    return {"obeyed": result["obeyed"], **result["attributes"], "wrong_prompt": result["wrong_prompt"]}


def rows(folder: Path) -> list[dict[str, Any]]:
    """One row for each share of every model that was asked: what `digit_obedience.csv` holds."""
    found = []
    for file in sorted(folder.glob("digits_*.json")):
        result = json.loads(file.read_text())
        row = {"model": result["model"], "digits": result["digits"], "told": result["told"]}
        row["prompts"] = result["num_prompts"]
        found += [{**row, "score": score, **values} for score, values in shares(result).items()]
    return found


def table(folder: Path) -> str:
    """Markdown: prompts obeyed by each model that was asked, then the ceilings."""
    lines = ["| model | told | N | one digit | two digits |", "|---" * 5 + "|"]
    names = {file.stem.split("_", 2)[2] for file in folder.glob("digits_*.json")}
    for name in sorted(names, key=lambda name: (name == "ground-truth", name.endswith("-ceiling"), name)):
        places = [result_file(folder, name, digits) for digits in (1, 2)]
        results = [json.loads(place.read_text()) if place.is_file() else None for place in places]
        cells = [percent(result["obeyed"]) if result else "" for result in results]
        told, prompts = next((result["told"], result["num_prompts"]) for result in results if result)
        lines.append(f"| {name} | {told} | {prompts} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="folders or built-in names of pipelines")
    parser.add_argument("--digits-dir", type=Path, help="folder with the MNIST files, for the ceilings")
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--numbers", type=int, nargs="*", choices=(1, 2), default=(1, 2), help="digits in a prompt")
    parser.add_argument("--output-dir", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    for name, subject in subjects(arguments.models, arguments.digits_dir).items():
        for number in arguments.numbers:
            result = evaluate_digits(
                subject,
                num_prompts=arguments.prompts,
                seed=TEST_SEED,
                digits=number,
                by_class=isinstance(subject, VideoPipeline) and isinstance(subject.text_encoder, ClassEncoder),
                batch_size=arguments.batch_size,
                name=name,
            )
            write_json(result_file(arguments.output_dir, name, number), result)
            write_csv(arguments.output_dir / "digit_obedience.csv", rows(arguments.output_dir))
            print(name, number, {score: values["share"] for score, values in shares(result).items()}, flush=True)
    if arguments.output_dir == RESULTS:
        write_between("digits", table(RESULTS))


if __name__ == "__main__":
    main()
