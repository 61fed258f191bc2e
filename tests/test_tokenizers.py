"""Does every tokenizer give back what it was given: any length, any size, any bottleneck, saved and loaded?"""

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from einops import rearrange
from small_bottlenecks import OPTIONS
from torch import Tensor, nn

import vidgen
from vidgen.bottlenecks import BOTTLENECKS
from vidgen.conditioning.known import last_frames
from vidgen.latents import Latents
from vidgen.nn.random import seeded
from vidgen.tokenizers import CausalConvTokenizer, Tokenizer
from vidgen.tokenizers.causal_conv import halvings
from vidgen.tokenizers.presets import TOKENIZER_PRESETS

PARAMETERS = {
    "shapes-fsq": 2_026_804,
    "shapes-vq": 2_048_312,
    "shapes-kl": 2_049_856,
    "worlds-fsq": 2_026_804,
    "digits-fsq": 2_026_804,
    "digits-kl": 2_049_856,
    "real-fsq": 2_086_806,
    "real-kl": 2_134_192,
    "base-fsq": 14_921_874,
    "base-vq": 14_943_380,
    "base-kl": 15_035_564,
    "base-ae": 15_029_404,
    "base-simvq": 14_943_444,
    "base-stochastic-vq": 15_160_476,
    "base-joint-vq": 15_287_476,
    "base-lfq": 15_050_910,
    "base-bsq": 15_050_910,
    "base-adacode": 15_029_472,
    "base-residual-vq": 14_943_380,
    "base-residual-fsq": 14_900_368,
    "base-product-vq": 15_029_404,
    "deep-kl": 29_055_020,
    "magvit-v2": 371_182_869,
    "beit-dvae": 99_589_123,
    "motionaura-tokenizer": 28_076_051,
    "vidtok-kl": 159_860_491,
    "vidtok-fsq-8x8x8": 160_594_184,
    "vidtok-kl-4x16x16": 198_005_539,
    "wf-vae": 14_631_992,
    "cosmos-8x8x8": 24_595_664,
    "cosmos-8x16x16": 46_629_584,
    "epsilon-vae": 20_629_708,
    "divot-tokenizer": 259_540_080,
    "semanticist": 180_674_384,
    "omnitokenizer-vq": 51_273_672,
    "omnitokenizer-kl": 51_277_776,
    "c-vivit": 50_904_672,
    "bsq-vit": 170_370_258,
    "bsq-vit-36": 170_397_924,
    "vq-kd": 171_277_088,
    "imagefolder": 171_511_232,
    "spae": 14_946_948,
    "ccvit-centroids": 37_056,
    "put-tokenizer": 13_004_672,
    "tooncrafter-decoder": 47_948_491,
    "vitok-s-b": 128_753_696,
    "vitok-s-l": 426_500_768,
    "larp": 193_462_432,
    "one-d-piece": 171_443_736,
    "coordtok": 831_840_104,
    "vidtwin": 258_726_952,
    "video-lavit": 25_497_673,
}
# Millions that papers and repositories report for the whole tokenizer, its prior included.
PUBLISHED = {
    "beit-dvae": 97.6,
    "omnitokenizer-vq": 53.7,
    "bsq-vit": 173.6,
    "magvit-v2": 370.6,
    "vitok-s-b": 129.1,
    "vitok-s-l": 427.0,
    "larp": 193.9,
    "coordtok": 853.4,
    "vidtok-kl": 157.5,
    "vidtok-fsq-8x8x8": 165.0,
    "vidtok-kl-4x16x16": 199.5,
}
# diffusers' class of a system, with the options that make it the model of a preset.
PUBLIC = {
    "vidtok-kl": ("AutoencoderVidTok", {}),
    "vidtok-fsq-8x8x8": (
        "AutoencoderVidTok",
        {"z_channels": 5, "tempo_ds": [0, 1, 2], "tempo_us": [1, 2, 3]},
    ),
    "vidtok-kl-4x16x16": (
        "AutoencoderVidTok",
        {
            "z_channels": 16,
            "ch_mult": [1, 2, 4, 4, 4],
            "spatial_ds": [0, 1, 2, 3],
            "spatial_us": [1, 2, 3, 4],
        },
    ),
}

