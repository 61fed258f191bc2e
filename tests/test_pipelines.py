"""Do the three pipelines keep diffusers' contract, on every bottleneck: sizes, noise, known pixels, errors?"""

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, OPTIONS, PAIRS, SIZE, SPECS, clip, pipeline
from torch import Tensor

from vidgen.conditioning import Condition, TokenState
from vidgen.latents import Latents
from vidgen.nn.random import seeded
from vidgen.pipelines import VideoPipeline

each_pair = pytest.mark.parametrize(("family", "bottleneck"), PAIRS)
each_family = pytest.mark.parametrize("family", FAMILIES)
TEXT = "a red circle"


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def sample(pipe: VideoPipeline, **changes) -> Tensor:
    """Frames `b t 3 h w` of one small call."""
    call = {"prompt": TEXT, "generator": seed(), "output_type": "pt", **changes}
    return pipe(**call).frames


def latents_of(pipe: VideoPipeline, **changes) -> Latents:
    return sample(pipe, output_type="latent", **changes)


def distance(one: Tensor, other: Tensor) -> float:
    return (one.float() - other.float()).abs().max().item()


# ------------------------------------------------------------------------------------------------ the nine pairs


@each_pair
def test_the_loss_falls_and_the_trained_pipeline_samples(family, bottleneck):
    pipe = pipeline(family, bottleneck)
    latents = pipe.video_tokenizer.encode(clip(batch=2))
    pipe.transformer.train()
    optimizer = torch.optim.Adam([*pipe.transformer.parameters(), *pipe.text_encoder.parameters()], lr=3e-3)
    history = []
    for _ in range(15):
        text = pipe.text_encoder.encode([TEXT, "a blue star"])
        losses = pipe.transformer.losses(latents, Condition(text.states, text.mask), generators=seeded([0, 1]))
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(total.item())
    assert history[-1] < 0.9 * history[0]
    assert sample(pipe).isfinite().all()


@each_pair
@pytest.mark.parametrize("size", [(1, 16, 16), (6, 17, 11)])
def test_a_video_has_exactly_the_size_that_was_asked_for(family, bottleneck, size):
    frames, height, width = size
    video = sample(pipeline(family, bottleneck), num_frames=frames, height=height, width=width)
    assert video.shape == (1, frames, 3, height, width)
    assert 0 <= video.min() <= video.max() <= 1


@each_pair
def test_the_same_seed_makes_the_same_video_and_another_seed_another(family, bottleneck):
    pipe = pipeline(family, bottleneck)
    assert torch.equal(sample(pipe), sample(pipe))
    assert distance(sample(pipe), sample(pipe, generator=seed(1))) > 1e-3


@each_pair
@pytest.mark.parametrize("as_list", [False, True])
def test_a_video_does_not_depend_on_the_others_of_its_call(family, bottleneck, as_list):
    pipe = pipeline(family, bottleneck)
    prompts = [TEXT, "a large yellow star growing on a navy background"]
    alone = latents_of(pipe, prompt=prompts[0], generator=[seed(3)] if as_list else seed(3))
    both = latents_of(pipe, prompt=prompts, generator=[seed(3), seed(4)] if as_list else seed(3))
    assert distance(both.tokens[:1], alone.tokens) <= 1e-5
    if alone.ids is not None:
        assert torch.equal(both.ids[:1], alone.ids)
    assert distance(pipe.decode(both, "pt")[:1], pipe.decode(alone, "pt")) <= 1e-5


@each_family
def test_without_a_generator_torchs_seed_decides_and_keeps_its_course(family):
    pipe = pipeline(family)
    torch.manual_seed(5)
    first, after = sample(pipe, generator=None), torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(sample(pipe, generator=None), first)
    assert torch.equal(torch.rand(1), after), "a call must not reseed torch's global generator"
    assert not torch.equal(sample(pipe, generator=None), first)


# ---------------------------------------------------------------------------------------------------- the prompts


