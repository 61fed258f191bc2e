"""Does a masked transformer hear its task and its class, train on COMMIT's three terms, and keep what it was given?"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_training_generator import batch_of, tiny_pipeline, tiny_run, tiny_tokenizer
from tiny_models import SPECS, random_latents, shake

import vidgen
from vidgen.conditioning import TASK_NAMES, TASKS, ClassEncoder, Condition, TokenState, known_mask, task_numbers
from vidgen.data.shapes import SHAPE_CLASSES
from vidgen.generators import MaskedTransformer
from vidgen.nn.random import seeded
from vidgen.pipelines import MaskedVideoPipeline
from vidgen.schedulers import MaskedTokenScheduler
from vidgen.training import train_generator
from vidgen.training.clips import collate, training_clips
from vidgen.training.earlier_weights import take_weights
from vidgen.training.generator_step import GeneratorStep
from vidgen.training.latent_cache import collate_encoded, encoded_clips
from vidgen.training.models import fresh_pipeline


def network(name: str = "grid of ids", **config) -> MaskedTransformer:
    torch.manual_seed(0)
    built = MaskedTransformer(SPECS[name].to_json(), text_width=8, width=24, layers=2, heads=2, **config)
    shake(built)
    return built.eval()


def condition(batch: int = 2, **parts) -> Condition:
    return Condition(torch.zeros(batch, 0, 8), torch.zeros(batch, 0, dtype=torch.bool), **parts)


def class_pipeline(**config) -> MaskedVideoPipeline:
    """A pipeline that is told shapes-world classes and tasks."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    transformer = MaskedTransformer(
        tokenizer.spec.to_json(), text_width=16, width=32, layers=1, heads=2, tasks=len(TASKS), **config
    )
    shake(transformer)
    pipe = MaskedVideoPipeline(
        tokenizer,
        ClassEncoder(SHAPE_CLASSES, width=16),
        transformer,
        MaskedTokenScheduler(),
        defaults={"num_frames": 5, "height": 16, "width": 16, "num_inference_steps": 3, "guidance_scale": 1.0},
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


# ------------------------------------------------------------------------------------------------------ the network


@torch.no_grad()
@pytest.mark.parametrize("name", SPECS)
def test_the_task_changes_every_token_and_no_task_is_a_task_of_its_own(name):
    latents = random_latents(SPECS[name])
    tokens = latents.tokens if latents.ids is None else latents.ids
    coordinates = latents.spec.coordinates(latents.size)
    masked = torch.ones(tokens.shape[:2], dtype=torch.bool)
    model = network(name, tasks=len(TASKS))

    def output(task):
        return model(tokens, masked, coordinates, **model.condition_inputs(condition(task=task), coordinates))

    plain = output(None)
    assert torch.equal(plain, output(task_numbers([None, None])))
    outputs = [output(task_numbers([task, task])) for task in TASK_NAMES]
    for one, other in zip([plain, *outputs], outputs, strict=False):
        assert ((one - other).abs().amax(dim=2) > 1e-6).all()
    mixed = output(task_numbers([TASK_NAMES[3], None]))
    assert (mixed - torch.stack([outputs[3][0], plain[1]])).abs().max() < 1e-5


def test_a_network_without_tasks_has_the_weights_of_the_built_in_ones():
    assert not [name for name in network().state_dict() if "task" in name]
    assert len(network(tasks=10).state_dict()) == len(network().state_dict()) + 1


def test_the_three_terms_are_shares_of_one_mean_over_their_own_tokens():
    latents = random_latents(SPECS["grid of ids"])
    state = torch.tensor([[2, 2, 1, 1, 1, 0, 0, 0]] * 2)
    told = condition(known=random_latents(SPECS["grid of ids"], seed=9), token_state=state)

    def terms(**config):
        return network(**config).losses(latents, told, generators=seeded([0, 1]))

    plain = terms()
    assert set(plain) == {"masked", "refined"}
    assert terms(refine_weight=0.0)["refined"] == 0
    commit = terms(reconstruction_weight=1.0)
    assert set(commit) == {"masked", "refined", "reconstructed"}
    assert all(term > 0 for term in commit.values())
    everywhere = replace(told, token_state=torch.zeros_like(state))
    together = network().losses(latents, everywhere, generators=seeded([0, 1]))
    alone = network().losses(latents, condition(), generators=seeded([0, 1]))
    assert together["refined"] == 0
    assert torch.equal(together["masked"], alone["masked"])


def test_known_tokens_are_seen_as_the_condition_has_them():
    latents, given = random_latents(SPECS["grid of ids"]), random_latents(SPECS["grid of ids"], seed=9)
    state = torch.zeros(2, 8, dtype=torch.long)
    state[:, :3] = TokenState.KNOWN
    model = network(token_weight=0.0)
    told = condition(known=given, token_state=state)
    other = latents.ids.clone()
    other[:, :3] = (other[:, :3] + 1) % 32
    one, two = (model.losses(clip, told, generators=seeded([0, 1])) for clip in (latents, replace(latents, ids=other)))
    assert torch.equal(one["masked"], two["masked"]), "the clip's own tokens at known places play no part"
    changed = replace(told, known=latents)
    assert not torch.equal(one["masked"], model.losses(latents, changed, generators=seeded([0, 1]))["masked"])


# ------------------------------------------------------------------------------------------------------ the pipeline


@pytest.mark.parametrize("task", TASKS)
def test_every_task_runs_and_its_known_pixels_come_back_unchanged(task):
    pipe = class_pipeline()
    video = torch.rand(2, 3, 5, 16, 16, generator=seed()) * 2 - 1
    labels = [3, 31] if TASKS[task].takes_class else None
    prompt = None if labels else ["", ""]
    frames = pipe(prompt, class_label=labels, task=task, video=video, generator=seed(), output_type="pt").frames
    pixels = frames.transpose(1, 2)
    known = known_mask(task, (5, 16, 16)).expand_as(pixels)
    assert pixels.shape == video.shape
    assert torch.equal(pixels[known], (video / 2 + 0.5)[known])
    assert task == "class_generation" or known.any()
    assert (pixels - (video / 2 + 0.5))[~known].abs().mean() > 0.01


def test_the_task_and_the_class_change_the_video_and_a_label_is_its_name():
    pipe = class_pipeline()

    def made(**call):
        return pipe(generator=seed(), output_type="latent", temperature=0.0, **call).frames.ids

    assert torch.equal(made(class_label=2), made(prompt="red triangle"))
    assert not torch.equal(made(class_label=2), made(class_label=9))
    assert not torch.equal(made(class_label=2), made(class_label=2, task="class_generation"))
    both = made(class_label=[2, 9])
    assert torch.equal(both[:1], made(class_label=2))


def test_fewer_frames_than_asked_for_are_known_whole_whatever_the_task():
    video = torch.rand(1, 3, 3, 16, 16, generator=seed()) * 2 - 1
    frames = class_pipeline()("", task="frame_prediction", video=video, generator=seed(), output_type="pt").frames
    assert torch.equal(frames[:, :3].transpose(1, 2), video / 2 + 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"class_label": 1, "prompt": "red star"}, "not both"),
        ({"class_label": 32}, "none of the 32 classes"),
        ({"prompt": "red", "task": "class_generation"}, "no class 'red'; nearest: red"),
        ({"prompt": "", "task": "prediction"}, "there is no task 'prediction'"),
    ],
)
def test_mistakes_in_class_and_task_say_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        class_pipeline()(**call)


