"""Are diffusers' autoencoders whole tokenizers here: any size, true specs, their own results, saved and loaded?"""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_autoencoders import SMALL, small_autoencoder
from torch import Tensor

import vidgen
from vidgen.conditioning import WordTextEncoder
from vidgen.nn.random import seeded
from vidgen.pipelines.presets import PIPELINE_PRESETS
from vidgen.tokenizers import DiffusersAutoencoderTokenizer
from vidgen.tokenizers.diffusers_families import FAMILIES

CAUSAL = {
    "wan",
    "wan-2.2",
    "hunyuan-1.5",
    "svd",
    "ltx",
    "ltx-2",
    "ltx-noise",
    "mochi",
    "cosmos",
    "magvit",
    "vidtok-kl",
    "vidtok-fsq",
}
STREAMS = {"wan", "wan-2.2", "cogvideox", "kvae"}
OWN_FRAMES = {"mochi": 19}  # a clip length that the autoencoder of diffusers itself gives back; 17 for the others
each = pytest.mark.parametrize("name", SMALL)


def small(name: str) -> DiffusersAutoencoderTokenizer:
    return DiffusersAutoencoderTokenizer.around(small_autoencoder(name))


def clip(frames: int, height: int = 32, width: int = 32, *, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_there_is_a_small_one_of_every_family():
    assert {kind for kind, _ in SMALL.values()} == set(FAMILIES)


@each
@pytest.mark.parametrize(
    "frames", [1, 18, *(pytest.param(length, marks=pytest.mark.slow) for length in (2, 9, 16, 26))]
)
def test_any_clip_comes_back_as_long_and_as_large_as_it_was(name: str, frames: int):
    tokenizer = small(name)
    latents = tokenizer.encode(clip(frames, 28, 30))
    video = tokenizer.decode(latents)
    assert video.shape == (1, 3, frames, 28, 30)
    assert video.isfinite().all()


@each
def test_the_spec_tells_the_truth_about_causality(name: str):
    tokenizer = small(name)
    assert tokenizer.spec.causal == (name in CAUSAL)
    assert tokenizer.spec.streamable == (name in STREAMS)
    known = tokenizer.stride[0] + tokenizer.lone_first
    rows = 1 + tokenizer.lone_first
    video = clip(29)
    other = torch.cat([video[:, :, :known], -video[:, :, known:]], dim=2)
    change = (tokenizer.encode(video).grid() - tokenizer.encode(other).grid())[:, :, :rows].abs().max().item()
    assert change == 0.0 if name in CAUSAL else change > 1e-3


@pytest.mark.parametrize("name", sorted(STREAMS))
@pytest.mark.parametrize("size", [1, 3, 8, 17])
def test_streams_equal_one_shot_bit_by_bit(name: str, size: int):
    tokenizer, video = small(name), clip(31)
    whole = tokenizer.encode(video)
    chunks = list(tokenizer.encode_stream(video.split(size, dim=2)))
    assert torch.equal(whole.join(chunks).tokens, whole.tokens)
    assert torch.equal(torch.cat(list(tokenizer.decode_stream(whole.split(size))), dim=2), tokenizer.decode(whole))


@pytest.mark.parametrize("name", sorted(set(SMALL) - STREAMS))
def test_those_that_do_not_stream_say_why(name: str):
    tokenizer = small(name)
    with pytest.raises(ValueError, match=r"does not stream: .+; use encode and decode on whole clips"):
        tokenizer.encode_stream([clip(5)])
    with pytest.raises(ValueError, match="does not stream"):
        tokenizer.decode_stream([tokenizer.encode(clip(5))])


def own_round_trip(name: str, autoencoder: Any, video: Tensor) -> tuple[Tensor, Tensor]:
    """Latents and video of the public interface of diffusers."""
    if name.startswith("vidtok"):
        latents = autoencoder(video, sample_posterior=False, encoder_mode=True)
        video = autoencoder(video, sample_posterior=False).sample
        return (latents[0] if isinstance(latents, tuple) else latents), video
    if name == "svd":  # takes images, and says how many of them are a video when it decodes
        images = autoencoder.encode(video[0].transpose(0, 1)).latent_dist.mode()
        decoded = autoencoder.decode(images, num_frames=len(images)).sample
        return images.transpose(0, 1)[None], decoded.transpose(0, 1)[None]
    latents = autoencoder.encode(video).latent_dist.mode()
    if name == "ltx-noise":
        torch.manual_seed(0)
        return latents, autoencoder.decode(latents, torch.zeros(1)).sample
    decoded = autoencoder.decode(latents).sample
    return latents, decoded.transpose(1, 2) if name == "allegro" else decoded  # Allegro's puts frames before channels


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "allegro" else name for name in SMALL]
)
@torch.no_grad()
def test_where_diffusers_gives_the_clip_back_the_result_is_its_own(name: str):
    autoencoder = small_autoencoder(name)
    tokenizer = DiffusersAutoencoderTokenizer.around(autoencoder)
    video = clip(OWN_FRAMES.get(name, 17))
    if name == "allegro":  # it runs in tiles of this size only
        autoencoder.enable_tiling()
        video = clip(24, 128, 128)
    if name == "vidtok-not-causal":
        video = clip(16)
    if name == "ltx-2":  # its decoder mirrors edges of two rows and more
        video = clip(17, 64, 64)
    expected, expected_video = own_round_trip(name, autoencoder, video)
    latents = tokenizer.encode(video)
    vectors = tokenizer.unstandardise(latents.tokens).unflatten(1, latents.spec.grid(latents.size)).movedim(-1, 1)
    torch.testing.assert_close(vectors, expected[:, :, : vectors.shape[2]], rtol=1e-4, atol=1e-5)
    decoded = expected_video[:, :, : video.shape[2]].clamp(-1, 1)
    torch.testing.assert_close(tokenizer.decode(latents), decoded, rtol=1e-4, atol=1e-4)


