"""Do the committed scores belong to the weights that are shipped?"""

import json
from pathlib import Path
from types import ModuleType

import pytest
from recipe_module import recipe_module

import vidgen
from vidgen.eval.report import write_csv
from vidgen.nn.fingerprint import weights_sha256

ROOT = Path(__file__).parent.parent
ASKED = {
    "obedience": ("evaluate_obedience", {"num_prompts": 300, "objects": 1}),
    "obedience_two_objects": ("evaluate_obedience", {"num_prompts": 300, "objects": 2}),
    "obedience_alone": ("evaluate_obedience", {"num_prompts": 300, "objects": 1, "num_candidates": 1}),
    "obedience_two_objects_alone": ("evaluate_obedience", {"num_prompts": 300, "objects": 2, "num_candidates": 1}),
    "timelines": ("evaluate_timelines", {"num_prompts": 100}),
    "long": ("evaluate_long", {"num_prompts": 100}),
    "continuation": ("evaluate_continuation", {"num_prompts": 100}),
    "speed": ("measure_sampling", {"num_prompts": 5}),
}


@pytest.fixture(scope="module")
def scores() -> ModuleType:
    return recipe_module("eval/scores.py")


@pytest.mark.parametrize("suite", ASKED)
def test_scores_are_of_the_shipped_weights(scores: ModuleType, suite: str):
    has_ceilings = suite.startswith("obedience") and not suite.endswith("alone")
    names = [*scores.PIPELINES, *(scores.TOKENIZERS if has_ceilings else ())]
    for name in names:
        result = json.loads((scores.RESULTS / f"{suite}_{name}.json").read_text())
        assert result["fingerprint"] == scores.fingerprint_of(*ASKED[suite], name), f"{name}: `make scores` again"
        assert result["model"].removesuffix(" (ceiling)") == name


def test_scores_of_the_matcher_are_of_the_shipped_weights(scores: ModuleType):
    result = json.loads((scores.RESULTS / f"matching_{scores.MATCHER}.json").read_text())
    expected = scores.fingerprint_of("evaluate_matching", {"num_prompts": 100}, scores.MATCHER)
    assert result["fingerprint"] == expected, "`make scores` again"


def test_the_table_of_errors_is_of_the_committed_scores(scores: ModuleType, tmp_path: Path):
    write_csv(tmp_path / "errors.csv", scores.error_rows())
    assert (tmp_path / "errors.csv").read_text() == (scores.RESULTS / "obedience_errors.csv").read_text()


@pytest.mark.parametrize("clips", ["shapes_world", "real_clips"])
def test_reconstruction_is_of_the_shipped_tokenizers(scores: ModuleType, clips: str):
    report = json.loads((scores.RESULTS / f"reconstruction_{clips}.json").read_text())
    found = {subject["name"]: subject["identity"].get("weights_sha256") for subject in report["subjects"]}
    assert set(scores.RECONSTRUCTED) <= set(found)
    for name in scores.RECONSTRUCTED:
        assert found[name] == weights_sha256(vidgen.load(name)), f"{name}: `make scores` again"


def test_scores_on_real_video_are_of_the_shipped_tokenizers(scores: ModuleType):
    found = json.loads((scores.RESULTS / "real_tokenizers.json").read_text())["tokenizers"]
    assert set(found) == {"real-fsq", "real-kl"}
    for name, identity in found.items():
        assert identity["weights_sha256"] == weights_sha256(vidgen.load(name)), f"{name}: eval/real_tokenizers.py again"