def test_a_class_label_is_refused_by_a_pipeline_that_is_told_text():
    with pytest.raises(ValueError, match="needs a ClassEncoder, this pipeline has WordTextEncoder"):
        tiny_pipeline()(class_label=1)


# ---------------------------------------------------------------------------------------------------------- training


def test_one_network_trains_on_all_ten_tasks_with_classes(tmp_path):
    pipeline = class_pipeline(reconstruction_weight=0.1)
    run = tiny_run(tmp_path, tasks=("all",), steps=30, sample_every=30, checkpoint_every=30, validate_every=15)
    model = train_generator(run, pipeline=pipeline)
    loaded = MaskedVideoPipeline.from_pretrained(model)
    assert loaded.text_encoder.class_names == SHAPE_CLASSES
    assert loaded.transformer.config.tasks == 10
    assert loaded.transformer.knows_partial
    loaded.set_progress_bar_config(disable=True)
    assert loaded(class_label=5, task="class_generation", output_type="pt").frames.isfinite().all()


def test_a_network_says_whether_it_was_trained_on_tasks_and_does_not_forget():
    pipeline = class_pipeline()
    for tasks, knows in (((), False), (("central_inpainting",), True), ((), True)):
        GeneratorStep(pipeline, drop_text=0.0, known_frames=0.1, tasks=tasks)
        assert pipeline.transformer.knows_partial == knows


