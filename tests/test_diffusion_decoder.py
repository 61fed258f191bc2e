"""Does a denoising decoder go round any tokenizer: sizes, streams, noise by frame, training, saving, pipelines?"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_autoencoders import small_autoencoder
from torch import Tensor

import vidgen
from vidgen.conditioning import WordTextEncoder
from vidgen.nn.random import seeded
from vidgen.pipelines.presets import PIPELINE_PRESETS
from vidgen.tokenizers import DiffusersAutoencoderTokenizer, DiffusionDecoderTokenizer, Tokenizer
from vidgen.tokenizers.diffusion_decoder import LEAST_LEVEL, frame_noise
from vidgen.tokenizers.presets import TOKENIZER_PRESETS
from vidgen.training.critic import FaithfulTerms, ReconstructionCritic
from vidgen.training.tokenizer_step import TokenizerStep

ENCODERS = ["shapes-kl", "shapes-fsq", "omnitokenizer-kl", "vitok-s-b", "larp", "coordtok", "vidtwin", "video-lavit"]
each_encoder = pytest.mark.parametrize("name", ENCODERS)


def small(name: str = "shapes-kl", **options: Any) -> DiffusionDecoderTokenizer:
    torch.manual_seed(0)
    encoder = TOKENIZER_PRESETS[name].tiny().build().eval()
    sizes = {"width": 16, "depth": 1, "block_frames": 4, "freeze_encoder": encoder.trains_on_pieces}
    return DiffusionDecoderTokenizer.around(encoder, **{**sizes, **options})


def clip(frames: int, height: int = 16, width: int = 16, *, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


@each_encoder
@pytest.mark.parametrize("size", [(1, 16, 16), (6, 13, 18)])
def test_any_tokenizer_gets_a_denoising_decoder_that_gives_back_what_went_in(name: str, size: tuple[int, int, int]):
    tokenizer = small(name)
    latents = tokenizer.encode(clip(*size))
    assert tokenizer.spec == tokenizer.encoder.spec
    assert torch.equal(latents.tokens, tokenizer.encoder.encode(clip(*size)).tokens)
    for steps in (None, 1):
        video = tokenizer.decode(latents, steps=steps)
        assert video.shape == (1, 3, *size)
        assert video.isfinite().all() and video.abs().max() <= 1


def test_no_steps_are_the_wrapped_decoder_and_a_negative_number_is_refused():
    tokenizer = small()
    latents = tokenizer.encode(clip(5))
    assert torch.equal(tokenizer.decode(latents, steps=0), tokenizer.encoder.decode(latents))
    with pytest.raises(ValueError, match="steps must be at least 0, got -1"):
        tokenizer.decode(latents, steps=-1)


def test_many_steps_tell_the_denoiser_no_level_that_it_was_not_trained_on():
    tokenizer, told = small(), []
    tokenizer.denoiser.register_forward_pre_hook(lambda module, inputs: told.append(inputs[1].min().item()))
    tokenizer.decode(tokenizer.encode(clip(1)), steps=20)
    assert len(told) == 20 and told[1] == pytest.approx(0.95)
    assert min(told) == pytest.approx(LEAST_LEVEL)


@pytest.mark.parametrize("name", ["shapes-kl", "omnitokenizer-kl"])
@pytest.mark.parametrize("rows", [1, 2])
def test_streams_equal_one_shot_bit_by_bit(name: str, rows: int):
    tokenizer = small(name)
    louder(tokenizer)
    latents = tokenizer.encode(clip(22, 15, 13))
    chunks = list(tokenizer.decode_stream(latents.split(rows)))
    assert len(chunks) > 1
    assert torch.equal(torch.cat(chunks, dim=2), tokenizer.decode(latents))
    assert torch.equal(
        latents.join(list(tokenizer.encode_stream(clip(22, 15, 13).split(3, dim=2)))).tokens, latents.tokens
    )


def louder(tokenizer: DiffusionDecoderTokenizer) -> None:
    """Make a fresh denoiser, which begins close to the coarse video, matter."""
    with torch.no_grad():
        tokenizer.denoiser.conv_out.conv.weight.mul_(30)


def test_a_longer_video_begins_with_the_same_frames():
    """Noise belongs to a frame, and the denoiser looks back alone."""
    tokenizer = small()
    louder(tokenizer)
    video = clip(17)
    longer, shorter = (tokenizer.decode(tokenizer.encode(video[:, :, :frames])) for frames in (17, 9))
    torch.testing.assert_close(longer[:, :, :9], shorter, rtol=0, atol=1e-5)


def test_noise_belongs_to_its_frame_and_to_its_sample():
    whole = frame_noise(torch.empty(2, 3, 6, 4, 4), start=0, seeds=[5, 7])
    assert torch.equal(frame_noise(torch.empty(1, 3, 2, 4, 4), start=3, seeds=[7]), whole[1:, :, 3:5])
    flat = whole.transpose(1, 2).flatten(0, 1).flatten(1)
    assert (torch.corrcoef(flat) - torch.eye(12)).abs().max() < 0.6

    tokenizer = small()
    louder(tokenizer)
    latents = tokenizer.encode(clip(3, batch=2))
    first = tokenizer.decode(latents, generators=seeded([1, 2]))
    assert torch.equal(first, tokenizer.decode(latents, generators=seeded([1, 2])))
    torch.testing.assert_close(first[1:], tokenizer.decode(latents[1:], generators=seeded([2])), rtol=0, atol=1e-5)
    assert not torch.allclose(first, tokenizer.decode(latents, generators=seeded([3, 4])), atol=1e-3)
    with pytest.raises(ValueError, match="expected one generator per sample, 2 in all, got 1"):
        tokenizer.decode(latents, generators=seeded([1]))


def train(tokenizer: Tokenizer, video: Tensor, *, steps: int) -> None:
    optimiser = torch.optim.Adam([w for w in tokenizer.train().parameters() if w.requires_grad], lr=5e-3)
    for step in range(steps):
        losses = tokenizer.training_losses(video, generators=seeded([step, step + 1000]))
        optimiser.zero_grad()
        sum(losses.values(), torch.zeros(())).backward()
        optimiser.step()
    tokenizer.eval()


@pytest.mark.parametrize("freeze", [False, True])
def test_training_lowers_the_error_and_a_frozen_encoder_stays_as_it_is(freeze: bool):
    tokenizer = small(freeze_encoder=freeze)
    video = torch.nn.functional.interpolate(clip(3, 3, 3, batch=2), size=(5, 16, 16), mode="trilinear")
    before = (tokenizer.decode(tokenizer.encode(video)) - video).abs().mean()
    weights = {name: weight.clone() for name, weight in tokenizer.encoder.named_parameters()}
    train(tokenizer, video, steps=120)
    after = (tokenizer.decode(tokenizer.encode(video)) - video).abs().mean()
    assert after < (0.9 if freeze else 0.7) * before
    unchanged = [torch.equal(weight, weights[name]) for name, weight in tokenizer.encoder.named_parameters()]
    assert all(unchanged) if freeze else not any(unchanged)


@each_encoder
def test_it_trains_around_any_tokenizer(name: str):
    if name == "coordtok":
        with pytest.raises(ValueError, match=r"trains on pieces of its clips, .* with freeze_encoder=True"):
            small(name, freeze_encoder=False)
    tokenizer = small(name).train()
    video = clip(8, batch=2)
    losses = tokenizer.training_losses(video, generators=seeded([0, 1]))
    assert "flow" in losses and ("l1" in losses) == (name != "coordtok")
    sum(losses.values(), torch.zeros(())).backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in tokenizer.denoiser.parameters())


def test_the_critic_judges_the_wrapped_reconstruction():
    tokenizer, seen = small(), []

    def critic(real: Tensor, fake: Tensor, *, own: Any, last_layer: Tensor) -> dict[str, Tensor]:
        seen.append((fake.shape, last_layer.shape))
        return {"mine": (real - fake).square().mean()}

    losses = tokenizer.train().training_losses(clip(5), generators=seeded([0]), critic=critic)
    assert seen and {"mine", "kl", "flow"} == losses.keys()


def test_a_frozen_encoder_has_no_gradients_and_nothing_to_be_judged():
    tokenizer = small(freeze_encoder=True)
    assert not any(weight.requires_grad for weight in tokenizer.encoder.parameters())
    assert all(weight.requires_grad for weight in tokenizer.denoiser.parameters())
    critic = ReconstructionCritic(FaithfulTerms()).at(0)
    with pytest.raises(ValueError, match="set freeze_encoder to False"):
        tokenizer.training_losses(clip(5), generators=seeded([0]), critic=critic)
    with pytest.raises(ValueError, match="set frame_masking to 0"):
        TokenizerStep(tokenizer, critic=ReconstructionCritic(FaithfulTerms()), statistics=None, frame_masking=0.5)


def test_it_saves_and_loads_and_makes_videos_in_a_pipeline(tmp_path):
    tokenizer = small("shapes-fsq")
    preset = PIPELINE_PRESETS["shapes-masked"].tiny()
    text = WordTextEncoder(width=16, layers=1, heads=2, buckets=64)
    pipe: Any = preset.build(tokenizer, text)
    pipe.save_pretrained(tmp_path)
    loaded: Any = vidgen.load(tmp_path)
    call: Any = {"prompt": "a red circle", "num_frames": 6, "height": 12, "width": 20, "output_type": "pt"}
    videos = []
    for made in (pipe, loaded):
        made.set_progress_bar_config(disable=True)
        videos.append(made(**call, generator=torch.Generator().manual_seed(0)).frames)
    assert videos[0].shape == (1, 6, 3, 12, 20)
    assert torch.equal(*videos)


def test_in_bf16_it_gives_bf16_pixels_near_the_exact_ones():
    tokenizer = small()
    latents = tokenizer.encode(clip(5))
    expected = tokenizer.decode(latents)
    video = tokenizer.bfloat16().decode(latents.to(torch.bfloat16))
    assert video.dtype == torch.bfloat16
    assert (video.float() - expected).abs().mean() < 0.05


def test_it_goes_round_a_public_autoencoder_too():
    tokenizer = DiffusionDecoderTokenizer.around(
        DiffusersAutoencoderTokenizer.around(small_autoencoder("hunyuan")), width=16, depth=1
    )
    latents = tokenizer.encode(clip(6, 20, 18))
    assert tokenizer.decode(latents).shape == (1, 3, 6, 20, 18)
    with pytest.raises(ValueError, match="AutoencoderKLHunyuanVideo does not stream"):
        tokenizer.decode_stream([latents])


def test_bad_configurations_fail_in_the_constructor_with_the_way_out():
    with pytest.raises(ValueError, match=r"encoder_config needs a _class_name of CausalConvTokenizer, .*; got None"):
        DiffusionDecoderTokenizer({})
    preset = TOKENIZER_PRESETS["epsilon-vae"].tiny()
    with pytest.raises(ValueError, match="width even, got 4, 6, 16 and width 15"):
        replace(preset, config={**preset.config, "width": 15, "depth": 6, "block_frames": 16}).build()
