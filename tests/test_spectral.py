"""Is spectral attention what it says: exact on frames of any size, among frequencies, and off unless asked for?"""

from math import pi

import pytest
import torch
from tiny_models import SPECS, shake
from torch import Tensor

from vidgen.conditioning import Condition
from vidgen.generators import MaskedTransformer, PrefixMaskedTransformer
from vidgen.kernels import AttentionSpec
from vidgen.latents import Latents
from vidgen.nn.positions import rotary
from vidgen.nn.random import seeded
from vidgen.nn.spectral import SpectralAttention, frame_spectra, frequency_places
from vidgen.nn.transformer import Attention
from vidgen.pipelines.masked_presets import MASKED_PRESETS

GRIDS = [(1, 1, 1), (2, 4, 4), (3, 5, 7), (1, 6, 1), (2, 1, 9), (1, 3, 10)]
SPEC = SPECS["grid of ids"]


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


# ----------------------------------------------------------------------------------------------------- the transform


@pytest.mark.parametrize("grid", GRIDS)
def test_twice_the_transform_is_nothing_and_once_it_keeps_lengths(grid):
    t, h, w = grid
    x = noise(2, t * h * w, 3)
    spectra = frame_spectra(x, grid)
    assert (frame_spectra(spectra, grid) - x).abs().max() < 1e-5
    energy, its = (tokens.square().view(2, t, h * w, 3).sum(dim=2) for tokens in (x, spectra))
    assert torch.allclose(energy, its, rtol=1e-4)


@pytest.mark.parametrize("grid", GRIDS)
def test_it_is_the_real_part_less_the_imaginary_part_of_the_sum_written_out(grid):
    t, h, w = grid
    x = noise(1, t * h * w, 2)
    frames = x.double().view(t, h, w, 2)
    direct = torch.zeros_like(frames)
    rows, columns = torch.arange(h)[:, None], torch.arange(w)
    for k in range(h):
        for l in range(w):
            wave = torch.exp(-2j * pi * (k * rows / h + l * columns / w).double())
            coefficient = (frames * wave[..., None]).sum(dim=(1, 2)) / (h * w) ** 0.5
            direct[:, k, l] = coefficient.real - coefficient.imag
    assert (frame_spectra(x, grid) - direct.view(1, -1, 2)).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_of_16_bits_are_transformed_in_32(dtype):
    x = noise(1, 2 * 5 * 6, 4).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        spectra = frame_spectra(x, (2, 5, 6))
    assert torch.equal(spectra, frame_spectra(x.float(), (2, 5, 6)).to(dtype))


def test_a_frequency_stands_at_its_cycles_in_the_frame_and_at_its_time():
    places = torch.tensor([3.0, 7.0]).repeat_interleave(4 * 5)[:, None].expand(-1, 3)
    of_frequencies = frequency_places(places, (2, 4, 5)).view(2, 4, 5, 3)
    assert of_frequencies[:, 0, 0, 0].tolist() == [3.0, 7.0]
    assert torch.allclose(of_frequencies[1, :, 2, 1], torch.tensor([0.0, 1.0, -2.0, -1.0]))
    assert torch.allclose(of_frequencies[1, 2, :, 2], torch.tensor([0.0, 1.0, 2.0, -2.0, -1.0]))


def test_another_number_of_tokens_is_refused_with_both():
    with pytest.raises(ValueError, match="a grid of 2×3×4 has 24 tokens, got 20"):
        frame_spectra(noise(1, 20, 2), (2, 3, 4))


# ----------------------------------------------------------------------------------------------------- the attention