DISCRETE = [name for name, preset in TOKENIZER_PRESETS.items() if preset.tiny().build().spec.discrete]

each_preset = pytest.mark.parametrize("preset", TOKENIZER_PRESETS)
each_bottleneck = pytest.mark.parametrize("bottleneck", BOTTLENECKS)


def small(bottleneck: str = "kl", **changes) -> CausalConvTokenizer:
    """A tokenizer of a few thousand weights whose latents spread as after training."""
    torch.manual_seed(0)
    config = {"stride": (4, 8, 8), "patch": 4, "widths": (8, 8, 8), "depth": 1, "decoder_depth": 1, "block_frames": 8}
    config |= {"bottleneck_type": bottleneck, "bottleneck_options": OPTIONS[bottleneck]}
    tokenizer = CausalConvTokenizer(**{**config, **changes}).eval()
    with torch.no_grad():
        tokenizer.encoder.conv_out.conv.weight.mul_(3.0)
    return tokenizer


def tiny(preset: str) -> Tokenizer:
    torch.manual_seed(0)
    return TOKENIZER_PRESETS[preset].tiny().build().eval()


def clip(frames: int, height: int = 16, width: int = 16, *, batch: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, frames, height, width, generator=generator) * 2 - 1


def assert_same(one: Latents, other: Latents):
    assert torch.equal(one.tokens, other.tokens)
    if one.ids is not None and other.ids is not None:
        assert torch.equal(one.ids, other.ids)
    assert (one.size, one.spec, one.start) == (other.size, other.spec, other.start)


def millions(model: nn.Module) -> float:
    """Weights that learn."""
    return sum(weight.numel() for weight in model.parameters()) / 1e6


# presets


def test_every_preset_has_the_parameters_that_are_on_record():
    counts = {}
    for name, preset in TOKENIZER_PRESETS.items():
        with torch.device("meta"):
            model = preset.build()
        counts[name] = sum(weight.numel() for weight in model.parameters())
    assert counts == PARAMETERS


@pytest.mark.parametrize("preset", PUBLISHED)
def test_models_of_a_paper_have_its_number_of_parameters_to_5_percent(preset: str):
    assert abs(PARAMETERS[preset] / 1e6 / PUBLISHED[preset] - 1) < 0.05


@pytest.mark.parametrize("preset", PUBLIC)
def test_each_half_has_the_parameters_of_the_public_code_to_5_percent(preset: str):
    kind, options = PUBLIC[preset]
    with torch.device("meta"):
        ours, public = TOKENIZER_PRESETS[preset].build(), getattr(diffusers, kind)(**options)
    for half in ("encoder", "decoder"):
        assert abs(millions(getattr(ours, half)) / millions(getattr(public, half)) - 1) < 0.05
    assert round(millions(public), 1) == PUBLISHED[preset]


@each_preset
def test_a_tiny_twin_differs_from_its_preset_in_size_alone(preset: str):
    full = TOKENIZER_PRESETS[preset]
    with torch.device("meta"):
        model, twin = full.build(), full.tiny().build()
    assert twin.spec == model.spec
    assert sum(weight.numel() for weight in twin.parameters()) < 220_000  # most in ten scales of one spec


@each_preset
def test_the_spec_says_what_encode_gives(preset: str):
    tokenizer = tiny(preset)
    video = clip(6, 20, 17, batch=2)
    latents = tokenizer.encode(video)
    spec = tokenizer.spec
    assert latents.size == (6, 20, 17)
    assert latents.tokens.shape == (2, spec.num_tokens((6, 20, 17)), spec.channels)
    assert (latents.ids is not None) == spec.discrete
    assert tokenizer.decode(latents).shape == video.shape


