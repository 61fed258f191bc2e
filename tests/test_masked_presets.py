"""Are the presets of masked systems as large as published, do their tiny twins train, and do their parts do as told?"""

import pytest
import torch
from tiny_models import SIZE, SPECS, clip, random_latents, shake, tokenizer

from vidgen.conditioning import Condition
from vidgen.generators import MaskedTransformer, PrefixMaskedTransformer
from vidgen.latents import Latents
from vidgen.nn.random import seeded
from vidgen.pipelines import MaskedVideoPipeline
from vidgen.pipelines.masked_presets import MASKED_PRESETS
from vidgen.schedulers import AbsorbingScheduler
from vidgen.tokenizers.presets import TOKENIZER_PRESETS

PUBLISHED = {"magvit-b": 87e6, "magvit-l": 306e6, "magvit-v2-mlm": 307e6}  # the papers of MAGVIT and MAGVIT-v2


@pytest.mark.parametrize("name", MASKED_PRESETS)
def test_every_preset_fits_its_tokenizer_and_some_have_the_published_size(name):
    preset = MASKED_PRESETS[name]
    spec = TOKENIZER_PRESETS[preset.tokenizer].tiny().build().spec
    with torch.device("meta"):
        network = preset.generator(latent_spec=spec.to_json(), text_width=preset.text["width"], **preset.config)
    if name in PUBLISHED:
        assert network.num_parameters() == pytest.approx(PUBLISHED[name], rel=0.02)
    assert preset.about


@pytest.mark.parametrize("name", MASKED_PRESETS)
@pytest.mark.parametrize("bottleneck", ["fsq", "kl"])
def test_the_tiny_twin_of_every_preset_trains_and_samples_on_two_tokenizers(name, bottleneck):
    torch.manual_seed(0)
    pipe = MASKED_PRESETS[name].tiny().build(tokenizer(bottleneck))
    pipe.set_progress_bar_config(disable=True)
    prompts = list(MASKED_PRESETS[name].classes[:2]) or ["a red circle", "a blue star"]
    latents = pipe.video_tokenizer.encode(clip(batch=2))
    optimizer = torch.optim.Adam([*pipe.transformer.parameters(), *pipe.text_encoder.parameters()], lr=3e-3)
    history = []
    for _ in range(15):
        text = pipe.text_encoder.encode(prompts)
        losses = pipe.transformer.losses(latents, Condition(text.states, text.mask), generators=seeded([0, 1]))
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        history.append(sum(losses.values()).item())
    assert history[-1] < 0.9 * history[0]
    call = {"output_type": "pt", "guidance_scale": 2.0, "num_candidates": 2}
    frames = pipe(prompts, generator=seeded([0, 1]), **call).frames
    assert frames.shape == (2, 5, 3, 16, 16)
    assert frames.isfinite().all()
    alone = pipe(prompts[:1], generator=seeded([0]), **call).frames
    assert (alone - frames[:1]).abs().max() < 1e-4, "a video does not depend on the others of its call"


def network(kind=MaskedTransformer, *, layers: int = 1, **config):
    torch.manual_seed(0)
    built = kind(SPECS["grid of ids"].to_json(), text_width=8, width=24, layers=layers, heads=2, **config)
    shake(built)
    return built.eval()


def no_text(batch: int = 2) -> Condition:
    return Condition(torch.zeros(batch, 0, 8), torch.zeros(batch, 0, dtype=torch.bool))


@torch.no_grad()
def output(model, latents: Latents, condition: Condition | None = None):
    coordinates = latents.spec.coordinates(latents.size)
    inputs = model.condition_inputs(condition or no_text(len(latents)), coordinates)
    return model(latents.ids, torch.zeros(latents.ids.shape[:2], dtype=torch.bool), coordinates, **inputs)


# ------------------------------------------------------------------------------------------------------- the windows


@pytest.mark.parametrize("kind", [MaskedTransformer, PrefixMaskedTransformer])
@pytest.mark.parametrize(
    ("window", "reached"),
    [((1, 0, 0), [0, 1, 2, 3]), ((0, 1, 1), [0, 4]), ((0, 1, 2), [0, 1, 4, 5]), ((0, 0, 0), list(range(8)))],
)
def test_a_window_is_all_that_a_token_reaches_in_one_layer(kind, window, reached):
    latents = random_latents(SPECS["grid of ids"])  # 2×2×2 tokens
    other = Latents(latents.tokens, latents.ids.clone(), SIZE, latents.spec)
    other.ids[:, 0] = (other.ids[:, 0] + 1) % 32
    model = network(kind, windows=[window])
    changed = (output(model, latents) - output(model, other)).abs().amax(dim=(0, 2)) > 1e-6
    assert changed.nonzero()[:, 0].tolist() == reached


