"""Spectral attention: the tokens of each frame become frequencies, attend to each other and turn back (MotionAura)."""

import torch
from einops import rearrange
from torch import Tensor

from vidgen.kernels import AttentionSpec, attention3d
from vidgen.nn.transformer import Attention, Remembers, Rotary


class SpectralAttention(Attention):
    """Self-attention between the frequencies of all frames instead of between their tokens: F⁻¹ attention(F x).

    F is `frame_spectra`, a 2D transform of each frame; time is left to the attention. The weights are those of
    `Attention`, name by name, and the cost is its cost and the transforms' n log n.

    From MotionAura (arXiv 2410.07659): 2D Fourier transforms in the blocks of the denoiser, attention on what they
    give, rotary positions. Ours, because its equations were not at hand: the real form of the transform; signed
    frequencies as rotary places (`frequency_places`); the way back before the output's linear map, whose bias then
    belongs to every token and not to a corner; no noise level, which absorbing diffusion can do without (arXiv
    2406.03736). And one departure: by its public reviews the paper transforms cross-attention too, text included. Here
    that stays with the tokens, because what a token hears (a timeline of prompts) says nothing about a frequency.
    """

    def forward(self, x: Tensor, pattern: AttentionSpec, turns: Rotary, cache: Remembers | None = None) -> Tensor:
        """`b n d -> b n d`; `pattern` says which frequencies see each other, `turns` are of `frequency_places`.

        A prefix in front of the grid is attended to as it is. ValueError: tokens that are not that prefix and grid.
        """
        assert cache is None
        q, k, v = self.project(behind_prefix(x, pattern), turns)
        attended = rearrange(attention3d(q, k, v, pattern), "b h n d -> b n (h d)")
        return self.to_out(behind_prefix(attended, pattern))


def behind_prefix(x: Tensor, pattern: AttentionSpec) -> Tensor:
    """`b n d -> b n d`: `frame_spectra` of all but the prefix."""
    prefix = pattern.prefix
    return torch.cat([x[:, :prefix], frame_spectra(x[:, prefix:], pattern.grid)], dim=1)


def frame_spectra(x: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """The 2D discrete Hartley transform of each frame, `b (t h w) d -> b (t h w) d`; twice, it changes nothing.

    At row k and column l of a frame stands Σ x(y, x) (cos θ + sin θ) / √(h w), θ = 2π (k y / h + l x / w): the real
    part less the imaginary part of the orthonormal Fourier transform. Real tokens have no more in their spectrum than
    that, and as many frequencies as there are tokens (Bracewell 1983). Any extents; computed in float32.
    ValueError: another number of tokens than the (t, h, w) of `grid`.
    """
    t, h, w = grid
    if x.shape[1] != t * h * w:
        raise ValueError(f"a grid of {t}×{h}×{w} has {t * h * w} tokens, got {x.shape[1]}; give the grid of these")
    frames = rearrange(x.float(), "b (t h w) d -> b t h w d", t=t, h=h, w=w)
    fourier = torch.fft.fft2(frames, dim=(2, 3), norm="ortho")
    return rearrange(fourier.real - fourier.imag, "b t h w d -> b (t h w) d").to(x.dtype)


def frequency_places(places: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """`n 3 -> n 3`: of tokens at (t, y, x), the places of what `frame_spectra` puts there: (t, cycles down, across).

    Cycles in a frame go from -h/2 to h/2 and from -w/2 to w/2, so that neighbours in frequency are neighbours here.
    """
    t, h, w = grid
    down, across = (torch.fft.fftfreq(extent, 1 / extent, device=places.device) for extent in (h, w))
    cycles = torch.cartesian_prod(down, across).repeat(t, 1)
    return torch.cat([places[:, :1], cycles.to(places.dtype)], dim=1)