@each_family
def test_videos_of_one_prompt_lie_side_by_side_and_in_the_order_of_the_prompts(family):
    pipe = pipeline(family)
    prompts = [TEXT, "a blue star"]
    generators = [seed(number) for number in range(4)]
    videos = sample(pipe, prompt=prompts, num_videos_per_prompt=2, generator=generators)
    assert len(videos) == 4
    for index in range(4):
        alone = sample(pipe, prompt=prompts[index // 2], generator=seed(index))
        assert distance(videos[index], alone[0]) <= 1e-4, index


@each_family
def test_the_prompt_and_guidance_change_the_video(family):
    pipe = pipeline(family, "kl")
    plain = latents_of(pipe, guidance_scale=1.0).tokens
    assert not torch.equal(plain, latents_of(pipe, prompt="a large blue star", guidance_scale=1.0).tokens)
    assert not torch.equal(plain, latents_of(pipe, guidance_scale=8.0).tokens)
    assert torch.equal(plain, latents_of(pipe, guidance_scale=0.5).tokens), "guidance starts above 1"


@each_family
def test_a_negative_prompt_takes_part_and_an_empty_one_is_the_default(family):
    pipe = pipeline(family, "kl")
    plain = latents_of(pipe, guidance_scale=6.0).tokens
    assert distance(plain, latents_of(pipe, guidance_scale=6.0, negative_prompt="").tokens) <= 1e-5
    assert distance(plain, latents_of(pipe, guidance_scale=6.0, negative_prompt="a large blue star").tokens) > 1e-4
    one, many = (
        latents_of(pipe, prompt=[TEXT, TEXT], negative_prompt=negative, guidance_scale=6.0).tokens
        for negative in ("a star", ["a star", "a star"])
    )
    assert torch.equal(one, many)


@each_family
def test_embeddings_stand_for_the_prompts_that_they_were_made_of(family):
    pipe = pipeline(family)
    prompts = [TEXT, "a large blue star moving left"]
    embeds, mask, negative, negative_mask = pipe.encode_prompt(prompts, "a star")
    from_text = sample(pipe, prompt=prompts, negative_prompt="a star")
    from_embeds = sample(
        pipe,
        prompt=None,
        prompt_embeds=embeds,
        prompt_attention_mask=mask,
        negative_prompt_embeds=negative,
        negative_prompt_attention_mask=negative_mask,
    )
    assert torch.equal(from_text, from_embeds)
    assert (embeds.shape[0], negative.shape[0]) == (2, 2)


# ----------------------------------------------------------------------------------------------------- the outputs


@each_family
def test_every_output_type_shows_the_same_video(family):
    pipe = pipeline(family)
    tensor = sample(pipe, prompt=[TEXT, TEXT])
    array = sample(pipe, prompt=[TEXT, TEXT], output_type="np")
    images = sample(pipe, prompt=[TEXT, TEXT], output_type="pil")
    latents = sample(pipe, prompt=[TEXT, TEXT], output_type="latent")
    assert array.shape == (2, 5, 16, 16, 3)
    assert np.abs(array - tensor.permute(0, 1, 3, 4, 2).numpy()).max() == 0
    assert [len(video) for video in images] == [5, 5]
    assert np.abs(np.asarray(images[0][0], dtype=np.float32) / 255 - array[0, 0]).max() <= 0.5 / 255 + 1e-6
    assert torch.equal(pipe.decode(latents, "pt"), tensor)
    as_tuple = pipe(prompt=[TEXT, TEXT], generator=seed(), output_type="pt", return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], tensor)


@each_pair
def test_the_latents_file_is_written_before_decoding_and_decodes_to_the_frames(family, bottleneck, tmp_path):
    pipe = pipeline(family, bottleneck)
    frames = sample(pipe, latents_path=tmp_path / "run.safetensors", num_frames=6, height=17)
    latents = latents_of(pipe, num_frames=6, height=17)
    saved = Latents.load(tmp_path / "run.safetensors")
    assert torch.equal(saved.tokens, latents.tokens)
    assert (saved.ids is None) == (latents.ids is None) == (bottleneck == "kl")
    assert torch.equal(pipe.decode(saved, "pt"), frames)
    streamed = torch.cat([*pipe.decode_stream(saved)], dim=2)
    assert distance(streamed.permute(0, 2, 1, 3, 4) / 2 + 0.5, frames) <= 1e-6


def test_a_run_whose_decoding_fails_has_saved_its_latents(tmp_path, monkeypatch):
    pipe = pipeline()

    def out_of_memory(*_):
        raise MemoryError

    monkeypatch.setattr(pipe, "decode_stream", out_of_memory)
    with pytest.raises(MemoryError):
        sample(pipe, latents_path=tmp_path / "run.safetensors")
    assert Latents.load(tmp_path / "run.safetensors").size == (5, 16, 16)


# --------------------------------------------------------------------------------------------------- the callbacks


@each_pair
def test_a_callback_sees_every_step_and_its_latents_count(family, bottleneck):
    pipe = pipeline(family, bottleneck)
    seen = []

    def zero_at_the_end(pipe, step, timestep, tensors):
        seen.append((step, int(timestep), sorted(tensors)))
        if step == pipe.num_timesteps - 1:
            tensors["latents"] = torch.zeros_like(tensors["latents"])
        return tensors

    names = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    latents = latents_of(
        pipe, callback_on_step_end=zero_at_the_end, callback_on_step_end_tensor_inputs=names, guidance_scale=3.0
    )
    assert [step for step, _, _ in seen] == list(range(pipe.num_timesteps))
    assert all(given == sorted(names) for _, _, given in seen)
    if family == "diffusion" and latents.ids is not None:  # zeros are reals there: ids come last
        assert torch.equal(latents.ids, pipe.video_tokenizer.ids_from_reals(torch.zeros_like(latents.tokens)))
    else:
        assert not (latents.tokens if latents.ids is None else latents.ids).any()


@each_family
def test_a_callback_may_change_the_prompt_between_steps(family):
    pipe = pipeline(family, "kl")
    other = pipe.encode_prompt("a large blue star growing quickly")[0]

    def swap(pipe, step, timestep, tensors):
        return {"prompt_embeds": other[:, : tensors["prompt_embeds"].shape[1]]}

    changed = latents_of(pipe, callback_on_step_end=swap, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    assert distance(changed.tokens, latents_of(pipe).tokens) > 1e-4


@each_pair
def test_an_interrupted_run_stops_and_still_gives_a_whole_video(family, bottleneck):
    pipe = pipeline(family, bottleneck)
    steps = []

    def interrupt(pipe, step, timestep, tensors):
        steps.append(step)
        pipe._interrupt = step == 1
        return tensors

    video = sample(pipe, callback_on_step_end=interrupt)
    assert steps == [0, 1]
    assert video.shape == (1, 5, 3, 16, 16)
    assert video.isfinite().all()
    assert sample(pipe).isfinite().all(), "the next run is not interrupted"


@pytest.mark.parametrize("bottleneck", ["fsq", "kl"])
@pytest.mark.parametrize("order", ["random", "time", "frame", "confidence"])
def test_each_token_is_drawn_once_where_what_is_drawn_does_not_decide_the_order(order, bottleneck, monkeypatch):
    pipe = pipeline("masked", bottleneck)
    pipe.scheduler.register_to_config(choice_order=order)
    head, drawn = pipe.transformer.proj_out, []
    sample_whole = head.sample

    def counted(hidden, *others, **named):
        drawn.append(hidden.shape[:2].numel())
        return sample_whole(hidden, *others, **named)

    monkeypatch.setattr(head, "sample", counted)
    tokens = latents_of(pipe, num_inference_steps=6, guidance_scale=2.0).tokens.shape[1]
    assert sum(drawn) == tokens * (6 if order == "confidence" and bottleneck == "fsq" else 1)


@each_family
def test_a_cut_off_callback_of_diffusers_ends_guidance(family):
    from diffusers.callbacks import SDCFGCutoffCallback

    pipe = pipeline(family, "kl")
    plain = latents_of(pipe, guidance_scale=1.0).tokens
    guided = latents_of(pipe, guidance_scale=6.0).tokens
    cut = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=0)
    cut_off = latents_of(pipe, guidance_scale=6.0, callback_on_step_end=cut).tokens
    assert distance(cut_off, guided) > 1e-4
    assert distance(cut_off, plain) > 1e-6, "the first step was guided"


# ------------------------------------------------------------------------------------------------ known pixels


@each_pair
def test_known_first_frames_come_back_unchanged_and_their_tokens_are_never_altered(family, bottleneck):
    pipe = pipeline(family, bottleneck)
    first = clip(frames=5, seed=3)
    latents = latents_of(pipe, video=first, num_frames=9)
    encoded = pipe.video_tokenizer.encode(first)
    count = encoded.tokens.shape[1]
    if encoded.ids is None:
        assert distance(latents.tokens[:, :count], encoded.tokens) <= 1e-6
    else:
        assert torch.equal(latents.ids[:, :count], encoded.ids)
    video = sample(pipe, video=first, num_frames=9)
    assert torch.equal(video[:, :5], (first / 2 + 0.5).permute(0, 2, 1, 3, 4))
    assert not torch.equal(video[:, 5:], sample(pipe, num_frames=9)[:, 5:])


@each_family
def test_known_tokens_hold_at_every_step(family):
    pipe = pipeline(family)
    first = clip(frames=5, seed=3)
    known = pipe.video_tokenizer.encode(first).ids

    def look(pipe, step, timestep, tensors):
        if not tensors["latents"].is_floating_point():
            count = min(known.shape[1], tensors["latents"].shape[1])
            assert torch.equal(tensors["latents"][:, :count], known[:, :count])
        return tensors

    sample(pipe, video=first, num_frames=9, callback_on_step_end=look)


@each_family
def test_pixels_inside_the_mask_come_back_and_the_others_are_made(family):
    pipe = pipeline(family)
    known, mask = clip(seed=3), torch.zeros(16, 16, dtype=torch.bool)
    mask[:, :8] = True
    video = sample(pipe, video=known, mask=mask)
    wanted = (known / 2 + 0.5).permute(0, 2, 1, 3, 4)
    assert torch.equal(video[..., :8], wanted[..., :8])
    assert distance(video[..., 8:], wanted[..., 8:]) > 0.1


@each_family
def test_a_wholly_known_video_leaves_nothing_to_make_and_a_longer_one_begins_with_it(family):
    pipe = pipeline(family)
    known = clip(seed=3)
    with pytest.raises(ValueError, match="nothing is left to make; to go on after it ask for more num_frames"):
        sample(pipe, video=known)
    longer = sample(pipe, video=known, num_frames=9)
    assert torch.equal(longer[:, :5], (known / 2 + 0.5).permute(0, 2, 1, 3, 4))


@each_family
def test_masks_may_be_arrays_and_sizes_numpy_ints(family):
    pipe, mask = pipeline(family), np.zeros((5, 1, 1), dtype=bool)
    mask[:2] = True
    calls = [{"mask": mask, "num_frames": np.int64(5)}, {"mask": torch.from_numpy(mask)}, {"mask": mask.tolist()}]
    videos = [sample(pipe, video=clip(seed=3), generator=seed(1), **call) for call in calls]
    assert all(torch.equal(video, videos[0]) for video in videos)


@each_family
def test_known_frames_may_be_images_arrays_or_tensors(family):
    pipe = pipeline(family)
    images = sample(pipe, output_type="pil", num_frames=2)[0]
    array = np.stack([np.asarray(image) for image in images]).astype(np.float32) / 255
    tensor = torch.from_numpy(array).permute(3, 0, 1, 2) * 2 - 1
    videos = [sample(pipe, video=known, generator=seed(1)) for known in (images, array, tensor, [images], tensor[None])]
    assert all(distance(video, videos[0]) <= 1e-6 for video in videos)
    assert distance(videos[0][0, :2], torch.from_numpy(array).permute(0, 3, 1, 2)) <= 1e-6


@each_family
def test_one_known_video_serves_all_and_several_go_to_their_prompts(family):
    pipe = pipeline(family)
    pair = clip(frames=1, batch=2)
    videos = sample(pipe, prompt=[TEXT, TEXT], video=pair, num_videos_per_prompt=2)
    first = (pair / 2 + 0.5)[:, :, 0]
    assert torch.equal(videos[:, 0], first[[0, 0, 1, 1]])
    assert torch.equal(sample(pipe, prompt=[TEXT, TEXT], video=pair[:1])[:, 0], first[[0, 0]])


# ----------------------------------------------------------------------------------------------- the given latents


@pytest.mark.parametrize("bottleneck", OPTIONS)
def test_a_masked_run_decides_only_what_is_undecided(bottleneck):
    pipe = pipeline("masked", bottleneck)
    latents = latents_of(pipe)
    tokens = (latents.tokens if latents.ids is None else latents.ids).clone()
    tokens[:, :3] = float("nan") if latents.ids is None else -1
    again = latents_of(pipe, latents=tokens, generator=seed(7))
    result = again.tokens if again.ids is None else again.ids
    assert torch.equal(result[:, 3:], tokens[:, 3:])
    assert result.isfinite().all()
    assert (result >= 0).all() or again.ids is None


@pytest.mark.parametrize("bottleneck", OPTIONS)
def test_an_autoregressive_run_goes_on_from_given_tokens(bottleneck):
    pipe = pipeline("autoregressive", bottleneck)
    latents = latents_of(pipe)
    tokens = latents.tokens if latents.ids is None else latents.ids
    again = latents_of(pipe, latents=tokens[:, :5], generator=seed(7))
    result = again.tokens if again.ids is None else again.ids
    assert torch.equal(result[:, :5], tokens[:, :5])
    assert not torch.equal(result[:, 5:], tokens[:, 5:])


def test_a_diffusion_run_starts_from_the_given_noise():
    pipe = pipeline("diffusion", "kl")
    noise = torch.randn(1, 8, 4, generator=seed(9))
    one, other = (latents_of(pipe, latents=noise, generator=seed(number)).tokens for number in (1, 2))
    assert torch.equal(one, other)
    assert distance(one, latents_of(pipe).tokens) > 1e-3


# ------------------------------------------------------------------------------------------------- the other knobs


@pytest.mark.parametrize("family", ["masked", "autoregressive"])
def test_temperature_zero_takes_the_likeliest_codes_whatever_the_seed(family):
    pipe = pipeline(family)
    if family == "masked":
        pipe.scheduler.register_to_config(choice_temperature=0.0, choice_order="confidence")
    one, other = (latents_of(pipe, temperature=0.0, generator=seed(number)).ids for number in (1, 2))
    assert torch.equal(one, other)
    # a single step: with one code left to draw from, all places are equally sure and their order is anybody's
    steps = {"num_inference_steps": 1} if family == "masked" else {}
    likeliest = latents_of(pipe, temperature=0.0, generator=seed(1), **steps).ids
    assert torch.equal(likeliest, latents_of(pipe, top_k=1, generator=seed(3), **steps).ids)


def test_guidance_can_stop_along_the_sequence():
    pipe = pipeline("autoregressive", "kl")
    plain = latents_of(pipe, guidance_scale=1.0).tokens
    pipe.scheduler.register_to_config(guidance_until=0.0)
    assert distance(latents_of(pipe, guidance_scale=9.0).tokens, plain) <= 1e-5


@each_family
def test_a_pipelines_own_defaults_are_what_a_call_leaves_out(family):
    pipe = pipeline(family)
    assert pipe.config.defaults["num_frames"] == 5
    assert sample(pipe).shape == (1, 5, 3, 16, 16)
    assert sample(pipe, num_frames=2, width=8).shape == (1, 2, 3, 16, 8)


@each_family
@pytest.mark.parametrize(
    ("bottleneck", "dtype"), [("fsq", torch.bfloat16), ("vq", torch.float16), ("kl", torch.float16)]
)
def test_half_precision_samples_without_nan_and_keeps_known_frames(family, bottleneck, dtype):
    pipe = pipeline(family, bottleneck).to(dtype=dtype)
    first = clip(frames=1)
    video = sample(pipe, video=first, num_candidates=2)
    assert video.isfinite().all()
    assert torch.equal(video[:, 0], (first / 2 + 0.5)[:, :, 0])


@each_family
def test_a_call_under_autocast_works(family):
    with torch.autocast("cpu", torch.bfloat16):
        assert sample(pipeline(family), num_candidates=2).isfinite().all()


# ---------------------------------------------------------------------------------------------------- the mistakes

MISTAKES = {
    "no prompt": ({"prompt": None}, "exactly one of prompt"),
    "both prompts": ({"prompt_embeds": torch.zeros(1, 2, 16)}, "exactly one of prompt"),
    "prompt of another type": ({"prompt": 3}, "str or a list"),
    "empty list": ({"prompt": []}, "str or a list"),
    "negatives do not match": ({"prompt": ["a", "b"], "negative_prompt": ["c"]}, "2 prompts need as many"),
    "mask without embeddings": ({"prompt_attention_mask": torch.ones(1, 2)}, "belongs to prompt_embeds"),
    "embeddings too wide": ({"prompt": None, "prompt_embeds": torch.zeros(1, 2, 5)}, "`b l 16`"),
    "no frames": ({"num_frames": 0}, "num_frames must be an int of at least 1"),
    "half a row": ({"height": 16.5}, "height must be an int"),
    "unknown output": ({"output_type": "gif"}, "output_type must be one of pil, np, pt, latent"),
    "no videos": ({"num_videos_per_prompt": 0}, "num_videos_per_prompt"),
    "unknown tensor": ({"callback_on_step_end_tensor_inputs": ["image"]}, "may hold"),
    "mask alone": ({"mask": torch.ones(5, 16, 16)}, "give the video as well"),
    "too few generators": ({"prompt": ["a", "b"], "generator": [seed()]}, "one generator for each of 2"),
    "known video too long": ({"video": clip(frames=9)}, "does not fit"),
    "known video too wide": ({"video": clip(width=24)}, "does not fit"),
    "known video of bytes": ({"video": torch.zeros(3, 5, 16, 16, dtype=torch.uint8)}, "must be floats"),
    "known video out of range": ({"video": 255 * torch.rand(3, 5, 16, 16)}, "scaled to"),
    "known array of bytes": ({"video": np.full((5, 16, 16, 3), 200, dtype=np.uint8)}, "scaled to"),
    "mask of another size": ({"video": clip(), "mask": torch.ones(5, 8, 8)}, "the mask of these known videos"),
    "mask of gray levels": ({"video": clip(), "mask": torch.full((5, 16, 16), 255)}, "has values from 255 to 255"),
    "two known videos for three": ({"prompt": ["a"] * 3, "video": clip(batch=2)}, "do not fit 3 videos"),
    "no folder for the latents": ({"latents_path": "no/such/folder/run.safetensors"}, "does not exist"),
    "a seed for a generator": ({"generator": 0}, "a torch.Generator or a list of them, got 0"),
    "guidance that is no number": ({"guidance_scale": float("nan")}, "a number of at least 0"),
    "guidance in words": ({"guidance_scale": "2"}, "a number of at least 0"),
    "no steps": ({"num_inference_steps": 0}, "at least 1|flow_steps ≥ 1"),
    "latents of another shape": ({"latents": torch.zeros(1, 3, 9)}, "latents must be"),
    "too long a prompt": ({"prompt": "very long " * 60}, "at most 64"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_a_value_error_that_says_what_to_do(mistake):
    change, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        sample(pipeline("masked"), **change)


@each_family
@pytest.mark.parametrize("mistake", ["no prompt", "no steps", "latents of another shape", "known video too long"])
def test_all_pipelines_check_their_inputs(family, mistake):
    change, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        sample(pipeline(family, "kl"), **change)


def test_ids_beyond_the_codebook_are_refused():
    with pytest.raises(ValueError, match="ids up to 200"):
        latents_of(pipeline("masked"), latents=torch.full((1, 8, 1), 200))


def test_given_ids_are_held_against_the_codebooks_of_their_own_part(monkeypatch):
    pipe = pipeline("masked")
    monkeypatch.setattr(type(pipe.video_tokenizer), "spec", SPECS["two parts of ids"])  # 4 of 32 codes, then 2 of 8
    ids = torch.tensor([31, 31, 31, 31, 7, 7]).view(1, 6, 1)
    assert torch.equal(pipe.given_tokens(ids, SIZE), ids)
    with pytest.raises(ValueError, match=r"ids up to 8 of part 'motion', whose codebooks have \(8,\) codes"):
        pipe.given_tokens(ids + (ids == 7), SIZE)


def test_a_transformer_refuses_the_tokens_of_another_tokenizer():
    fsq, kl = pipeline("masked", "fsq"), pipeline("masked", "kl")
    with pytest.raises(ValueError, match="use the tokenizer that it was trained with"):
        type(fsq)(kl.video_tokenizer, fsq.text_encoder, fsq.transformer, fsq.scheduler)


def test_unknown_defaults_are_refused():
    pipe = pipeline()
    with pytest.raises(ValueError, match="defaults may hold"):
        type(pipe)(**pipe.components, defaults={"num_frame": 5})


@each_family
def test_a_pipeline_without_its_text_encoder_takes_embeddings_only(family):
    pipe = pipeline(family)
    embeds, mask, _, _ = pipe.encode_prompt(TEXT, do_classifier_free_guidance=False)
    expected = sample(pipe)
    pipe.text_encoder = None
    with pytest.raises(ValueError, match="no text encoder"):
        sample(pipe)
    assert torch.equal(sample(pipe, prompt=None, prompt_embeds=embeds, prompt_attention_mask=mask), expected)


@pytest.mark.parametrize(("trained", "state"), [(False, TokenState.UNKNOWN), (True, TokenState.PARTIAL)])
def test_known_pixels_that_cover_part_of_a_token_count_where_training_has_shown_such_tokens(trained, state):
    pipe = pipeline("masked")
    pipe.transformer.register_to_config(_knows_partial=trained)
    known = pipe.prepare_known(clip(frames=3), None, (5, 16, 16), 1)
    condition = pipe.build_condition(torch.zeros(1, 0, 16), torch.zeros(1, 0, dtype=torch.bool), known)
    assert condition.token_state.tolist() == [[TokenState.KNOWN] * 4 + [state] * 4]
