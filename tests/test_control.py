"""Do control videos and reference images steer every generator, and is a new control branch no change at all?"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from test_pipelines import TEXT, clip, distance, each_family, latents_of, seed
from test_training_generator import tiny_pipeline, tiny_run
from tiny_models import pipeline, shake, tokenizer
from torch import Tensor, nn

import vidgen
from vidgen.conditioning import Condition, WordTextEncoder, edges
from vidgen.nn.random import seeded
from vidgen.pipelines.presets import PIPELINE_PRESETS
from vidgen.training import GeneratorRun, train_generator
from vidgen.training.generator_step import GeneratorStep
from vidgen.training.models import fresh_pipeline

FAMILIES = ("masked", "diffusion", "autoregressive", "llama", "efficient", "frames")
OTHER_NETWORKS = {"llama": "par", "efficient": "shapes-enat", "frames": "shapes-masked"}  # of these presets
every_family = pytest.mark.parametrize("family", FAMILIES)


def tiny(family: str) -> Any:
    if family not in OTHER_NETWORKS:
        return pipeline(family, "kl")
    torch.manual_seed(0)
    text_encoder = WordTextEncoder(width=16, layers=1, heads=2, buckets=64)
    pipe = PIPELINE_PRESETS[OTHER_NETWORKS[family]].tiny().build(tokenizer("kl"), text_encoder)
    shake(pipe.transformer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sketch() -> Tensor:
    return edges(clip(seed=5))


# ------------------------------------------------------------------------------------------------ the control video


def test_edges_are_where_brightness_changes():
    video = -torch.ones(1, 3, 2, 8, 8)
    video[..., 4:] = 1
    found = edges(video)
    assert found.shape == video.shape
    assert (found[..., 3:5] > 0.9).all()
    assert (found[..., :3] == -1).all()
    assert (found[..., 5:] == -1).all()


@every_family
def test_a_new_control_branch_changes_nothing_and_a_shaken_one_does(family):
    pipe = tiny(family)
    before = latents_of(pipe).tokens
    pipe.transformer.add_control()
    assert torch.equal(latents_of(pipe, control_video=sketch()).tokens, before)
    assert torch.equal(latents_of(pipe).tokens, before)
    shake(pipe.transformer.control_branch)
    steered = latents_of(pipe, control_video=sketch()).tokens
    assert distance(steered, before) > 1e-3
    assert torch.equal(latents_of(pipe).tokens, before)
    both = latents_of(pipe, prompt=[TEXT, TEXT], control_video=sketch(), generator=seed()).tokens
    assert distance(both[:1], steered) <= 1e-4


@every_family
def test_a_control_branch_alone_learns_what_only_the_control_video_says(family):
    pipe = tiny(family)
    pipe.transformer.add_control(layers=1)
    pipe.transformer.requires_grad_(False)
    pipe.transformer.control_branch.requires_grad_(True)
    videos = clip(batch=4, seed=7)
    latents, control = (pipe.video_tokenizer.encode(video) for video in (videos, edges(videos)))
    condition = Condition(torch.zeros(4, 0, 16), torch.zeros(4, 0, dtype=torch.bool), control=control)
    optimizer, history = torch.optim.Adam(pipe.transformer.control_branch.parameters(), lr=1e-2), []
    for _ in range(12):
        losses = pipe.transformer.losses(latents, condition, generators=seeded(range(4)))
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(total.item())
    assert history[-1] < history[0]


@each_family
def test_control_and_references_are_saved_and_loaded(family, tmp_path):
    pipe = tiny(family)
    pipe.transformer.add_control(layers=1)
    pipe.transformer.add_references()
    shake(pipe.transformer.control_branch)
    pipe.save_pretrained(tmp_path)
    again: Any = vidgen.load(tmp_path)
    again.set_progress_bar_config(disable=True)
    told = {"control_video": sketch(), "reference_images": clip()[0].transpose(0, 1)[:2]}
    assert torch.equal(latents_of(again, **told).tokens, latents_of(pipe, **told).tokens)


def test_a_run_trains_a_control_branch_on_edges_and_nothing_else(tmp_path):
    base = tiny_pipeline("masked")
    before = {name: weight.clone() for name, weight in base.transformer.state_dict().items()}
    run = tiny_run(tmp_path, control_layers=1, known_frames=0.0)
    trained: Any = vidgen.load(train_generator(run, pipeline=base))
    after = trained.transformer.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert after["control_branch.to_features.weight"].abs().max() > 0


def test_a_control_branch_is_not_trained_on_encoded_clips(tmp_path):
    with pytest.raises(ValueError, match="trained on pixels"):
        tiny_run(tmp_path, control_layers=1, cached_clips=4)


class Waits(ModelHook):
    """As accelerate's hook for offloading, but what waits is on "meta", where nothing can be computed."""

    execution_device = "cpu"

    def __init__(self, module: nn.Module, sent_away: "Waits | None" = None) -> None:
        self.module, self.sent_away = module, sent_away
        self.weights = {name: weight.clone() for name, weight in module.state_dict().items()}
        add_hook_to_module(module, self)
        self.wait()

    def wait(self) -> None:
        self.module.to("meta")

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        if self.sent_away is not None:
            self.sent_away.wait()
        module.load_state_dict(self.weights, assign=True)
        return args, kwargs