def test_each_sample_draws_its_own_task_and_gets_its_mask():
    pipeline = class_pipeline()
    step = GeneratorStep(pipeline, drop_text=0.0, known_frames=0.1, tasks=["all"])
    seen = []
    pipeline.transformer.losses = lambda latents, condition, *, generators: seen.append(condition) or {}
    batch = batch_of(training_clips(tiny_run(Path("unused")).data))
    for start in range(0, 80, 4):
        step(batch, seeded(range(start, start + 4)))
    tasks = torch.cat([condition.task for condition in seen])
    states = torch.cat([condition.token_state for condition in seen])
    assert set(tasks.tolist()) == set(range(10))
    whole = (states == TokenState.UNKNOWN).all(dim=1)
    assert torch.equal(whole, tasks == TASK_NAMES.index("class_generation"))
    step(batch, seeded(range(4)))
    assert torch.equal(seen[-1].task, seen[0].task)
    assert seen[0].mask.all(), "the class is told"


def test_class_labels_reach_the_model_from_clips_and_from_the_cache(tmp_path):
    pipeline = class_pipeline()
    clips = training_clips(tiny_run(tmp_path).data)
    labels = [clips[index]["class_label"] for index in range(4)]
    assert [SHAPE_CLASSES[label].split()[0] in clips[i]["caption"] for i, label in enumerate(labels)] == [True] * 4
    step = GeneratorStep(pipeline, drop_text=0.0, known_frames=0.0)
    fresh = step.condition(batch_of(clips))
    assert torch.equal(fresh.states[:, 0], pipeline.text_encoder.embedding.weight[labels])
    encoded = encoded_clips(
        tmp_path, clips, count=4, key="k", tokenizer=pipeline.video_tokenizer, text_encoder=None, say=print
    )
    kept = step.condition(collate_encoded([encoded[index] for index in range(4)]))
    assert torch.equal(kept.states, fresh.states)
    without = {name: value for name, value in batch_of(clips).items() if name != "class_label"}
    with pytest.raises(ValueError, match="--objects 1"):
        step.condition(without)


def test_tasks_need_pixels_and_classes_replace_a_text_encoder(tmp_path):
    with pytest.raises(ValueError, match="--cached-clips 0"):
        tiny_run(tmp_path, tasks=("all",), cached_clips=8)
    with pytest.raises(ValueError, match="leave one of"):
        tiny_run(tmp_path, classes=True, text_encoder="t5")
    with pytest.raises(ValueError, match="no task 'everything'"):
        GeneratorStep(class_pipeline(), drop_text=0.0, known_frames=0.0, tasks=["everything"])


def test_collated_clips_without_classes_have_none(tmp_path):
    data = replace(tiny_run(tmp_path).data, objects=(1, 2))
    assert "class_label" not in collate([training_clips(data)[0]])


def test_a_model_of_tasks_starts_from_one_without():
    earlier, later = network(refine_weight=0.5), network(tasks=len(TASKS), reconstruction_weight=0.1)
    fresh = later.task_embedding.states.weight.clone()
    with torch.no_grad():
        for tensor in earlier.parameters():
            tensor.add_(1)
    take_weights(later, earlier, source="somewhere")
    assert torch.equal(later.task_embedding.states.weight, fresh)
    taken = earlier.state_dict()
    assert all(
        torch.equal(tensor, taken[name]) for name, tensor in later.state_dict().items() if "task_embedding" not in name
    )
    back = network()
    take_weights(back, later, source="somewhere")
    assert all(torch.equal(tensor, taken[name]) for name, tensor in back.state_dict().items())


def test_classes_after_words_keep_the_network_and_the_words_states(tmp_path):
    run = replace(
        tiny_run(tmp_path, classes=True), preset="shapes-masked", tokenizer="shapes-fsq", init_from="shapes-masked"
    )
    pipe, words = fresh_pipeline(run), vidgen.load("shapes-masked")
    assert pipe.text_encoder.class_names == SHAPE_CLASSES
    for name in ("transformer_blocks.0.attn.to_out.weight", "proj_out.to_logits.0.weight"):
        assert torch.equal(pipe.transformer.get_parameter(name), words.transformer.get_parameter(name))
    circle = words.text_encoder.encode([SHAPE_CLASSES[0]])
    mean = circle.states[0, circle.mask[0]].mean(dim=0)
    assert torch.allclose(pipe.text_encoder.encode([SHAPE_CLASSES[0]]).states[0, 0], mean, atol=1e-5)
