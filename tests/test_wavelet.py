"""Are wavelet fronts exact: inverted, causal, streamed, and the bands that Cosmos takes?"""

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_cosmos import CosmosPatchEmbed3d
from torch import Tensor

from vidgen.nn.causal_conv import StreamCache
from vidgen.nn.folding import FOLDINGS, HaarFolding
from vidgen.tokenizers import CausalConvTokenizer


def clip(frames: int, side: int = 16) -> Tensor:
    return torch.rand(2, 3, frames, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("front", FOLDINGS)
@pytest.mark.parametrize(("frames", "side"), [(1, 1), (1, 4), (2, 2), (4, 4), (4, 1), (2, 8)])
def test_unfolding_is_the_inverse_of_folding(front: str, frames: int, side: int):
    folding = FOLDINGS[front](frames=frames, side=side)
    video = clip(1 + 2 * frames)
    folded = folding.fold(video)
    assert folded.shape == (2, 3 * folding.pixels, 3, 16 // side, 16 // side)
    torch.testing.assert_close(folding.unfold(folded), video, rtol=0, atol=1e-6)


def test_bytes_come_back_exactly():
    """Pixels of 8 bits need 8 + 6 bits in the bands of 4×4×4 pixels, which float32 holds."""
    folding = HaarFolding(frames=4, side=4)
    video = torch.randint(0, 256, (1, 3, 9, 8, 8), generator=torch.Generator().manual_seed(0)) / 128 - 1
    assert torch.equal(folding.unfold(folding.fold(video)), video)


@pytest.mark.parametrize("front", FOLDINGS)
def test_blocks_with_a_cache_equal_one_shot(front: str):
    folding, video = FOLDINGS[front](frames=4, side=2), clip(13)
    whole = folding.fold(video)
    folds, unfolds, rows, frames = StreamCache(), StreamCache(), [], []
    for number, block in enumerate((video[:, :, :5], video[:, :, 5:])):
        folds.begin_block(final=number == 1)
        unfolds.begin_block(final=number == 1)
        rows.append(folding.fold(block, folds))
        frames.append(folding.unfold(rows[-1], unfolds))
    assert torch.equal(torch.cat(rows, dim=2), whole)
    assert torch.equal(torch.cat(frames, dim=2), folding.unfold(whole))


def test_the_first_frame_has_a_row_alone_and_later_frames_change_no_earlier_row():
    folding, video = HaarFolding(frames=4, side=4), clip(9)
    whole = folding.fold(video)
    assert torch.equal(whole[:, :, :1], folding.fold(video[:, :, :1]))
    assert torch.equal(whole[:, :, :2], folding.fold(video[:, :, :5]))


def test_a_flat_still_video_is_in_the_lowest_band_alone():
    bands = HaarFolding(frames=4, side=4).fold(torch.full((1, 1, 5, 4, 4), 0.7))
    assert torch.allclose(bands[:, 0], torch.full((1, 2, 1, 1), 0.7))
    assert bands[:, 1:].abs().max() == 0.0


@pytest.mark.parametrize("side", [2, 4])
def test_the_bands_are_those_of_cosmos_in_its_order(side: int):
    video = clip(1 + 2 * side)
    expected = CosmosPatchEmbed3d(patch_size=side, patch_method="haar")(video)
    torch.testing.assert_close(HaarFolding(frames=side, side=side).fold(video), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("front", FOLDINGS)
@pytest.mark.parametrize(("stride", "patch", "patch_frames"), [((8, 8, 8), 4, 4), ((4, 8, 8), 2, 4), ((2, 4, 4), 1, 1)])
def test_a_tokenizer_with_any_front_streams_and_gives_back_what_went_in(
    front: str, stride: tuple[int, int, int], patch: int, patch_frames: int
):
    torch.manual_seed(0)
    halvings = max(stride[0] // patch_frames, stride[1] // patch).bit_length()
    options = {"front": front, "patch": patch, "patch_frames": patch_frames, "stride": stride, "block_frames": 8}
    tokenizer = CausalConvTokenizer(
        bottleneck_type="ae", bottleneck_options={"channels": 4}, widths=(8,) * halvings, depth=1, **options
    ).eval()
    video = clip(22)[:, :, :, :15, :13]
    latents = tokenizer.encode(video)
    decoded = tokenizer.decode(latents)
    assert decoded.shape == video.shape
    chunks = list(tokenizer.encode_stream(video.split(3, dim=2)))
    assert torch.equal(latents.join(chunks).tokens, latents.tokens)
    assert torch.equal(torch.cat(list(tokenizer.decode_stream(latents.split(1))), dim=2), decoded)
    changed = torch.cat([video[:, :, :9], -video[:, :, 9:]], dim=2)
    rows = tokenizer.spec.grid((9, 15, 13))[0]
    assert torch.equal(tokenizer.encode(changed).grid()[:, :, :rows], latents.grid()[:, :, :rows])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"front": "dct"}, "front is one of patch, haar and block one of residual, inverted, got 'dct', 'residual'"),
        (
            {"patch_frames": 8},
            r"patch_frames must divide the temporal stride, got 8 and stride \(4, 8, 8\); use up to 4",
        ),
        ({"patch_frames": 3}, "powers of two"),
    ],
)
def test_contradictory_fronts_fail_in_the_constructor_with_the_way_out(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        CausalConvTokenizer(**changes)