@each
@torch.no_grad()
def test_clips_of_a_batch_do_not_meet(name: str):
    tokenizer, video = small(name), clip(5, batch=2)
    latents = tokenizer.encode(video)
    alone = tokenizer.encode(video[1:])
    torch.testing.assert_close(latents.tokens[1:], alone.tokens, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tokenizer.decode(latents)[1:], tokenizer.decode(alone), rtol=1e-3, atol=1e-3)


def test_the_strides_of_ltx_2_are_the_published_ones():
    assert small("ltx-2").stride == (8, 32, 32)


@torch.no_grad()
def test_ids_are_those_of_vidtok():
    autoencoder = small_autoencoder("vidtok-fsq")
    tokenizer = DiffusersAutoencoderTokenizer.around(autoencoder)
    video = clip(9)
    _, expected = autoencoder(video, encoder_mode=True)
    latents = tokenizer.encode(video)
    assert latents.ids is not None
    assert torch.equal(latents.ids[..., 0], expected.flatten(1).long())
    assert len(latents.ids.unique()) > 5
    assert torch.equal(tokenizer.ids_from_reals(latents.tokens), latents.ids)


def test_latents_are_normalised_as_the_pipelines_of_diffusers_do():
    wan, mochi = small("wan"), small("mochi")
    config = wan.autoencoder.config
    z = wan.autoencoder.encode(clip(1)).latent_dist.mode()
    mean, deviation = torch.tensor(config.latents_mean), torch.tensor(config.latents_std)
    expected = (z - mean.view(1, -1, 1, 1, 1)) / deviation.view(1, -1, 1, 1, 1)
    torch.testing.assert_close(wan.encode(clip(1)).grid(), expected)
    assert torch.equal(mochi.latent_std, torch.tensor(mochi.autoencoder.config.latents_std))
    for name, factor in {"cogvideox": 1.15258426, "hunyuan": 0.476986, "ltx-noise": 0.5}.items():
        torch.testing.assert_close(small(name).latent_std, torch.ones(small(name).spec.channels) / factor)
    cosmos = small("cosmos")
    assert cosmos.latent_mean.shape == (16,)
    assert 0.3 < cosmos.latent_std.mean() < 2.0


def test_a_decoder_that_draws_noise_gives_the_same_video_and_leaves_the_global_generator_alone():
    tokenizer = small("ltx-noise")
    with torch.no_grad():  # the scales of the noise begin at zero
        for weight_name, weight in tokenizer.autoencoder.decoder.named_parameters():
            if "per_channel_scale" in weight_name:
                weight.fill_(0.3)
    latents = tokenizer.encode(clip(9))
    before = torch.get_rng_state()
    first = tokenizer.decode(latents)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    assert torch.equal(tokenizer.decode(latents), first)


@each
def test_it_saves_and_loads(name: str, tmp_path):
    tokenizer = small(name)
    tokenizer.latent_mean += 0.25  # statistics are part of what is saved
    tokenizer.save_pretrained(tmp_path)
    again = vidgen.load(tmp_path)
    assert isinstance(again, DiffusersAutoencoderTokenizer)
    assert again.spec == tokenizer.spec
    video = clip(5)
    assert torch.equal(again.encode(video).tokens, tokenizer.encode(video).tokens)
    assert torch.equal(again.decode(again.encode(video)), tokenizer.decode(tokenizer.encode(video)))


def test_an_autoencoder_loads_from_its_folder_and_from_that_of_a_pipeline(tmp_path):
    autoencoder = small_autoencoder("wan")
    autoencoder.save_pretrained(tmp_path / "model")
    autoencoder.save_pretrained(tmp_path / "pipeline" / "vae")
    expected = DiffusersAutoencoderTokenizer.around(autoencoder).encode(clip(5)).tokens
    for folder in ("model", "pipeline"):
        tokenizer = vidgen.load(f"diffusers:{tmp_path / folder}")
        assert isinstance(tokenizer, DiffusersAutoencoderTokenizer)
        assert not tokenizer.training
        assert torch.equal(tokenizer.encode(clip(5)).tokens, expected)
    half = vidgen.load(f"diffusers:{tmp_path / 'model'}", dtype=torch.bfloat16)
    assert isinstance(half, DiffusersAutoencoderTokenizer)
    assert half.decode(half.encode(clip(5))).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["cosmos", "vidtok-kl", "vidtok-fsq"])
