"""Does the count of obeyed digit prompts count them, by caption and by class, and do the presets train?"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from recipe_module import recipe_module

import vidgen
from vidgen.data.digits import DigitScene, digit_classes
from vidgen.eval.digit_obedience import draw_digit_scenes, evaluate_digits
from vidgen.eval.report import write_json
from vidgen.pipelines.presets import PIPELINE_PRESETS
from vidgen.training import DataConfig, GeneratorRun, TokenizerRun, train_generator, train_tokenizer


class Writer:
    """A "pipeline" whose videos say what they show: frame by frame a number that `read` below gives back."""

    device = torch.device("cpu")

    def __init__(self, classes: bool = False) -> None:
        self.classes = classes

    def set_progress_bar_config(self, **options) -> None:
        pass

    def __call__(self, *, prompt, generator, output_type):
        scenes = [[int(word) for word in text.split() if word.isdigit()] for text in prompt]
        numbers = torch.tensor([sum(digit * 10**place for place, digit in enumerate(scene)) for scene in scenes])
        return SimpleNamespace(frames=(numbers / 100).view(-1, 1, 1, 1, 1).expand(-1, 2, 3, 4, 4))


def read_number(count: int, motion: str):
    def read(video: torch.Tensor) -> DigitScene:
        number = round(float((video[0, 0, 0, 0] + 1) / 2 * 100))
        return DigitScene(tuple((number // 10**place % 10, motion) for place in range(count)))

    return read


@pytest.mark.parametrize("digits", [1, 2])
def test_a_pipeline_that_is_told_classes_is_judged_by_its_digits_alone(digits):
    read = read_number(digits, "staying still")
    call = {"num_prompts": 30, "seed": 2, "digits": digits, "read": read}
    by_class = evaluate_digits(Writer(), by_class=True, **call)
    assert by_class["obeyed"]["right"] == 30 and by_class["told"] == "classes"
    assert by_class["wrong_prompt"]["right"] <= 6
    by_caption = evaluate_digits(Writer(), batch_size=7, **call)
    still = sum(
        all(motion == "staying still" for _, motion in scene.objects)
        for scene in draw_digit_scenes(30, seed=2, digits=digits)
    )
    assert by_caption["obeyed"]["right"] == still
    assert by_caption["attributes"]["digit"]["right"] == 30


def test_class_presets_name_the_classes_in_the_order_of_the_labels():
    for name in ("digits-masked-class", "digits-flow-class"):
        assert PIPELINE_PRESETS[name].classes == digit_classes((1, 2))
        assert PIPELINE_PRESETS[name].classes[:10] == digit_classes((1,))


def test_the_table_of_digits_holds_every_model_that_was_asked(tmp_path):
    digit_scores = recipe_module("eval/digit_scores.py")
    for name, digits, by_class in (("one", 1, False), ("one", 2, False), ("other", 2, True)):
        read = read_number(digits, "staying still")
        asked = {"num_prompts": 8, "seed": 2, "digits": digits, "by_class": by_class, "name": name}
        answer = evaluate_digits(Writer(), read=read, **asked)
        write_json(digit_scores.result_file(tmp_path, name, digits), answer)
    found = digit_scores.rows(tmp_path)
    assert {(row["model"], row["digits"], row["told"]) for row in found} == {
        ("one", 1, "captions"),
        ("one", 2, "captions"),
        ("other", 2, "classes"),
    }
    lines = digit_scores.table(tmp_path).splitlines()
    assert len(lines) == 4 and lines[2].startswith("| one | captions | 8 | ")
    assert lines[3].startswith("| other | classes | 8 |  | 100 % (68–100) |")


@pytest.mark.slow
def test_digit_presets_train_by_caption_and_by_class_on_one_digit_and_two(shared, tmp_path):
    data = DataConfig(
        source="digits", digits_dir=shared / "mnist", num_frames=5, height=16, width=16, validation_clips=2
    )
    short = {"tiny": True, "steps": 1, "batch_size": 2, "sample_every": 0, "device": "cpu"}
    for kind, preset in (("fsq", "digits-fsq"), ("kl", "digits-kl")):
        run = TokenizerRun(preset=preset, output_dir=tmp_path / kind, data=data, statistics_clips=2, **short)
        train_tokenizer(run)
    for preset, kind in (("digits-masked", "fsq"), ("digits-flow", "kl")):
        for classes in (False, True):
            name = f"{preset}-class" if classes else preset
            run = GeneratorRun(
                preset=name,
                output_dir=tmp_path / name,
                tokenizer=str(tmp_path / kind / "model"),
                data=data,
                classes=classes,
                cached_clips=4,
                **short,
            )
            pipe: Any = vidgen.load(train_generator(run))
            result = evaluate_digits(pipe, num_prompts=2, seed=1, digits=2, by_class=classes)
            assert result["obeyed"]["right"] <= 2
            assert hasattr(pipe.text_encoder, "class_names") == classes
