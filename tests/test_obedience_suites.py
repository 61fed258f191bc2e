"""Do the suites of obedience credit ground truth, and nothing else? Asked of a pipeline that draws its prompts."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from recipe_module import recipe_module
from tiny_models import pipeline as tiny_pipeline

from vidgen.data.shapes import parse_caption
from vidgen.data.shapes_timelines import OPPOSITES, render_timeline
from vidgen.eval.coloured_objects import centres
from vidgen.eval.continuation_obedience import evaluate_continuation
from vidgen.eval.long_obedience import evaluate_long, long_prompt, there_and_back
from vidgen.eval.obedience import noise, videos_of
from vidgen.eval.oracle import Oracle
from vidgen.eval.report import write_json
from vidgen.eval.sampling_speed import measure_sampling
from vidgen.eval.timeline_obedience import draw_timelines, evaluate_timelines, see_switch


class Changed(Oracle):
    """An oracle that answers another question than the one it is asked."""

    def __init__(self, change) -> None:
        super().__init__()
        self.change = change

    def __call__(self, prompt, **options):
        return super().__call__(self.change(prompt), **options)


def late(frames: int):
    return lambda story: [(first + frames if first else 0, text) for first, text in story]


def test_timelines_of_ground_truth_switch_at_the_right_frame(tmp_path):
    result = evaluate_timelines(Oracle(), num_prompts=24, seed=5)
    assert result["switched"]["right"] == 24 and result["all_right"]["right"] >= 23
    assert abs(result["offset"]) <= 0.2
    assert set(result["by_change"]) == {"background", "colour", "motion"}
    write_json(tmp_path / "timelines.json", result)
    assert json.loads((tmp_path / "timelines.json").read_text())["settings"] == {"num_frames": 17}


@pytest.mark.parametrize("change", [late(4), late(-4), lambda story: story[:1], lambda story: [(0, story[1][1])]])
def test_a_switch_too_late_too_early_or_never_is_not_credited(change):
    result = evaluate_timelines(Changed(change), num_prompts=12, seed=5)
    assert result["switched"]["right"] == 0


def test_the_switch_is_found_to_the_frame():
    for index, case in enumerate(draw_timelines(12, seed=6)):
        video = videos_of(Oracle()(case.prompt, generator=noise(6, index)).frames)[0]
        found = see_switch(video, case).frame
        assert found is not None and abs(found - case.frame) <= (1 if case.changed == "motion" else 0)


def test_turns_of_long_videos_are_found_to_the_frame():
    cases = [case for case in draw_timelines(12, seed=6, num_frames=49) if case.changed == "motion"]
    assert len(cases) == 4
    for index, case in enumerate(cases):
        video = videos_of(Oracle()(case.prompt, generator=noise(6, index), num_frames=49).frames)[0]
        found = see_switch(video, case).frame
        assert centres(video).shape == (49, 2) and found is not None and abs(found - case.frame) <= 1


def test_long_ground_truth_obeys_in_every_segment_and_one_way_motion_does_not():
    result = evaluate_long(Oracle(), num_prompts=12, seed=5)
    assert result["num_frames"] == 65
    assert result["kept"]["right"] == 12 and result["all_right"]["right"] >= 11

    def never_back(story):
        return story[:1]

    wrong = evaluate_long(Changed(never_back), num_prompts=12, seed=5)
    lasting = sum(
        len({text for text in one["prompt"].split() if text in ("still", "spinning")}) for one in wrong["prompts"]
    )
    assert wrong["all_right"]["right"] <= lasting


def test_long_prompts_turn_round_what_cannot_go_on():
    scene = parse_caption("a small red star moving left on a navy background")
    prompt = long_prompt(there_and_back(scene, 3))
    assert [first for first, _ in prompt] == [0, 17, 33]  # pyright: ignore
    assert [parse_caption(text).objects[0].motion for _, text in prompt] == [  # pyright: ignore
        "moving left", "moving right", "moving left"
    ]  # fmt: skip
    assert long_prompt(there_and_back(replace(scene, objects=(replace(scene.objects[0], motion="spinning"),)), 3)) == (
        "a small red star spinning on a navy background"
    )
    assert all(OPPOSITES[OPPOSITES[motion]] == motion for motion in OPPOSITES)


def test_a_timeline_never_jumps():
    scene = parse_caption("a small red star growing on a navy background")
    back = there_and_back(scene, 2)[1]
    video = render_timeline([(0, scene), (17, back)], 33, generator=noise(0, 0))
    assert torch.equal(video[:, :17], video[:, 16:].flip(1))
    with pytest.raises(ValueError, match="turns them round"):
        other = parse_caption("a small red star moving up on a navy background")
        render_timeline([(0, scene), (9, other)], 17, generator=noise(0, 0))


def test_ground_truth_continuations_keep_the_object():
    result = evaluate_continuation(Oracle(), num_prompts=16, seed=5, batch_size=5)
    assert result["kept"]["right"] >= 15 and result["all_right"]["right"] >= 15
    assert result["seam"] < 1e-6
    assert evaluate_continuation(Oracle(), num_prompts=16, seed=5)["prompts"] == result["prompts"]


def test_a_continuation_by_another_object_or_at_another_place_is_not_credited():
    elsewhere = Oracle()
    call = Oracle.__call__

    class Elsewhere(Oracle):
        def __call__(self, prompt, *, generator, **options):
            return call(elsewhere, prompt, generator=[noise(99, i) for i in range(len(prompt))], **options)

    assert evaluate_continuation(Elsewhere(), num_prompts=12, seed=5)["kept"]["right"] <= 4

    def other_colour(prompts):
        return [text.replace("red", "x").replace("blue", "red").replace("x", "blue") for text in prompts]

    result = evaluate_continuation(Changed(other_colour), num_prompts=24, seed=5)
    touched = sum("red" in one["prompt"] or "blue" in one["prompt"] for one in result["prompts"])
    assert touched > 0 and result["kept"]["right"] <= 24 - touched


def test_an_empty_continuation_is_not_credited():
    class Nothing(Oracle):
        def __call__(self, prompt, *, num_frames, **options):
            return SimpleNamespace(frames=torch.zeros(len(prompt), num_frames, 3, 64, 64))

    result = evaluate_continuation(Nothing(), num_prompts=4, seed=5)
    assert result["kept"]["right"] == 0 and result["seam"] is None


def test_real_pipelines_answer_every_suite():
    pipe = tiny_pipeline("masked")
    small = {"height": 64, "width": 64, "num_inference_steps": 2}
    assert evaluate_timelines(pipe, num_prompts=3, seed=1, **small)["switched"]["right"] <= 3
    assert len(evaluate_long(pipe, num_prompts=1, seed=1, window_frames=17, **small)["segments"]) == 4
    assert evaluate_continuation(pipe, num_prompts=2, seed=1, with_caption=False, **small)["num_prompts"] == 2
    threads = torch.get_num_threads()
    speed = measure_sampling(pipe, num_prompts=2, seed=1, threads=1, **small)
    assert 0 < speed["seconds"]["least"] <= speed["seconds"]["median"] and speed["environment"]["threads"] == 1
    assert torch.get_num_threads() == threads


def test_a_tokenizer_lowers_the_ceiling_of_a_suite():
    pipe = tiny_pipeline("masked")
    assert evaluate_continuation(Oracle(pipe.video_tokenizer), num_prompts=3, seed=5)["kept"]["right"] == 0


def test_scores_go_on_where_they_were_cut_off(tmp_path, monkeypatch):
    scores = recipe_module("eval/scores.py")
    made = []
    monkeypatch.setattr(scores, "RESULTS", tmp_path)
    monkeypatch.setattr(scores.vidgen, "load", lambda name: made.append(name))

    def suite(model, *, seed, name, num_prompts):
        return {"model": name, "num_prompts": num_prompts}

    for prompts in (3, 3, 4):
        scores.score(tmp_path / "some.json", "shapes-masked", suite, {"num_prompts": prompts})
    assert made == ["shapes-masked"] * 2  # the second call found the first one's file
    assert json.loads((tmp_path / "some.json").read_text())["num_prompts"] == 4
