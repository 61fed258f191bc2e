"""The error table names what is wrong, has the ceiling and the learning curve, and is not made twice."""

import csv
import json
import subprocess
import sys
from dataclasses import replace

import pytest
from recipe_module import recipe_module
from test_training_generator import tiny_pipeline, tiny_run

from vidgen.training import train_generator


@pytest.fixture
def analysis():
    return recipe_module("eval/error_analysis.py")


def judged(prompt: str, **wrong: bool) -> dict:
    right = dict.fromkeys(("count", "background", "colour", "motion", "size", "shape"), True) | wrong
    right |= {"colour_motion_background": True, "all_right": all(right.values())}
    seen = [{"size": "small", "colour": "red", "shape": "star", "motion": "spinning", "span": 0.2}]
    return {"prompt": prompt, "seen": {"objects": seen, "background": "navy"}, "right": right}


def test_errors_are_counted_by_attribute_by_word_alone_and_as_confusions(analysis):
    star = "a small red star spinning on a navy background"
    square = "a small red square spinning on a navy background"
    prompts = [judged(star), judged(square, shape=False), judged(square, shape=False, size=False)]
    rows = analysis.table("model", {"objects": 1, "prompts": prompts})
    shares = {(row["group"], row["word"]): (row["right"], row["videos"]) for row in rows}
    assert shares["attribute", "all_right"] == (1, 3)
    assert shares["shape", "star"] == (1, 1) and shares["shape", "square"] == (0, 2)
    assert shares["alone", "shape"] == (1, 2) and shares["alone", "size"] == (0, 2)
    assert shares["confusion", "square > star"] == (2, 2)
    assert all(0 <= row["low"] <= row["share"] <= row["high"] <= 1 for row in rows)


def test_a_table_goes_on_only_where_it_was_made_with_the_same_settings(analysis, tmp_path):
    place = tmp_path / "errors.csv"
    place.write_text("subject,objects\nceiling,1\n")
    place.with_suffix(".json").write_text(json.dumps({"settings": "196 prompts, {}"}))
    assert analysis.earlier_rows(place, "96 prompts, {}") == []
    assert analysis.earlier_rows(place, "196 prompts, {}") == [{"subject": "ceiling", "objects": "1"}]


@pytest.mark.slow
def test_one_call_makes_the_table_of_a_run_and_the_next_one_adds_to_it(tmp_path, repository):
    run = tiny_run(tmp_path, steps=2, checkpoint_every=1, validate_every=0, keep=9)
    pipeline = tiny_pipeline()
    run = replace(run, data=replace(run.data, num_frames=5))
    train_generator(run, pipeline=pipeline)
    call = [sys.executable, "eval/error_analysis.py", str(tmp_path), "--prompts", "2", "--objects", "1", "--steps", "2"]
    first = subprocess.run(call, cwd=repository, capture_output=True, text=True, check=True).stdout
    assert "ceiling" in first and "step 1" in first and "step 2" in first
    second = subprocess.run(call, cwd=repository, capture_output=True, text=True, check=True).stdout
    assert "model" in second and "step 1" not in second and "ceiling" not in second
    with (tmp_path / "error_analysis.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["subject"] for row in rows} == {"ceiling", "model", "step 1", "step 2"}
    assert {row["group"] for row in rows} >= {"attribute", "shape", "motion", "background"}
    assert "steps" in json.loads((tmp_path / "error_analysis.json").read_text())["settings"]
