"""Does `strength` keep as much of a video as it says, and does the inverted noise make the video again?"""

from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from test_control import Waits
from test_pipelines import TEXT, clip, distance, each_family, each_pair, latents_of, sample, seed
from tiny_models import pipeline

from vidgen.generators import DiffusionTransformer
from vidgen.nn.random import seeded
from vidgen.pipelines import DiffusionVideoPipeline
from vidgen.pipelines.editing import first_tokens, remasked


@pytest.mark.parametrize("bottleneck", ["fsq", "kl"])
@pytest.mark.parametrize("family", ["masked", "autoregressive"])
def test_token_families_keep_their_share_of_the_tokens(family, bottleneck):
    pipe, video = pipeline(family, bottleneck), clip(frames=9, seed=3)
    encoded = pipe.video_tokenizer.encode(video)
    edited = latents_of(pipe, video=video, num_frames=9, strength=0.5)
    same = (edited.tokens - encoded.tokens).abs().amax(dim=-1) <= 1e-5
    if family == "autoregressive":
        assert same[:, :6].all()
    assert 6 <= same.sum() < 12
    assert latents_of(pipe, video=video, num_frames=9, strength=0.01).tokens.shape == encoded.tokens.shape


def test_remasking_takes_the_same_tokens_whatever_the_batch():
    tokens = torch.arange(20).view(2, 10, 1)
    both = remasked(tokens, 0.35, seeded([0, 1]))
    assert (both < 0).sum(dim=1).flatten().tolist() == [4, 4]
    assert torch.equal(both[1:], remasked(tokens[1:], 0.35, seeded([1])))


@pytest.mark.parametrize(("strength", "made_anew"), [(0.9, 9), (0.7, 7), (0.35, 4), (0.01, 1), (1.0, 10)])
def test_a_round_share_of_the_tokens_is_made_anew(strength: float, made_anew: int):
    tokens = torch.arange(10).view(1, 10, 1)
    assert first_tokens(tokens, strength).shape[1] == 10 - made_anew
    assert (remasked(tokens, strength, seeded([0])) < 0).sum() == made_anew


@each_pair
def test_more_strength_goes_further_from_the_video(family, bottleneck):
    pipe, clips = pipeline(family, bottleneck), [clip(seed=seed) for seed in range(3, 8)]
    weak, strong = ([sample(pipe, video=video, strength=strength) for video in clips] for strength in (0.1, 1.0))
    decoded = [pipe.decode(pipe.video_tokenizer.encode(video), "pt") for video in clips]
    moved = lambda made: sum((one - other).abs().mean() for one, other in zip(made, decoded, strict=True))  # noqa: E731
    assert moved(weak) < moved(strong)
    assert distance(strong[0], sample(pipe, video=clips[0], strength=1.0)) == 0


@each_family
def test_full_strength_forgets_the_video(family):
    pipe = pipeline(family)
    one, two = (latents_of(pipe, video=clip(seed=number), strength=1.0).tokens for number in (3, 4))
    assert distance(one, two) <= 1e-5


@each_family
def test_an_edit_inside_a_mask_keeps_the_known_pixels(family):
    pipe, known, mask = pipeline(family), clip(seed=3), torch.zeros(16, 16, dtype=torch.bool)
    mask[:, :8] = True
    video = sample(pipe, video=known, mask=mask, strength=0.5)
    assert torch.equal(video[..., :8], (known / 2 + 0.5).permute(0, 2, 1, 3, 4)[..., :8])


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_samplers_without_noise_levels_take_a_share_of_their_steps(scheduler):
    pipe, video, steps = diffusion_pipeline(scheduler), clip(seed=3), []
    call = {"video": video, "num_inference_steps": 10, "callback_on_step_end": lambda *step: steps.append(step) or {}}
    edited = {strength: sample(pipe, **call, strength=strength) for strength in (0.2, 0.9, 0.01, 1.0)}
    assert len(steps) == 2 + 9 + 1 + 10
    decoded = pipe.decode(pipe.video_tokenizer.encode(video), "pt")
    assert (edited[0.2] - decoded).abs().mean() < (edited[1.0] - decoded).abs().mean()


def diffusion_pipeline(scheduler: Any) -> DiffusionVideoPipeline:
    """A pipeline whose network predicts noise."""
    flow = pipeline("diffusion", "kl")
    parts = flow.components
    torch.manual_seed(0)
    parts["transformer"] = DiffusionTransformer(**{**parts["transformer"].config, "objective": "epsilon"})
    parts["scheduler"] = scheduler()
    built = DiffusionVideoPipeline(**parts, defaults=flow.config.defaults)
    built.set_progress_bar_config(disable=True)
    return built


def test_inversion_needs_the_steps_of_a_flow():
    with pytest.raises(ValueError, match="DDIMScheduler has other steps"):
        diffusion_pipeline(DDIMScheduler).invert(clip())


def test_inverted_noise_makes_the_video_again_and_more_iterations_make_it_better():
    pipe = pipeline("diffusion", "kl")
    assert isinstance(pipe, DiffusionVideoPipeline)
    video = clip(seed=3)
    tokens = pipe.video_tokenizer.encode(video).tokens
    errors = []
    for iterations in (1, 3, 12):
        noise = pipe.invert(video, TEXT, num_inference_steps=12, iterations=iterations)
        again = latents_of(pipe, latents=noise, num_inference_steps=12, guidance_scale=1.0)
        errors.append(distance(again.tokens, tokens))
    assert errors[2] <= 1e-4
    assert errors[2] < errors[1] < errors[0]


def test_a_timeline_is_inverted_as_it_is_followed():
    pipe = pipeline("diffusion", "kl")
    assert isinstance(pipe, DiffusionVideoPipeline)
    video, timeline = clip(frames=9, seed=3), [(0, TEXT), (5, "a large blue star")]
    noise = pipe.invert(video, timeline, num_inference_steps=12, iterations=12)
    call = {"num_frames": 9, "num_inference_steps": 12, "guidance_scale": 1.0}
    again = latents_of(pipe, prompt=timeline, latents=noise, **call)
    assert distance(again.tokens, pipe.video_tokenizer.encode(video).tokens) <= 1e-4
    with pytest.raises(ValueError, match="starts at frame 9 of a video of 9 frames"):
        pipe.invert(video, [(0, TEXT), (9, TEXT)])


def test_a_tokenizer_that_waits_elsewhere_is_brought_before_an_inversion():
    pipe = pipeline("diffusion", "kl")
    assert isinstance(pipe, DiffusionVideoPipeline)
    expected = pipe.invert(clip(), TEXT, num_inference_steps=2)
    Waits(pipe.video_tokenizer, Waits(pipe.transformer))
    assert torch.equal(pipe.invert(clip(), TEXT, num_inference_steps=2), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strength": 0.0, "video": clip()}, "above 0"),
        ({"strength": 1.5, "video": clip()}, "at most 1"),
        ({"strength": 0.5}, "give the video"),
        ({"strength": 0.5, "video": clip(frames=2)}, "must have all 5 frames"),
        ({"strength": 0.5, "video": clip(), "latents": torch.zeros(1, 8, 1).long()}, "strength or latents"),
    ],
)
def test_a_wrong_edit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        sample(pipeline("masked"), generator=seed(), **changes)
