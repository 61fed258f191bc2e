"""Are long videos and timelines of prompts exact: lengths, joins, memory, and who sees which prompt?"""

import gc
from itertools import pairwise
from typing import Any

import pytest
import torch
from test_pipelines import TEXT, clip, distance, each_family, each_pair, latents_of, sample, seed
from tiny_models import pipeline, shake
from torch import Tensor

import vidgen
from vidgen.conditioning.timeline import excerpt
from vidgen.pipelines import VideoPipeline
from vidgen.pipelines.extension import faded, windows

STAR = "a large blue star"


def long(pipe: Any, **changes) -> Tensor:
    """Frames `b t 3 h w`."""
    call = {"num_frames": 14, "window_frames": 6, "overlap_frames": 2, "generator": seed(), "output_type": "pt"}
    return pipe.extend(changes.pop("prompt", TEXT), **{**call, **changes}).frames


# ------------------------------------------------------------------------------------------------------ the windows


@pytest.mark.parametrize("given", [0, 1, 4, 9])
@pytest.mark.parametrize(("window", "overlap"), [(5, 1), (6, 2), (6, 5), (17, 5)])
@pytest.mark.parametrize("num_frames", [10, 14, 40])
def test_windows_cover_the_video_and_overlap_enough(num_frames, window, overlap, given):
    spans = windows(num_frames, window=window, overlap=overlap, given=given)
    assert spans[0][0] == max(0, given - overlap) or len(spans) == 1
    assert spans[-1][1] == num_frames
    assert all(end - first == window or (end == num_frames and len(spans) == 1) for first, end in spans)
    assert all(before[1] - after[0] >= overlap and after[1] > before[1] for before, after in pairwise(spans))


def test_a_fade_takes_over_step_by_step_and_keeps_given_frames():
    before, after = torch.zeros(1, 1, 4, 1, 1), torch.ones(1, 1, 6, 1, 1)
    assert faded(before, after, kept=0).flatten().tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    assert faded(before, after, kept=2).flatten().tolist() == pytest.approx([0, 0, 1 / 3, 2 / 3, 1, 1])


@each_pair
def test_a_long_video_has_its_length_and_begins_as_given(family, bottleneck):
    pipe = pipeline(family, bottleneck)
    first = clip(frames=3, seed=3)
    video = long(pipe, video=first)
    assert video.shape == (1, 14, 3, 16, 16)
    assert torch.equal(video[:, :3], (first / 2 + 0.5).permute(0, 2, 1, 3, 4))
    assert torch.equal(video, long(pipe, video=first))
    assert distance(long(pipe), long(pipe, generator=seed(1))) > 1e-3


@each_family
def test_a_video_of_one_window_is_that_of_a_call(family):
    pipe = pipeline(family)
    assert distance(long(pipe, num_frames=5), sample(pipe, num_frames=5)) <= 1e-6


@each_family
def test_chunks_come_as_they_are_made_and_memory_does_not_grow(family):
    pipe, sizes, held = pipeline(family), [], []
    for chunk in pipe.extend_stream(TEXT, num_frames=30, window_frames=6, overlap_frames=2, generator=seed()):
        sizes.append(chunk.shape[2])
        del chunk
        if len(sizes) in (2, 6):
            gc.collect()
            held.append(sum(item.numel() for item in gc.get_objects() if type(item) is Tensor))
    assert sum(sizes) == 30
    assert max(sizes) <= 6
    assert held[1] <= 1.01 * held[0]


@each_family
def test_several_prompts_are_extended_side_by_side(family):
    pipe = pipeline(family)
    both = long(pipe, prompt=[TEXT, STAR], num_frames=9, generator=[seed(0), seed(1)])
    alone = long(pipe, prompt=STAR, num_frames=9, generator=[seed(1)])
    assert distance(both[1:], alone) <= 1e-3


@each_family
def test_the_noise_of_a_long_video_does_not_depend_on_the_others_of_its_call(family):
    pipe, source = pipeline(family), seed(5)
    both = long(pipe, prompt=[TEXT, STAR], num_frames=14, generator=seed(5))
    for number, prompt in enumerate([TEXT, STAR]):  # as if made one after the other from the same generator
        alone = long(pipe, prompt=prompt, num_frames=14, generator=source)
        assert distance(both[number : number + 1], alone) <= 1e-3


@pytest.mark.parametrize("wrong", [5, [], [5]])
def test_a_long_video_refuses_what_is_no_generator_as_a_call_does(wrong):
    with pytest.raises(ValueError, match=r"generator is a torch.Generator or a list|one generator for each"):
        long(pipeline(), generator=wrong)


def test_one_given_video_goes_on_under_several_prompts():
    pipe, first = pipeline(), clip(frames=3, seed=3)
    both = long(pipe, prompt=[TEXT, STAR], num_frames=9, video=first, generator=[seed(0), seed(1)])
    assert torch.equal(both[:, :3], (first / 2 + 0.5).permute(0, 2, 1, 3, 4).expand(2, -1, -1, -1, -1))
    alone = long(pipe, prompt=STAR, num_frames=9, video=first, generator=[seed(1)])
    assert distance(both[1:], alone) <= 1e-3


