"""Score pipelines of the moving digits: `python eval/digit_scores.py MODEL … [--digits-dir DIR]`.

One digit and two, told by caption or, where the pipeline is told classes, by class; each share with a 95 % Wilson
interval. With the MNIST files also the ceiling: clips in handwriting of the test split, through each model's tokenizer
and without one. One JSON for each model and number of digits; `digit_obedience.csv` has a row for each share.
"""

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import vidgen
from vidgen.conditioning import ClassEncoder
from vidgen.data.digits import MovingDigits, parse_digits
from vidgen.eval.digit_obedience import evaluate_digits
from vidgen.eval.obedience import TEST_SEED
from vidgen.eval.report import model_label, write_csv, write_json
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
    """Pipelines and oracles by the name that their results get."""
    found: dict[str, Any] = {} if digits_dir is None else {"ground-truth": DigitOracle(digits_dir)}
    for model in models:
        pipeline: Any = vidgen.load(model)
        name = model_label(model)
        found[name] = pipeline
        if digits_dir is not None:
            found[f"{name}-ceiling"] = DigitOracle(digits_dir, pipeline.video_tokenizer)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="folders or built-in names of pipelines")
    parser.add_argument("--digits-dir", type=Path, help="folder with the MNIST files, for the ceilings")
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--numbers", type=int, nargs="*", choices=(1, 2), default=(1, 2), help="digits in a prompt")
    parser.add_argument("--output-dir", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = []
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
            write_json(arguments.output_dir / f"digits_{number}_{name}.json", result)
            shares = {"obeyed": result["obeyed"], **result["attributes"], "wrong_prompt": result["wrong_prompt"]}
            row = {"model": name, "digits": number, "told": result["told"], "prompts": arguments.prompts}
            rows += [{**row, "score": score, **values} for score, values in shares.items()]
            print(name, number, {score: values["share"] for score, values in shares.items()}, flush=True)
    write_csv(arguments.output_dir / "digit_obedience.csv", rows)


if __name__ == "__main__":
    main()