def attend(kind: type[Attention], pattern: AttentionSpec, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    layer = kind(8, 2)
    shake(layer)
    return layer(x, pattern, rotary(noise(x.shape[1], 3), 4))


def test_a_frequency_that_sees_itself_alone_is_a_token_that_sees_itself_alone():
    grid = (2, 3, 5)
    x, alone = noise(2, 30, 8), AttentionSpec.swin3d(grid, (1, 1, 1))
    assert torch.allclose(attend(SpectralAttention, alone, x), attend(Attention, alone, x), atol=1e-5)


@pytest.mark.parametrize(
    ("window", "reached"), [((1, 3, 5), range(15)), ((2, 3, 5), range(30)), ((2, 1, 1), range(30))]
)
def test_a_token_reaches_its_whole_frame_and_the_frames_that_its_frequencies_see(window, reached):
    pattern, x = AttentionSpec.swin3d((2, 3, 5), window), noise(1, 30, 8)
    other = x.clone()
    other[:, 4] += 1.0
    changed = (attend(SpectralAttention, pattern, x) - attend(SpectralAttention, pattern, other)).abs().amax(dim=(0, 2))
    assert (changed > 1e-5).nonzero()[:, 0].tolist() == list(reached)


def test_a_prefix_is_not_transformed():
    pattern, x = AttentionSpec.swin3d((1, 2, 3), (1, 1, 1), prefix=2), noise(1, 8, 8)
    empty = torch.cat([x[:, :2], torch.zeros(1, 6, 8)], dim=1)  # zeros are their own spectrum
    assert torch.allclose(attend(SpectralAttention, pattern, empty)[:, :2], attend(Attention, pattern, empty)[:, :2])
    assert not torch.allclose(attend(SpectralAttention, pattern, x), attend(Attention, pattern, x), atol=1e-3)


def test_every_weight_gets_a_gradient():
    layer = SpectralAttention(8, 2)
    x = noise(1, 30, 8).requires_grad_()
    layer(x, AttentionSpec.full((2, 3, 5)), rotary(noise(30, 3), 4)).square().sum().backward()
    assert all(each.grad.abs().sum() > 0 for each in (x, *layer.parameters()))


# ------------------------------------------------------------------------------------------------------- the network


def network(kind=MaskedTransformer, **config):
    torch.manual_seed(0)
    return kind(SPEC.to_json(), text_width=8, width=24, layers=2, heads=2, **config)


def videos(size: tuple[int, int, int]) -> Latents:
    count = SPEC.num_tokens(size)
    ids = torch.randint(32, (2, count, 1), generator=torch.Generator().manual_seed(0))
    return Latents(noise(2, count, SPEC.channels), ids, size, SPEC)


@pytest.mark.parametrize("kind", [MaskedTransformer, PrefixMaskedTransformer])
@pytest.mark.parametrize("size", [(1, 4, 4), (6, 20, 12), (5, 10, 28)])
def test_a_network_trains_on_any_grid(kind, size):
    model = network(kind, spectral_attention=True)
    text = Condition(noise(2, 3, 8), torch.ones(2, 3, dtype=torch.bool))
    losses = model.losses(videos(size), text, generators=seeded([0, 1]))
    sum(losses.values()).backward()
    grads = [weight.grad for weight in model.transformer_blocks.parameters()]
    assert all(grad is not None and grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("kind", [MaskedTransformer, PrefixMaskedTransformer])
def test_it_is_off_unless_asked_for_and_has_the_weights_of_plain_attention(kind):
    plain, spectral = network(kind), network(kind, spectral_attention=True)
    assert type(plain.transformer_blocks[0].attn) is Attention
    assert not plain.config.spectral_attention
    weights, others = plain.state_dict(), spectral.state_dict()
    assert list(weights) == list(others)
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_the_preset_of_motionaura_has_it():
    pipe = MASKED_PRESETS["motionaura"].tiny().build()
    assert all(isinstance(block.attn, SpectralAttention) for block in pipe.transformer.transformer_blocks)


def test_tokens_without_a_grid_are_refused_at_once_and_a_grid_that_is_not_told_when_it_is_missed():
    with pytest.raises(ValueError, match=r"spectral_attention needs tokens on one thw grid, got .*plane_hw"):
        MaskedTransformer(SPECS["three planes"].to_json(), spectral_attention=True)
    with pytest.raises(ValueError, match=r"spectral attention need the \(t, h, w\) of the tokens: give grid"):
        network(spectral_attention=True).patterns(8, None)
