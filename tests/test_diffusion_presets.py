"""Are the presets of diffusion systems as large as published, and do their tiny twins train and sample?"""

from typing import Any

import pytest
import torch
from tiny_models import clip, tokenizer

from vidgen.conditioning import Condition
from vidgen.generators import DiffusionTransformer
from vidgen.nn.random import seeded
from vidgen.pipelines import DiffusionVideoPipeline
from vidgen.pipelines.diffusion_presets import DIFFUSION_PRESETS
from vidgen.pipelines.presets import PIPELINE_PRESETS
from vidgen.tokenizers.presets import TOKENIZER_PRESETS

# Latte (arXiv 2401.03048), table 2; Flux (11.90 billion), whose 19 + 38 blocks Open-Sora 2 ("11B") takes over; and the
# sizes in the names or abstracts of the others' reports
PUBLISHED = {"latte-xl-2": 673.68e6, "stiv-m": 8.7e9, "step-video": 30e9, "lingen-4b": 4e9, "open-sora": 11.9e9}
CLOSE = {"latte-xl-2": 0.01}
TEXTS = ["a red circle", "a blue star"]


def prompts_of(name: str) -> list[str]:
    """Two prompts that the preset's text encoder knows: names of classes where it is told classes."""
    return list(DIFFUSION_PRESETS[name].classes[:2]) or TEXTS


@pytest.mark.parametrize("name", DIFFUSION_PRESETS)
def test_every_preset_fits_its_tokenizer_and_some_have_the_published_size(name):
    preset = DIFFUSION_PRESETS[name]
    assert preset.generator is DiffusionTransformer
    assert PIPELINE_PRESETS[name] is preset
    spec = TOKENIZER_PRESETS[preset.tokenizer].tiny().build().spec
    with torch.device("meta"):
        network = DiffusionTransformer(spec.to_json(), preset.text["width"], **preset.config)
    if name in PUBLISHED:
        assert network.num_parameters() == pytest.approx(PUBLISHED[name], rel=CLOSE.get(name, 0.03))
    assert preset.about


@pytest.mark.parametrize("bottleneck", ["kl", pytest.param("fsq", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", DIFFUSION_PRESETS)
def test_the_tiny_twin_of_every_preset_trains_and_samples_on_two_tokenizers(name, bottleneck):
    torch.manual_seed(0)
    pipe = DIFFUSION_PRESETS[name].tiny().build(tokenizer(bottleneck))
    assert isinstance(pipe, DiffusionVideoPipeline)
    pipe.set_progress_bar_config(disable=True)
    latents = pipe.video_tokenizer.encode(clip(batch=2))
    optimizer = torch.optim.Adam([*pipe.transformer.parameters(), *pipe.text_encoder.parameters()], lr=3e-3)
    history = []
    for _ in range(15):
        text = pipe.text_encoder.encode(prompts_of(name))
        losses = pipe.transformer.losses(latents, Condition(text.states, text.mask), generators=seeded([0, 1]))
        optimizer.zero_grad()
        (loss,) = losses.values()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.9 * history[0]
    call = {"output_type": "pt", "guidance_scale": 2.0, "num_candidates": 2}
    frames = pipe(prompts_of(name), generator=seeded([0, 1]), **call).frames
    assert frames.shape == (2, 5, 3, 16, 16)
    assert frames.isfinite().all()


def test_the_causal_preset_makes_a_video_chunk_by_chunk():
    torch.manual_seed(0)
    pipe: Any = DIFFUSION_PRESETS["vid-gpt"].tiny().build(tokenizer("kl"))
    pipe.set_progress_bar_config(disable=True)
    frames = pipe(TEXTS[0], num_frames=13, chunk_frames=1, num_candidates=2, output_type="pt").frames
    assert frames.shape == (1, 13, 3, 16, 16)


def test_a_preset_with_another_sampler_comes_back_from_disk(tmp_path):
    torch.manual_seed(0)
    pipe: Any = DIFFUSION_PRESETS["latte-xl-2"].tiny().build(tokenizer("kl"))
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path)
    loaded: Any = DiffusionVideoPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is type(pipe.scheduler)
    call = {"class_label": 3, "output_type": "pt"}
    one, other = (made(**call, generator=seeded([0])[0]).frames for made in (pipe, loaded))
    assert torch.equal(one, other)