def test_networks_that_pool_in_three_dimensions_run_in_16_bits_on_a_cpu(name: str, dtype: torch.dtype):
    """PyTorch pools 16-bit numbers there in some memory layouts only."""
    tokenizer = small(name)
    latents = tokenizer.encode(clip(9))
    exact = tokenizer.decode(latents)
    tokenizer.autoencoder.to(dtype)
    low = tokenizer.encode(clip(9))
    if latents.ids is None:
        assert low.tokens.dtype == dtype
        assert (low.tokens.float() - latents.tokens).abs().mean() < 0.02
    decoded = tokenizer.decode(latents)
    assert decoded.dtype == dtype
    assert (decoded.float() - exact).abs().mean() < 0.02


def test_what_cannot_be_loaded_is_explained(tmp_path):
    with pytest.raises(ValueError, match=r"holds no autoencoder: expected config\.json or vae/config\.json"):
        vidgen.load(f"diffusers:{tmp_path}")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(ValueError, match=r"one of AutoencoderKLAllegro, .* got a AutoencoderKL$"):
        vidgen.load(f"diffusers:{tmp_path}")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKLWan"}))
    with pytest.raises(ValueError, match="holds no weights"):
        vidgen.load(f"diffusers:{tmp_path}")
    with pytest.raises(ValueError, match=r"got a AutoencoderKL$"):
        DiffusersAutoencoderTokenizer({"_class_name": "AutoencoderKL"})
    with pytest.raises(ValueError, match=r"got a AutoencoderKLMiniMaxH3: it keeps 5n \+ 2 rows of tokens"):
        DiffusersAutoencoderTokenizer({"_class_name": "AutoencoderKLMiniMaxH3"})


@pytest.mark.parametrize("name", ["hunyuan", "vidtok-fsq"])
def test_a_pipeline_with_one_makes_saves_and_loads_videos(name: str, tmp_path):
    tokenizer = small(name)
    preset = PIPELINE_PRESETS["shapes-masked" if tokenizer.spec.discrete else "shapes-flow"].tiny()
    text = WordTextEncoder(width=16, layers=1, heads=2, buckets=64)
    config = {key: value for key, value in preset.config.items() if key != "patch"}
    pipe: Any = replace(preset, config=config).build(tokenizer, text)
    pipe.save_pretrained(tmp_path)
    call: Any = {"prompt": "a red circle", "num_frames": 6, "height": 12, "width": 20, "output_type": "pt"}
    videos = []
    loaded: Any = vidgen.load(tmp_path)
    for made in (pipe, loaded):
        made.set_progress_bar_config(disable=True)
        videos.append(made(**call, generator=torch.Generator().manual_seed(0)).frames)
    assert videos[0].shape == (1, 6, 3, 12, 20)
    assert torch.equal(*videos)


@each
def test_training_reaches_the_first_and_the_last_layer(name: str):
    tokenizer = small(name).train()
    losses = tokenizer.training_losses(clip(9, batch=2), generators=seeded([0, 1]))
    assert ("kl" in losses) == (name not in {"cosmos", "vidtok-fsq"})
    sum(losses.values(), torch.zeros(())).backward()
    first = next(weight for weight in tokenizer.autoencoder.encoder.parameters() if weight.ndim > 1)
    for weight in (first, tokenizer.last_layer(5)):
        assert weight.grad is not None
        assert weight.grad.isfinite().all()
        assert weight.grad.abs().sum() > 0


def test_another_bottleneck_makes_ids_of_a_public_autoencoder(tmp_path):
    config = {"_class_name": "AutoencoderKLWan", **SMALL["wan"][1], "z_dim": 4}
    tokens: dict[str, Any] = {"bottleneck_type": "fsq", "bottleneck_options": {"levels": [8, 5, 5, 5]}}
    tokenizer = DiffusersAutoencoderTokenizer(config, **tokens)
    assert tokenizer.spec.parts[0].codebooks == (1000,)
    sum(tokenizer.training_losses(clip(5), generators=seeded([0])).values()).backward()
    tokenizer.eval().save_pretrained(tmp_path)
    again: Any = vidgen.load(tmp_path)
    latents = again.encode(clip(7))
    assert torch.equal(latents.ids, tokenizer.encode(clip(7)).ids)
    assert again.decode(latents).shape == (1, 3, 7, 32, 32)
    with pytest.raises(ValueError, match="latents of 4; 'fsq' takes 2 for 2"):
        DiffusersAutoencoderTokenizer(config, bottleneck_type="fsq", bottleneck_options={"levels": [8, 8]})
