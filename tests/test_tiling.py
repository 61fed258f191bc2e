"""Are tiles equal to one piece where the trunk is local, cheap as counted, bounded, and honest elsewhere?"""

import csv
from typing import Any

import pytest
import torch
from recipe_module import recipe_module
from torch import Tensor

from vidgen.tokenizers import CausalConvTokenizer, Tokenizer
from vidgen.tokenizers.presets import TOKENIZER_PRESETS
from vidgen.tokenizers.tiling import decode_tiled, encode_tiled, halos, tiling_cost, tiling_error


def tiny(preset: str) -> Tokenizer:
    torch.manual_seed(0)
    return TOKENIZER_PRESETS[preset].tiny().build().eval()


REACH = {name: model.reach for name in TOKENIZER_PRESETS if (model := tiny(name)).spec.is_grid}
LOCAL = [name for name, reach in REACH.items() if None not in reach]
HALF_LOCAL = [name for name, (encode, decode) in REACH.items() if encode is not None and decode is None]
SEE_FRAMES = [name for name, reach in REACH.items() if reach == (None, None)]


def small(**changes: Any) -> CausalConvTokenizer:
    torch.manual_seed(0)
    options = {"bottleneck_type": "ae", "bottleneck_options": {"channels": 4}, "depth": 1, "decoder_depth": 1}
    return CausalConvTokenizer(**{**options, "widths": (8, 8, 8), **changes}).eval()


def clip(height: int, width: int, frames: int = 5) -> Tensor:
    return torch.rand(1, 3, frames, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def side(tokenizer: Tokenizer) -> int:
    return tokenizer.spec.parts[0].stride[1]


def test_convolutions_and_patches_are_local_and_so_is_what_wraps_them():
    of_convolutions = {name for name, preset in TOKENIZER_PRESETS.items() if preset.model is CausalConvTokenizer}
    assert set(LOCAL) == of_convolutions | {"ccvit-centroids", "put-tokenizer", "tooncrafter-decoder"}
    assert HALF_LOCAL == ["epsilon-vae"]
    assert {"omnitokenizer-kl", "bsq-vit", "vitok-s-b", "vitok-s-l", "vq-kd", "c-vivit"} <= set(SEE_FRAMES)


@pytest.mark.parametrize(
    "preset",
    [
        *("shapes-kl", "base-ae", "deep-kl", "vidtok-kl", "wf-vae", "cosmos-8x8x8"),
        *("ccvit-centroids", "put-tokenizer", "tooncrafter-decoder"),
    ],
)
def test_tiled_equals_untiled(preset: str):
    tokenizer, tile = tiny(preset), 2 * side(tiny(preset))
    error = tiling_error(tokenizer, clip(5 * tile + 3, 6 * tile - 5), tile=tile)
    assert error.tokens_max < 1e-5
    assert error.pixels_max < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("preset", LOCAL)
def test_every_local_preset_tiles_exactly(preset: str):
    """Codes too: rounding near 1e-6 may take a token over the edge between two codes, and then in few places only."""
    tokenizer, tile = tiny(preset), 2 * side(tiny(preset))
    video = clip(5 * tile + 3, 6 * tile - 5)
    latents = tokenizer.encode(video)
    tiled = encode_tiled(tokenizer, video, tile=tile)
    if latents.ids is not None and tiled.ids is not None:
        assert (latents.ids == tiled.ids).float().mean() > 0.999
    else:
        torch.testing.assert_close(tiled.tokens, latents.tokens, rtol=0, atol=1e-5)
    decoded = decode_tiled(tokenizer, latents, tile=tile)
    torch.testing.assert_close(decoded, tokenizer.decode(latents), rtol=0, atol=1e-5)


@pytest.mark.parametrize("front", ["patch", "haar"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"stride": (8, 16, 16), "patch": 4, "widths": (8,) * 4}, {"stride": (8, 4, 4), "widths": (8,) * 4}],
)
def test_the_reach_is_that_of_a_broken_pixel_and_of_a_broken_token(front: str, changes: dict[str, Any]):
    """NaN spreads exactly as far as the network looks (in double precision, whose convolutions have no tricks)."""
    tokenizer = small(front=front, **changes).double()
    encoder_reach, decoder_reach = tokenizer.reach
    assert encoder_reach is not None and decoder_reach is not None
    step = side(tokenizer)
    token = max(encoder_reach, decoder_reach) // step + 2
    length = (2 * token + 1) * step

    def broken_by(row: int) -> bool:
        video = torch.zeros(1, 3, 1, length, step, dtype=torch.double)
        video[:, :, :, row] = torch.nan
        return bool(tokenizer.features(video, None)[0, :, 0, token].isnan().any())

    first, last = token * step - encoder_reach, (token + 1) * step - 1 + encoder_reach
    assert broken_by(first)
    assert not broken_by(first - 1)
    assert not broken_by(last + 1)

    vectors = torch.zeros(1, 4, 1, 2 * token + 1, 1, dtype=torch.double)
    vectors[:, :, :, token] = torch.nan
    broken = tokenizer.pixels(vectors, None)[0, :, 0].isnan().any(dim=0).any(dim=1).nonzero().flatten()
    assert (broken.min(), broken.max()) == (token * step - decoder_reach, (token + 1) * step - 1 + decoder_reach)