def test_windows_follow_their_part_of_a_control_video():
    pipe: Any = pipeline("masked", "kl")
    pipe.transformer.add_control(layers=1)
    shake(pipe.transformer.control_branch)
    control = clip(frames=14, seed=5)
    later = torch.cat([control[:, :, :11], clip(frames=3, seed=6)], dim=2)
    one, two = (long(pipe, control_video=video) for video in (control, later))
    assert distance(one[:, :8], two[:, :8]) == 0
    assert distance(one[:, 11:], two[:, 11:]) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shapes-masked", "shapes-flow", "shapes-ar"])
def test_windows_join_without_a_jump(name):
    pipe = vidgen.load(name)
    assert isinstance(pipe, VideoPipeline)
    pipe.set_progress_bar_config(disable=True)
    prompt = "a large red circle moving left on a navy background"
    steps = {} if name == "shapes-ar" else {"num_inference_steps": 8}
    video = long(pipe, prompt=prompt, num_frames=33, window_frames=17, overlap_frames=9, generator=seed(2), **steps)
    change = (video[:, 1:] - video[:, :-1]).abs().mean(dim=(0, 2, 3, 4))
    joins = sorted({edge for first, end in windows(33, window=17, overlap=9)[1:] for edge in (first - 1, first + 8)})
    elsewhere = torch.tensor([index not in joins for index in range(32)])
    assert change[joins].max() <= 1.5 * change[elsewhere].max()


# ----------------------------------------------------------------------------------------------------- the timelines


@each_family
def test_a_timeline_of_one_prompt_is_that_prompt(family):
    pipe = pipeline(family, "kl")
    assert distance(latents_of(pipe, prompt=[(0, TEXT)]).tokens, latents_of(pipe).tokens) <= 1e-5


@each_family
def test_a_later_prompt_changes_the_frames_it_holds_for(family):
    pipe = pipeline(family, "kl")
    one, two = (latents_of(pipe, prompt=[(0, TEXT), (5, text)], num_frames=9).tokens for text in (TEXT, STAR))
    assert distance(one, two) > 1e-4
    if family == "autoregressive":  # causal: the frames before the change cannot know of it
        assert distance(one[:, :8], two[:, :8]) <= 1e-6
        assert distance(one[:, 8:], two[:, 8:]) > 1e-4


@pytest.mark.parametrize("family", ["masked", "autoregressive"])
def test_the_last_prompt_reaches_a_row_of_tokens_that_ends_beyond_the_video(family):
    pipe = pipeline(family, "kl")
    one, two = (latents_of(pipe, prompt=[(0, TEXT), (6, text)], num_frames=8).tokens for text in (TEXT, STAR))
    assert distance(one[:, 8:], two[:, 8:]) > 1e-4


def test_an_excerpt_of_a_timeline_counts_from_its_first_frame():
    timeline = [(0, "a"), (10, "b"), (20, "c")]
    assert excerpt(timeline, 0, 10) == "a"
    assert excerpt(timeline, 5, 17) == [(0, "a"), (5, "b")]
    assert excerpt(timeline, 9, 30) == [(0, "a"), (1, "b"), (11, "c")]
    assert excerpt(timeline, 20, 25) == "c"
    assert excerpt(["x", "y"], 5, 9) == ["x", "y"]


def test_windows_see_their_excerpts():
    pipe = pipeline("autoregressive", "kl")
    one, two = (long(pipe, prompt=[(0, TEXT), (11, text)]) for text in (TEXT, "a small yellow star"))
    assert distance(one[:, :8], two[:, :8]) == 0
    assert distance(one[:, 12:], two[:, 12:]) > 1e-4


@pytest.mark.parametrize(
    ("timeline", "message"),
    [
        ([(3, "a")], "starts at frame 0"),
        ([(0, "a"), (4, "b"), (2, "c")], "must rise.*sort"),
        ([(0, "a"), (0, "b")], "must rise"),
        ([(0, "a"), (5, "b")], "starts at frame 5 of a video of 5 frames"),
        ([(0, 3)], "first frame, prompt"),
    ],
)
def test_a_wrong_timeline_is_refused(timeline, message):
    with pytest.raises(ValueError, match=message):
        sample(pipeline(), prompt=timeline)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"overlap_frames": 6}, "between 1 and 5"),
        ({"mask": torch.ones(16, 16)}, "single window"),
        ({"output_type": "latent"}, "pil, np, pt"),
        ({"video": clip(frames=14)}, "has 14 frames already"),
        ({"video": clip(batch=2)}, "2 videos to extend do not fit 1 videos to make"),
        ({"control_video": clip(frames=6)}, "control_video of the whole video must have 14 frames, got 6"),
        ({"actions": torch.zeros(1, 6, 2)}, "actions of the whole video must have 14 frames, got 6"),
    ],
)
def test_a_wrong_extension_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        long(pipeline(), **changes)