@each_preset
def test_a_saved_tokenizer_loads_bit_equal(preset: str, tmp_path):
    tokenizer = tiny(preset)
    tokenizer.fit_statistics([clip(5, batch=2)])
    tokenizer.save_pretrained(tmp_path)
    loaded = vidgen.load(tmp_path)
    assert isinstance(loaded, type(tokenizer))
    assert loaded.spec == tokenizer.spec
    assert not loaded.training
    latents = tokenizer.encode(clip(6))
    assert_same(loaded.encode(clip(6)), latents)
    assert torch.equal(loaded.decode(latents), tokenizer.decode(latents))
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["diffusion_pytorch_model.safetensors"]


@pytest.mark.slow
@each_bottleneck
def test_a_saved_tokenizer_loads_bit_equal_in_a_fresh_process(bottleneck: str, tmp_path: Path):
    tokenizer = small(bottleneck)
    tokenizer.fit_statistics([clip(9)])
    tokenizer.save_pretrained(tmp_path)
    torch.save({"video": clip(6), "decoded": tokenizer.decode(tokenizer.encode(clip(6)))}, tmp_path / "expected.pt")
    tokenizer.encode(clip(6)).save(tmp_path / "latents.safetensors")
    script = """
import sys, torch, vidgen
from vidgen.latents import Latents
folder = sys.argv[1]
expected = torch.load(f"{folder}/expected.pt", weights_only=True)
tokenizer = vidgen.load(folder)
saved = Latents.load(f"{folder}/latents.safetensors")
assert torch.equal(tokenizer.encode(expected["video"]).tokens, saved.tokens)
assert torch.equal(tokenizer.decode(saved), expected["decoded"])
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)


# any video


@each_preset
def test_every_preset_gives_back_as_many_frames_as_went_in(preset: str):
    tokenizer = tiny(preset)
    for frames in range(1, 21):
        latents = tokenizer.encode(clip(frames, 9, 14))
        assert latents.tokens.shape[1] == tokenizer.spec.num_tokens((frames, 9, 14))
        assert tokenizer.decode(latents).shape == (1, 3, frames, 9, 14)


@each_preset
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 33), (40, 17)])
def test_every_preset_gives_back_frames_of_any_size(preset: str, height: int, width: int):
    tokenizer = tiny(preset)
    video = clip(2, height, width)
    assert tokenizer.decode(tokenizer.encode(video)).shape == video.shape


@each_preset
def test_later_frames_change_no_earlier_token_of_a_causal_preset(preset: str):
    """By exactly 0.0, and the change does arrive where it may."""
    tokenizer = tiny(preset)
    size, changed = (25, 16, 16), 10
    video, other = clip(25), clip(25)
    other[:, :, changed:] = clip(25, seed=1)[:, :, changed:]
    one, two = tokenizer.encode(video).tokens, tokenizer.encode(other).tokens
    earlier = last_frames(tokenizer.spec, size) < changed
    if tokenizer.spec.causal:
        assert earlier.any()
        assert torch.equal(one[:, earlier], two[:, earlier])
    assert not torch.equal(one[:, ~earlier], two[:, ~earlier])


@each_preset
def test_a_sample_of_every_preset_does_not_depend_on_its_batch(preset: str):
    tokenizer = tiny(preset)
    batch = clip(5, batch=3)
    together, alone = tokenizer.encode(batch), tokenizer.encode(batch[1:2])
    assert torch.allclose(together.tokens[1:2], alone.tokens, atol=1e-4)
    assert torch.allclose(tokenizer.decode(together)[1:2], tokenizer.decode(alone), atol=1e-4)


@pytest.mark.parametrize("stride", [(4, 8, 8), (8, 16, 16), (1, 8, 8), (2, 4, 4), (8, 4, 4)])
def test_as_many_frames_come_back_as_went_in(stride: tuple[int, int, int]):
    tokenizer = small(stride=stride, widths=(4,) * (1 + len(halvings(stride, 4))))
    for frames in range(1, 21):
        latents = tokenizer.encode(clip(frames))
        assert latents.tokens.shape[1] == tokenizer.spec.num_tokens((frames, 16, 16))
        assert tokenizer.decode(latents).shape[2] == frames


@each_bottleneck
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (7, 33), (66, 50), (17, 8)])
def test_frames_of_any_size_come_back_in_that_size(bottleneck: str, height: int, width: int):
    tokenizer = small(bottleneck)
    video = clip(3, height, width)
    assert tokenizer.decode(tokenizer.encode(video)).shape == video.shape


def test_padding_never_reaches_a_frame_that_needs_none():
    """A frame padded by hand as encode pads has the latents of the frame itself."""
    tokenizer = small()
    video = clip(5, 12, 20)
    by_hand = torch.nn.functional.pad(video, (0, 4, 0, 4, 0, 0), mode="replicate")
    assert torch.equal(tokenizer.encode(video).tokens, tokenizer.encode(by_hand).tokens)


@each_bottleneck
def test_an_image_is_a_video_of_one_frame(bottleneck: str):
    """The first frame's tokens are those of the image alone, whatever follows, and give the image's pixels."""
    tokenizer = small(bottleneck)
    video = clip(17)
    image, whole = tokenizer.encode(video[:, :, :1]), tokenizer.encode(video)
    count = image.tokens.shape[1]
    assert torch.allclose(image.tokens, whole.tokens[:, :count], atol=1e-5)
    assert torch.allclose(tokenizer.decode(image), tokenizer.decode(whole)[:, :, :1], atol=1e-5)


def test_a_still_video_has_the_tokens_of_its_image_at_every_time():
    tokenizer = small()
    image = clip(1)
    grid = tokenizer.encode(image.expand(-1, -1, 17, -1, -1)).grid()
    assert torch.allclose(grid, tokenizer.encode(image).grid().expand_as(grid), atol=1e-5)


@each_bottleneck
def test_a_sample_does_not_depend_on_its_batch(bottleneck: str):
    tokenizer = small(bottleneck)
    batch = clip(9, batch=3)
    together, alone = tokenizer.encode(batch), tokenizer.encode(batch[1:2])
    assert torch.allclose(together.tokens[1:2], alone.tokens, atol=1e-5)
    assert torch.allclose(tokenizer.decode(together)[1:2], tokenizer.decode(alone), atol=1e-5)


def test_a_drawn_posterior_belongs_to_its_sample_and_its_seed():
    tokenizer = small("kl")
    batch = clip(13, batch=2)
    drawn = tokenizer.encode(batch, sample=True, generators=seeded([3, 4]))
    again = tokenizer.encode(batch[1:], sample=True, generators=seeded([4]))
    assert torch.allclose(drawn.tokens[1:], again.tokens, atol=1e-5)
    assert not torch.allclose(drawn.tokens, tokenizer.encode(batch).tokens, atol=1e-2)


# ids


@pytest.mark.parametrize("preset", DISCRETE)
def test_ids_of_every_discrete_preset_alone_carry_the_video(preset: str):
    tokenizer = tiny(preset)
    latents = tokenizer.encode(clip(6))
    assert latents.ids is not None
    assert torch.equal(tokenizer.reals_from_ids(latents.ids, latents.size), latents.tokens)
    nothing = Latents(torch.full_like(latents.tokens, torch.nan), latents.ids, latents.size, latents.spec)
    assert torch.equal(tokenizer.decode(nothing), tokenizer.decode(latents))
    assert latents.ids.unique().numel() > 1


@each_preset
def test_latents_of_every_preset_survive_a_file(preset: str, tmp_path: Path):
    tokenizer = tiny(preset)
    latents = tokenizer.encode(clip(6))
    latents.save(tmp_path / "clip.safetensors")
    assert torch.equal(tokenizer.decode(Latents.load(tmp_path / "clip.safetensors")), tokenizer.decode(latents))


@pytest.mark.parametrize("bottleneck", ["vq", "fsq"])
def test_ids_alone_carry_the_video(bottleneck: str):
    tokenizer = small(bottleneck)
    tokenizer.fit_statistics([clip(9, batch=2)])
    latents = tokenizer.encode(clip(6))
    assert latents.ids is not None
    reals = tokenizer.reals_from_ids(latents.ids)
    assert torch.equal(reals, latents.tokens)
    assert torch.equal(tokenizer.ids_from_reals(reals), latents.ids)
    noise = Latents(torch.full_like(reals, torch.nan), latents.ids, latents.size, latents.spec)
    assert torch.equal(tokenizer.decode(noise), tokenizer.decode(latents))
    assert latents.ids.unique().numel() > 1


def test_continuous_tokenizers_refuse_ids():
    with pytest.raises(ValueError, match="continuous and has no ids"):
        small("kl").reals_from_ids(torch.zeros(1, 4, 1, dtype=torch.long))


@each_bottleneck
def test_latents_survive_a_file(bottleneck: str, tmp_path):
    tokenizer = small(bottleneck)
    latents = tokenizer.encode(clip(6))
    latents.save(tmp_path / "clip.safetensors")
    assert torch.equal(tokenizer.decode(Latents.load(tmp_path / "clip.safetensors")), tokenizer.decode(latents))


@each_preset
def test_what_is_no_tensor_or_no_latents_is_refused_with_what_to_give(preset):
    tokenizer: Any = tiny(preset)
    with pytest.raises(ValueError, match=r"got ndarray; .* encode to_tensor\(clip\.frames\)\[None\]"):
        tokenizer.encode(clip(5).numpy())
    with pytest.raises(ValueError, match="expected Latents, got Tensor; decode what encode returns"):
        tokenizer.decode(torch.zeros(1, 8, 4))


@each_preset
def test_ids_that_are_no_codes_are_refused(preset):
    tokenizer = tiny(preset)
    latents = tokenizer.encode(clip(5))
    if latents.ids is None:
        pytest.skip("no ids")
    for wrong in (-1, max(max(part.codebooks) for part in latents.spec.parts)):
        ids = latents.ids.clone()
        ids[0, 0, 0] = wrong
        with pytest.raises(ValueError, match=f"1 ids outside them, such as {wrong}"):
            tokenizer.decode(replace(latents, ids=ids))


def test_a_length_is_refused_where_no_prefix_is_decoded():
    tokenizer = small("fsq")
    latents = tokenizer.encode(clip(5))
    with pytest.raises(ValueError, match="no use for a prefix of its tokens"):
        tokenizer.decode(replace(latents, length=torch.tensor([3])))


def test_latents_of_another_tokenizer_are_refused():
    latents = small("fsq").encode(clip(5))
    for other in (small("vq"), small("kl"), small("fsq", bottleneck_options={"levels": [8, 5, 4]})):
        with pytest.raises(ValueError, match="come from another tokenizer"):
            other.decode(latents)


# statistics


@each_bottleneck
def test_fitted_statistics_give_tokens_of_zero_mean_and_unit_variance(bottleneck: str):
    tokenizer = small(bottleneck)
    videos = [clip(9, 32, 32, batch=2, seed=seed) for seed in range(3)]
    before = tokenizer.decode(tokenizer.encode(videos[0]))
    for _ in range(2):  # measuring again must give the same: the old statistics are taken off first
        tokenizer.fit_statistics(iter(videos))
        tokens = torch.cat([tokenizer.encode(video).tokens for video in videos]).flatten(0, 1)
        assert torch.allclose(tokens.mean(dim=0), torch.zeros(tokenizer.spec.channels), atol=1e-4)
        assert torch.allclose(tokens.std(dim=0, correction=0), torch.ones(tokenizer.spec.channels), atol=1e-3)
    assert torch.allclose(tokenizer.decode(tokenizer.encode(videos[0])), before, atol=1e-5)


def test_statistics_need_at_least_one_video():
    with pytest.raises(ValueError, match="at least one video"):
        small().fit_statistics([])


# modes and dtypes


@each_preset
def test_encoding_in_train_mode_changes_nothing_and_gives_the_eval_result(preset: str):
    tokenizer = tiny(preset)
    expected = tokenizer.encode(clip(6))
    before = copy.deepcopy(tokenizer.state_dict())
    tokenizer.train()
    assert_same(tokenizer.encode(clip(6)), expected)
    assert torch.equal(tokenizer.decode(expected), tokenizer.eval().decode(expected))
    assert all(torch.equal(value, before[name]) for name, value in tokenizer.state_dict().items())


@each_preset
def test_encode_and_decode_build_no_graph(preset: str):
    tokenizer = tiny(preset)
    latents = tokenizer.encode(clip(2).requires_grad_())
    assert not latents.tokens.requires_grad
    assert not tokenizer.decode(latents).requires_grad
    if tokenizer.spec.streamable:
        assert not any(chunk.tokens.requires_grad for chunk in tokenizer.encode_stream([clip(2).requires_grad_()]))


@each_bottleneck
def test_a_bf16_tokenizer_takes_any_float_video_and_gives_bf16_pixels(bottleneck: str):
    tokenizer = small(bottleneck)
    exact = tokenizer.encode(clip(5))
    low = tokenizer.to(torch.bfloat16).encode(clip(5))
    assert tokenizer.decode(low).dtype == torch.bfloat16
    if exact.ids is None:
        assert torch.allclose(low.tokens.float(), exact.tokens, atol=0.1)
    else:
        assert (low.ids == exact.ids).float().mean() > 0.5


@each_bottleneck
def test_bf16_autocast_gives_nearly_the_exact_pixels(bottleneck: str):
    tokenizer = small(bottleneck)
    latents = tokenizer.encode(clip(5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert tokenizer.encode(clip(5)).tokens.shape == latents.tokens.shape
        low = tokenizer.decode(latents)
    assert torch.allclose(low.float(), tokenizer.decode(latents), atol=0.05)


# training


@each_preset
def test_training_losses_reach_every_weight(preset: str):
    tokenizer = tiny(preset).train()
    if preset == "ccvit-centroids":  # more centroids than patches: the first clips come back without an error
        tokenizer.training_losses(clip(6, 20, 17, batch=2, seed=1), generators=seeded([0, 1]))
    losses = tokenizer.training_losses(clip(6, 20, 17, batch=2), generators=seeded([0, 1]))
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
    sum(losses.values(), torch.zeros(())).backward()
    silent = [name for name, weight in tokenizer.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not silent


@each_bottleneck
def test_training_lowers_the_error_of_what_encode_and_decode_give_back(bottleneck: str):
    tokenizer = small(bottleneck, widths=(16, 16, 16))
    video = torch.nn.functional.interpolate(clip(3, 3, 3, batch=2), size=(9, 16, 16), mode="trilinear")

    def error() -> float:
        return (tokenizer.decode(tokenizer.encode(video)) - video).abs().mean().item()

    before = error()
    optimiser = torch.optim.Adam(tokenizer.train().parameters(), lr=5e-3)
    for step in range(60):
        losses = tokenizer.training_losses(video, generators=seeded([step, step + 1000]))
        optimiser.zero_grad()
        sum(losses.values(), torch.zeros(())).backward()
        optimiser.step()
    assert error() < 0.6 * before


@pytest.mark.parametrize("stride", [(4, 8, 8), (8, 8, 8), (1, 8, 8)])
def test_whole_clip_training_computes_what_blocked_inference_computes(stride: tuple[int, int, int]):
    tokenizer = small("kl", stride=stride, widths=(8,) * (1 + len(halvings(stride, 4))))
    video = clip(25)
    latents = tokenizer.encode(video)
    with torch.no_grad():
        features = tokenizer.encoder(video)
        frames = tokenizer.decoder(latents.grid()).clamp(-1.0, 1.0)
    assert torch.allclose(latents.grid(), features[:, : latents.spec.channels], atol=1e-5)
    assert torch.allclose(tokenizer.decode(latents), frames, atol=1e-5)


# several positions in a token


@torch.no_grad()
def test_a_token_of_several_positions_holds_the_ids_of_their_tokens():
    levels = {"levels": (8, 5)}
    one = small("fsq", bottleneck_options=levels)
    product = {"inner": "fsq", "options": levels, "count": 4}
    four = small("product", bottleneck_options=product, stride=(4, 16, 16), token_patch=2)
    four.load_state_dict({**one.state_dict(), "latent_mean": torch.zeros(8), "latent_std": torch.ones(8)})
    video = clip(6, 32, 48)
    apart, together = one.encode(video), four.encode(video)
    assert together.spec.parts[0].codebooks == (40,) * 4
    positions = rearrange(apart.ids, "b (t h p w q) 1 -> b (t h w) (p q)", t=3, h=2, p=2, w=3, q=2)
    assert torch.equal(together.ids, positions)
    assert torch.equal(four.decode(together), one.decode(apart))
    ragged = clip(2, 17, 9)
    assert four.decode(four.encode(ragged)).shape == ragged.shape


# mistakes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": (3, 8, 8)}, "powers of two"),
        ({"stride": (4, 8, 4)}, "powers of two"),
        ({"stride": (4, 8)}, "powers of two"),
        ({"stride": (0, 8, 8)}, "powers of two"),
        ({"patch": 16}, "patch dividing s"),
        ({"patch": 0}, "patch dividing s"),
        ({"widths": (8, 8)}, r"needs 3 widths, got 2: \(8, 8\)"),
        ({"widths": (8, 0, 8)}, "at least 1"),
        ({"depth": 0}, "at least 1"),
        ({"token_patch": 0}, "token_patch must be at least 1"),
        ({"token_patch": 3}, "divide the stride in space, got 3"),
        (
            {"token_patch": 2, "bottleneck_type": "fsq", "bottleneck_options": {"levels": [8, 5, 5]}},
            "channels are a multiple of 4, got 3; for example a product of 4 quantizers",
        ),
        ({"block_frames": 10}, "not a multiple of the temporal stride 4; use 8"),
        ({"block_frames": 0}, "use 4"),
        ({"block_frames": 16.0}, "a whole number of frames, got 16.0; for example 16"),
        ({"squared_weight": -0.5}, "squared_weight is the weight of a loss term and at least 0, got -0.5"),
        ({"bottleneck_type": "lfqq"}, "unknown bottleneck 'lfqq'; one of"),
        ({"bottleneck_type": "kl", "bottleneck_options": {"levels": [8, 5]}}, "no option levels; it takes channels"),
        ({"bottleneck_type": "fsq", "bottleneck_options": {"levels": [8, 2]}}, "at least 3 levels"),
    ],
)
def test_contradictory_configurations_fail_in_the_constructor_with_the_way_out(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        small(**changes)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (torch.zeros(3, 5, 16, 16), "b 3 t h w"),
        (torch.zeros(1, 4, 5, 16, 16), "b 3 t h w"),
        (torch.zeros(1, 3, 0, 16, 16), "at least one frame"),
        (torch.zeros(1, 3, 2, 16, 16, dtype=torch.uint8), "divide bytes by 127.5"),
    ],
)
def test_what_is_no_video_is_refused(video: Tensor, message: str):
    tokenizer = small()
    with pytest.raises(ValueError, match=message):
        tokenizer.encode(video)
    with pytest.raises(ValueError, match=message):
        list(tokenizer.encode_stream([video]))
    with pytest.raises(ValueError, match=message):
        tokenizer.training_losses(video, generators=seeded([0]))