def test_ids_are_tiled_with_their_tokens():
    tokenizer, video = tiny("shapes-fsq"), clip(50, 40)
    latents = encode_tiled(tokenizer, video, tile=16)
    expected = tokenizer.encode(video).ids
    assert latents.ids is not None and expected is not None
    assert torch.equal(latents.ids, expected)
    assert torch.equal(latents.tokens, tokenizer.reals_from_ids(latents.ids))


def test_the_network_never_sees_more_than_a_tile_and_its_halos(monkeypatch):
    tokenizer, tile = small(), 16
    encoder_halo, decoder_halo = halos(tokenizer, tile=tile, halo=None)
    seen: dict[str, list[int]] = {"encoder": [], "decoder": []}
    for name in seen:
        getattr(tokenizer, name).register_forward_pre_hook(
            lambda _, inputs, name=name: seen[name].append(max(inputs[0].shape[3:]))
        )
    latents = encode_tiled(tokenizer, clip(96, 200, frames=1), tile=tile)
    decode_tiled(tokenizer, latents, tile=tile)
    assert max(seen["encoder"]) == tile + 2 * encoder_halo
    assert max(seen["decoder"]) == (tile + 2 * decoder_halo) // 8
    assert len(seen["encoder"]) == len(seen["decoder"]) == 6 * 13


def test_the_cost_is_the_share_of_pixels_that_are_read_twice():
    tokenizer = small()
    encoder_halo, decoder_halo = halos(tokenizer, tile=32, halo=None)
    cost = tiling_cost(tokenizer, (17, 64, 32), tile=32)
    assert cost.encode == 2 * encoder_halo / 64 if encoder_halo <= 32 else 1.0
    assert cost.decode == 2 * decoder_halo / 64 if decoder_halo <= 32 else 1.0
    assert tiling_cost(tokenizer, (17, 64, 32), tile=64).encode == 0.0
    assert (
        tiling_cost(tokenizer, (17, 512, 512), tile=256).encode
        < tiling_cost(tokenizer, (17, 512, 512), tile=128).encode
    )


@pytest.mark.parametrize("preset", ["omnitokenizer-kl", "bsq-vit", "vitok-s-b"])
def test_trunks_that_see_whole_frames_say_so_and_how_far_off_tiles_are(preset: str):
    tokenizer = tiny(preset)
    video = clip(48, 40)
    with pytest.raises(ValueError, match=r"encode may depend on whole frames, so that tiles .* give a halo"):
        encode_tiled(tokenizer, video, tile=16)
    with pytest.raises(ValueError, match=r"decode may depend on whole frames"):
        decode_tiled(tokenizer, tokenizer.encode(video), tile=16)
    error = tiling_error(tokenizer, video, tile=16, halo=8)
    assert 0.0 < error.pixels_mean <= error.pixels_max
    assert decode_tiled(tokenizer, tokenizer.encode(video), tile=16, halo=8).shape == video.shape


@pytest.mark.parametrize("preset", HALF_LOCAL)
def test_a_denoiser_encodes_exactly_in_tiles_and_says_that_it_does_not_decode_so(preset: str):
    """Its noise is drawn for whole frames."""
    tokenizer, video = tiny(preset), clip(48, 40)
    latents = tokenizer.encode(video)
    tiled = encode_tiled(tokenizer, video, tile=16)
    torch.testing.assert_close(tiled.tokens, latents.tokens, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"DiffusionDecoderTokenizer\.decode may depend on whole frames"):
        decode_tiled(tokenizer, latents, tile=16)


def test_what_cannot_be_tiled_is_refused():
    with pytest.raises(ValueError, match="only tokens in one grid can be tiled; CoordinatePlanesTokenizer"):
        encode_tiled(tiny("coordtok"), clip(16, 16), tile=16)
    with pytest.raises(ValueError, match="multiples of the 8x8 pixels of a token, got tile 20 and halo None"):
        encode_tiled(small(), clip(16, 16), tile=20)
    with pytest.raises(ValueError, match="got tile 16 and halo 4"):
        decode_tiled(small(), small().encode(clip(16, 16)), tile=16, halo=4)


@pytest.mark.slow
def test_the_table_of_errors_measures_trunks_that_see_frames_and_the_halo_of_one_that_does_not(tmp_path, monkeypatch):
    recipe = recipe_module("tokenizers/tiling_error.py")
    assert set(recipe.PRESETS) < set(SEE_FRAMES)
    monkeypatch.setattr(recipe, "PRESETS", ("vitok-s-b",))
    monkeypatch.setattr("sys.argv", ["tiling_error.py", "--steps", "1", "-o", str(tmp_path / "table.csv")])
    recipe.main()
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [row["halo"] for row in rows] == [*map(str, recipe.HALOS), *map(str, recipe.HALOS), "48"]
    assert all(float(row["pixels_max"]) > 1e-3 for row in rows[:3])
    assert rows[-1]["exact"] == "True" and float(rows[-1]["pixels_max"]) < 1e-5