def test_windows_take_turns_and_whole_windows_are_no_windows():
    latents = random_latents(SPECS["grid of ids"])
    assert torch.allclose(output(network(windows=[(0, 0, 0)]), latents), output(network(), latents), atol=1e-5)
    model = network(layers=3, windows=[(1, 0, 0), (0, 1, 1)])
    patterns = model.patterns(8, (2, 2, 2))
    assert [pattern.granularity for pattern in patterns] == [(1, 2, 2), (2, 1, 1), (1, 2, 2)]
    with pytest.raises(ValueError, match="windows need tokens on one thw grid"):
        MaskedTransformer(SPECS["three planes"].to_json(), windows=[(1, 0, 0)])


# --------------------------------------------------------------------------------------------------------- the prefix


def test_a_class_in_front_counts_a_dropped_one_does_not_and_a_timeline_is_refused():
    model, latents = network(PrefixMaskedTransformer), random_latents(SPECS["grid of ids"])
    one, other = (
        Condition(torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(seed)), torch.ones(2, 1).bool())
        for seed in (1, 2)
    )
    assert ((output(model, latents, one) - output(model, latents, other)).abs().amax(dim=2) > 1e-6).all()
    assert torch.equal(output(model, latents, one.without_text()), output(model, latents, other.without_text()))
    timeline = Condition(one.states, one.mask, torch.tensor([[[0, 2]]]).expand(2, -1, -1))
    with pytest.raises(ValueError, match="needs cross-attention"):
        output(model, latents, timeline)


@pytest.mark.parametrize("name", ["magvit-b", "phenaki", "maskvit", "motionaura"])
def test_a_saved_pipeline_comes_back_bit_by_bit(name, tmp_path):
    torch.manual_seed(0)
    pipe = MASKED_PRESETS[name].tiny().build(tokenizer())
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path)
    loaded = MaskedVideoPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    prompt = next(iter(MASKED_PRESETS[name].classes), "a red circle")
    one, other = (p(prompt, generator=seeded([0]), output_type="latent").frames.ids for p in (pipe, loaded))
    assert torch.equal(one, other)
    assert isinstance(loaded.scheduler, AbsorbingScheduler) == (name == "motionaura")


# --------------------------------------------------------------------------------------------------------- the critic


def test_a_trained_critic_doubts_drawn_tokens_and_believes_true_ones():
    torch.manual_seed(0)
    model = MaskedTransformer(
        SPECS["grid of ids"].to_json(), text_width=8, width=32, layers=2, heads=2, self_critic_weight=1.0
    )
    latents = random_latents(SPECS["grid of ids"], batch=8)
    latents.ids[:] = torch.arange(8)[:, None] % 4  # one colour in the first four videos, one in the rest
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    history = []
    for step in range(60):
        losses = model.losses(latents, no_text(8), generators=seeded(range(step * 8, step * 8 + 8)))
        assert set(losses) == {"masked", "critic"}
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append(losses["critic"].item())
    assert sum(history[-10:]) < sum(history[:10])
    model.eval()
    wrong = latents.ids.clone()
    wrong[:, 3] = 20
    with torch.no_grad():
        coordinates = latents.spec.coordinates(SIZE)
        verdict = model.realness(wrong, coordinates, **model.condition_inputs(no_text(8), coordinates))
    assert (verdict[:, 3] < verdict[:, :3].min(dim=1).values).float().mean() > 0.8


def test_a_network_without_a_critic_says_so():
    latents = random_latents(SPECS["grid of ids"])
    coordinates = latents.spec.coordinates(SIZE)
    with pytest.raises(ValueError, match="no critic"):
        network().realness(latents.ids, coordinates, **network().condition_inputs(no_text(), coordinates))


# --------------------------------------------------------------------------------------------------- number formats


@pytest.mark.parametrize("name", ["magvit-b", "enat", "phenaki", "maskvit", "motionaura"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast_sample_and_train_without_nan(name, dtype):
    torch.manual_seed(0)
    pipe = MASKED_PRESETS[name].tiny().build(tokenizer())
    pipe.set_progress_bar_config(disable=True)
    prompt = next(iter(MASKED_PRESETS[name].classes), "a red circle")
    latents = pipe.video_tokenizer.encode(clip(batch=1))
    text = pipe.text_encoder.encode([prompt])
    with torch.autocast("cpu", torch.bfloat16):
        losses = pipe.transformer.losses(latents, Condition(text.states, text.mask), generators=seeded([0]))
    sum(losses.values()).backward()
    assert all(weight.grad.isfinite().all() for weight in pipe.transformer.parameters() if weight.grad is not None)
    first = clip(frames=1)
    video = pipe.to(dtype=dtype)(
        prompt, task="frame_prediction", video=first, generator=seeded([0]), output_type="pt", guidance_scale=2.0
    ).frames
    assert video.isfinite().all()
    assert torch.equal(video[:, 0], (first / 2 + 0.5)[:, :, 0])