@every_family
@pytest.mark.parametrize("strength", [None, 0.5])
def test_a_transformer_that_waits_elsewhere_is_brought_before_it_is_steered(family, strength):
    pipe = tiny(family)
    pipe.transformer.add_control(layers=1)
    pipe.transformer.add_references()
    told = {"control_video": sketch(), "reference_images": clip(frames=1)[:, :, 0]}
    if strength is not None:
        told |= {"video": clip(seed=3), "strength": strength}
    expected = latents_of(pipe, **told).tokens
    Waits(pipe.video_tokenizer, Waits(pipe.transformer))
    assert torch.equal(latents_of(pipe, **told).tokens, expected)


# ---------------------------------------------------------------------------------------------- the reference images


@every_family
def test_reference_images_are_heard_one_by_one(family):
    pipe = tiny(family)
    pipe.transformer.add_references()
    images = clip(batch=3, frames=1)[:, :, 0]
    plain, one, two, other = (
        latents_of(pipe, **({} if chosen is None else {"reference_images": images[chosen]})).tokens
        for chosen in (None, [0], [0, 1], [2])
    )
    assert min(distance(plain, one), distance(one, two), distance(one, other)) > 1e-5


def test_reference_images_may_be_pil_images():
    pipe = tiny("masked")
    pipe.transformer.add_references()
    images = pipe(TEXT, generator=seed(), num_frames=2, output_type="pil").frames[0]
    tensor = pipe.image_clips(images)[:, :, 0]
    one, two = (latents_of(pipe, reference_images=given).tokens for given in (images, tensor))
    assert torch.equal(one, two)


def test_a_single_reference_image_is_one_image():
    pipe = tiny("masked")
    pipe.transformer.add_references()
    images = clip(frames=1)[:, :, 0]
    alone, of_one = (latents_of(pipe, reference_images=given).tokens for given in (images[0], images))
    assert torch.equal(alone, of_one)
    with pytest.raises(ValueError, match=r"reference images must be `r 3 h w` or `3 h w`, got \(1, 3, 1, 16, 16\)"):
        latents_of(pipe, reference_images=clip(frames=1))


@each_family
def test_references_go_with_a_timeline(family):
    pipe = tiny(family)
    pipe.transformer.add_references()
    images = clip(batch=2, frames=1)[:, :, 0]
    timeline = [(0, TEXT), (1, "a blue star")]
    one, two = (latents_of(pipe, prompt=timeline, reference_images=images[[index]]).tokens for index in (0, 1))
    assert distance(one, two) > 1e-5


@pytest.mark.parametrize("family", ["masked", "flow", "ar"])
def test_a_run_trains_with_frames_of_each_clip_as_references(family, tmp_path):
    base = tiny_pipeline(family)
    base.transformer.add_references()
    before = base.transformer.reference_embedding.project.weight.detach().clone()
    run = tiny_run(tmp_path, references=2, drop_text=0.3, known_frames=0.0)
    trained: Any = vidgen.load(train_generator(run, pipeline=base))
    assert not torch.equal(trained.transformer.reference_embedding.project.weight, before)
    images = clip(batch=2, frames=1)[:, :, 0]
    assert trained("", reference_images=images, num_frames=5, output_type="pt").frames.shape[1] == 5


def test_what_a_model_learned_of_control_and_references_is_trained_on(tmp_path):
    run = GeneratorRun(preset="shapes-masked", output_dir=tmp_path, tiny=True)
    pipe = fresh_pipeline(run)
    pipe.transformer.add_control(1)
    pipe.transformer.add_references()
    shake(pipe.transformer.control_branch)
    pipe.save_pretrained(tmp_path / "model")
    again = fresh_pipeline(replace(run, init_from=str(tmp_path / "model")))
    learned = pipe.transformer.state_dict()
    assert all(torch.equal(weight, learned[name]) for name, weight in again.transformer.state_dict().items())
    step = GeneratorStep(again, drop_text=0.0, known_frames=0.0)
    parts = again.transformer.control_branch, again.transformer.reference_embedding
    assert not any(weight.requires_grad for part in parts for weight in part.parameters())
    step.add_control(1, "edges")
    step.add_references(1)
    assert all(weight.requires_grad for part in parts for weight in part.parameters())
    assert all(torch.equal(weight, learned[name]) for name, weight in again.transformer.state_dict().items())


def test_each_sample_has_its_own_references_in_training():
    transformer = tiny("masked").transformer
    transformer.add_references()
    condition = Condition(torch.zeros(2, 1, transformer.config.text_width), torch.zeros(2, 1, dtype=torch.bool))
    images = tiny("masked").video_tokenizer.encode(clip(batch=4, frames=1))
    both = transformer.with_references(condition, images, samples=2).states
    for sample in (0, 1):
        own = replace(images, tokens=images.tokens[2 * sample : 2 * sample + 2])
        assert torch.equal(both[sample], transformer.with_references(condition, own).states[0])


def test_references_are_not_trained_on_encoded_clips(tmp_path):
    with pytest.raises(ValueError, match="frames of the clips"):
        tiny_run(tmp_path, references=1, cached_clips=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"control_video": clip()}, "no control branch; give it one with add_control"),
        ({"control_video": clip(frames=2)}, "must have all 5 frames"),
        ({"reference_images": clip()[0].transpose(0, 1)}, "takes no reference images"),
    ],
)
def test_a_transformer_that_cannot_be_steered_says_so(changes, message):
    with pytest.raises(ValueError, match=message):
        latents_of(tiny("masked"), **changes)
