"""Large frames tile by tile: equal to one piece where the trunk is local, at a halo that is known beforehand.

A tile reads a halo around what it gives, and only what it gives is kept: nothing is blended. With a halo as wide as the
receptive field (`Tokenizer.reach`, for each half), tiled and untiled results are equal up to rounding. A trunk that
sees whole frames has no such halo: its tiles are approximate, and `tiling_error` says how far off.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from vidgen.latents import Latents, VideoSize
from vidgen.tokenizers.base import Tokenizer, check_pixels

Half = Literal["encode", "decode"]
HALVES: tuple[Half, Half] = ("encode", "decode")


@dataclass(frozen=True)
class Span:
    """A tile along one axis, in pixels: it gives `start` to `stop` and reads `first` to `last`."""

    start: int
    stop: int
    first: int
    last: int

    def kept(self, stride: int) -> slice:
        """Where what it gives lies in what it reads, in units of `stride` pixels."""
        return slice((self.start - self.first) // stride, -(-(self.stop - self.first) // stride))

    def given(self, stride: int) -> slice:
        """Where what it gives lies in the frame."""
        return slice(self.start // stride, -(-self.stop // stride))

    def read(self, stride: int) -> slice:
        """Where what it reads lies in the frame."""
        return slice(self.first // stride, -(-self.last // stride))


@dataclass(frozen=True)
class TilingCost:
    """Share of pixels that are computed on top of those of the frame; 0.5 = half as much again."""

    encode: float
    decode: float


@dataclass(frozen=True)
class TilingError:
    """How far tiled results are from those in one piece: largest and mean absolute differences.

    `pixels` compare two decodings of the same latents, `tokens` two encodings of the same video.
    """

    tokens_max: float
    tokens_mean: float
    pixels_max: float
    pixels_mean: float


@torch.no_grad()
def encode_tiled(tokenizer: Tokenizer, video: Tensor, *, tile: int, halo: int | None = None) -> Latents:
    """`tokenizer.encode(video)` in tiles.

    Args:
        tokenizer: one whose tokens are one grid.
        video: `b 3 t h w` in [-1, 1].
        tile: pixels a side that a tile gives, a multiple of the spatial strides.
        halo: pixels around it that it only reads, such a multiple too; None = the receptive field, which is exact.

    Raises:
        ValueError: sizes that do not divide, or no halo given for a tokenizer whose encoding depends on whole frames.
    """
    check_pixels(video)
    around = halo_of(tokenizer, "encode", tile=tile, halo=halo)
    _, down, across = tokenizer.spec.parts[0].stride
    size: VideoSize = (video.shape[2], video.shape[3], video.shape[4])
    grid = tokenizer.spec.grid(size)
    tokens = video.new_empty(video.shape[0], *grid, tokenizer.spec.channels, dtype=tokenizer.dtype)
    ids = tokens.new_empty(*tokens.shape[:4], tokenizer.spec.num_codebooks, dtype=torch.long)
    for y, x in tiles(size, tile=tile, halo=around):
        piece = tokenizer.encode(video[..., y.first : y.last, x.first : x.last])
        t, h, w = piece.spec.grid(piece.size)
        read = rearrange(piece.tokens, "b (t h w) c -> b t h w c", t=t, h=h, w=w)
        tokens[:, :, y.given(down), x.given(across)] = read[:, :, y.kept(down), x.kept(across)]
        if piece.ids is not None:
            read = rearrange(piece.ids, "b (t h w) q -> b t h w q", t=t, h=h, w=w)
            ids[:, :, y.given(down), x.given(across)] = read[:, :, y.kept(down), x.kept(across)]
    return Latents(tokens.flatten(1, 3), ids.flatten(1, 3) if tokenizer.spec.discrete else None, size, tokenizer.spec)


@torch.no_grad()
def decode_tiled(tokenizer: Tokenizer, latents: Latents, *, tile: int, halo: int | None = None) -> Tensor:
    """`tokenizer.decode(latents)` in tiles; arguments and errors as for `encode_tiled`, of decoding."""
    around = halo_of(tokenizer, "decode", tile=tile, halo=halo)
    _, down, across = tokenizer.spec.parts[0].stride
    t, h, w = latents.spec.grid(latents.size)
    tokens = rearrange(latents.tokens, "b (t h w) c -> b t h w c", t=t, h=h, w=w)
    ids = None if latents.ids is None else rearrange(latents.ids, "b (t h w) q -> b t h w q", t=t, h=h, w=w)
    video = tokens.new_empty(len(latents), 3, *latents.size, dtype=tokenizer.dtype)
    for y, x in tiles(latents.size, tile=tile, halo=around):
        rows, columns = y.read(down), x.read(across)
        piece = replace(
            latents,
            tokens=tokens[:, :, rows, columns].flatten(1, 3),
            ids=None if ids is None else ids[:, :, rows, columns].flatten(1, 3),
            size=(latents.size[0], y.last - y.first, x.last - x.first),
        )
        video[..., y.given(1), x.given(1)] = tokenizer.decode(piece)[..., y.kept(1), x.kept(1)]
    return video


def tiling_cost(tokenizer: Tokenizer, size: VideoSize, *, tile: int, halo: int | None = None) -> TilingCost:
    """What the halos of a video of `size` cost; larger tiles cost less."""
    shares = []
    for reach in halos(tokenizer, tile=tile, halo=halo):
        read = sum((y.last - y.first) * (x.last - x.first) for y, x in tiles(size, tile=tile, halo=reach))
        shares.append(read / (size[1] * size[2]) - 1)
    return TilingCost(*shares)


def tiling_error(tokenizer: Tokenizer, video: Tensor, *, tile: int, halo: int | None = None) -> TilingError:
    """How far off tiles are on `video` (`b 3 t h w`), which must be small enough for one piece."""
    latents = tokenizer.encode(video)
    tokens = (encode_tiled(tokenizer, video, tile=tile, halo=halo).tokens - latents.tokens).abs()
    pixels = (decode_tiled(tokenizer, latents, tile=tile, halo=halo) - tokenizer.decode(latents)).abs()
    return TilingError(tokens.max().item(), tokens.mean().item(), pixels.max().item(), pixels.mean().item())


def halos(tokenizer: Tokenizer, *, tile: int, halo: int | None) -> tuple[int, int]:
    """Pixels that tiles read around themselves in encoding and in decoding."""
    encode, decode = (halo_of(tokenizer, half, tile=tile, halo=halo) for half in HALVES)
    return encode, decode


def halo_of(tokenizer: Tokenizer, half: Half, *, tile: int, halo: int | None) -> int:
    """Pixels that tiles read around themselves in one half of the tokenizer."""
    if not tokenizer.spec.is_grid:
        raise ValueError(f"only tokens in one grid can be tiled; {type(tokenizer).__name__} has other ones")
    _, down, across = tokenizer.spec.parts[0].stride
    if tile < 1 or tile % down or tile % across or (halo is not None and (halo < 0 or halo % down or halo % across)):
        raise ValueError(
            f"tile and halo must be multiples of the {down}x{across} pixels of a token, got tile {tile} and halo {halo}"
        )
    if halo is not None:
        return halo
    reach = tokenizer.reach[HALVES.index(half)]
    if reach is None:
        raise ValueError(
            f"{type(tokenizer).__name__}.{half} may depend on whole frames, so that tiles of it are approximate; give "
            "a halo in pixels to tile all the same, and measure with tiling_error how far off the result is"
        )
    unit = max(down, across)  # powers of two
    return -(-reach // unit) * unit


def tiles(size: VideoSize, *, tile: int, halo: int) -> Iterator[tuple[Span, Span]]:
    """The tiles of frames of `size`, down and across."""
    for y in spans(size[1], tile=tile, halo=halo):
        for x in spans(size[2], tile=tile, halo=halo):
            yield y, x


def spans(extent: int, *, tile: int, halo: int) -> Iterator[Span]:
    for start in range(0, extent, tile):
        stop = min(start + tile, extent)
        yield Span(start, stop, max(0, start - halo), min(extent, stop + halo))
