"""Causal 3D convolutional tokenizer (MAGVIT-v2 / VidTok class): any stride, any bottleneck, exact streaming."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks the loader up in this module
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vidgen.bottlenecks import build_bottleneck
from vidgen.latents import LatentPart, Latents, LatentSpec
from vidgen.nn.causal_conv import CausalConv3d, Downsample, StreamCache, Upsample
from vidgen.nn.norms import ChannelRMSNorm
from vidgen.nn.random import Generators
from vidgen.tokenizers.base import Critic, Tokenizer

Factor = tuple[int, int, int]


class ResidualBlock(nn.Module):
    """norm, SiLU, convolution in space; norm, SiLU, causal convolution in time; skip (VidTok's 2D + 1D split)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm_space = ChannelRMSNorm(channels)
        self.conv_space = CausalConv3d(channels, channels, kernel=(1, 3, 3))
        self.norm_time = ChannelRMSNorm(channels)
        self.conv_time = CausalConv3d(channels, channels, kernel=(3, 1, 1))

    def forward(self, x: Tensor, cache: StreamCache | None = None) -> Tensor:
        h = self.conv_space(F.silu(self.norm_space(x)))
        h = self.conv_time(F.silu(self.norm_time(h)), cache)
        return x + h


class Encoder(nn.Module):
    """`b 3 t h w -> b c t' h' w'`: pixels to patches, then residual blocks and downsampling."""

    def __init__(
        self, *, patch: int, widths: tuple[int, ...], factors: list[Factor], depth: int, out_channels: int
    ) -> None:
        super().__init__()
        self.patch = patch
        self.conv_in = CausalConv3d(3 * patch * patch, widths[0], kernel=(1, 1, 1))
        layers: list[nn.Module] = []
        for width, next_width, factor in zip(widths[:-1], widths[1:], factors, strict=True):
            layers += [ResidualBlock(width) for _ in range(depth)]
            layers.append(Downsample(width, next_width, factor=factor))
        layers += [ResidualBlock(widths[-1]) for _ in range(depth)]
        self.layers = nn.ModuleList(layers)
        self.norm_out = ChannelRMSNorm(widths[-1])
        self.conv_out = CausalConv3d(widths[-1], out_channels, kernel=(1, 1, 1))

    def forward(self, video: Tensor, cache: StreamCache | None = None) -> Tensor:
        x = rearrange(video, "b c t (h p) (w q) -> b (c p q) t h w", p=self.patch, q=self.patch)
        x = self.conv_in(x)
        for layer in self.layers:
            x = layer(x, cache)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """`b c t' h' w' -> b 3 t h w`: the encoder backwards."""

    def __init__(
        self, *, patch: int, widths: tuple[int, ...], factors: list[Factor], depth: int, in_channels: int
    ) -> None:
        super().__init__()
        self.patch = patch
        self.conv_in = CausalConv3d(in_channels, widths[-1], kernel=(3, 3, 3))
        layers: list[nn.Module] = [ResidualBlock(widths[-1]) for _ in range(depth)]
        for width, next_width, factor in zip(widths[:0:-1], widths[-2::-1], factors[::-1], strict=True):
            layers.append(Upsample(width, next_width, factor=factor))
            layers += [ResidualBlock(next_width) for _ in range(depth)]
        self.layers = nn.ModuleList(layers)
        self.norm_out = ChannelRMSNorm(widths[0])
        self.conv_out = CausalConv3d(widths[0], 3 * patch * patch, kernel=(1, 1, 1))

    def forward(self, latent: Tensor, cache: StreamCache | None = None) -> Tensor:
        x = self.conv_in(latent, cache)
        for layer in self.layers:
            x = layer(x, cache)
        x = self.conv_out(F.silu(self.norm_out(x)))
        return rearrange(x, "b (c p q) t h w -> b c t (h p) (w q)", p=self.patch, q=self.patch)


class CausalConvTokenizer(Tokenizer, ConfigMixin):
    """Causal 3D CNN with a bottleneck chosen by one word.

    Args:
        bottleneck_type: a name in `vidgen.bottlenecks.BOTTLENECKS`.
        bottleneck_options: keyword arguments of that bottleneck.
        stride: frames, rows and columns of pixels per token; powers of two, the last two equal.
        patch: pixels folded into channels before the first convolution; divides the spatial stride.
        widths: channels at each resolution, one more than there are halvings.
        depth, decoder_depth: residual blocks at each resolution.
        block_frames: inference runs in blocks of this many frames (the first one frame longer), which bounds memory
            and makes streams equal to one shot bit by bit; a multiple of the temporal stride.
        squared_weight: of the squared error beside the absolute one in training. The absolute error alone lets small
            coloured things fade into the background before it learns them (docs/log.md, 2026-11-21).
    """

    @register_to_config
    def __init__(
        self,
        bottleneck_type: str = "fsq",
        bottleneck_options: dict[str, Any] | None = None,
        stride: tuple[int, int, int] = (4, 8, 8),
        patch: int = 2,
        widths: tuple[int, ...] = (64, 128, 256),
        depth: int = 2,
        decoder_depth: int = 3,
        block_frames: int = 16,
        squared_weight: float = 1.0,
    ) -> None:
        super().__init__()
        factors = halvings(stride, patch)
        if len(widths) != len(factors) + 1:
            raise ValueError(
                f"stride {tuple(stride)} with patch {patch} has {len(factors)} halvings and needs "
                f"{len(factors) + 1} widths, got {len(widths)}: {tuple(widths)}"
            )
        if min((*widths, depth, decoder_depth)) < 1:
            raise ValueError(
                f"widths, depth and decoder_depth must be at least 1, got widths {tuple(widths)}, depth {depth} and "
                f"decoder_depth {decoder_depth}"
            )
        if block_frames < 1 or block_frames % stride[0]:
            raise ValueError(
                f"block_frames {block_frames} is not a multiple of the temporal stride {stride[0]}; "
                f"use {max(1, round(block_frames / stride[0])) * stride[0]}"
            )
        self.stride = (stride[0], stride[1], stride[2])
        self.block_frames, self.squared_weight = block_frames, squared_weight
        self.bottleneck = build_bottleneck(bottleneck_type, bottleneck_options or {})
        widths = tuple(widths)
        self.encoder = Encoder(
            patch=patch, widths=widths, factors=factors, depth=depth, out_channels=self.bottleneck.in_channels
        )
        self.decoder = Decoder(
            patch=patch, widths=widths, factors=factors, depth=decoder_depth, in_channels=self.bottleneck.channels
        )
        self.register_statistics(self.bottleneck.channels)

    @property
    def spec(self) -> LatentSpec:
        part = LatentPart(
            "grid", "thw", self.stride, self.bottleneck.channels, self.bottleneck.codebooks, first_frame_alone=True
        )
        return LatentSpec((part,), causal=True, streamable=True)

    # encoding

    def encode(self, video: Tensor, *, sample: bool = False, generators: Generators | None = None) -> Latents:
        return Latents.join(list(self._encoded_blocks([video], sample=sample, generators=generators)))

    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Latents]:
        return self._encoded_blocks(chunks, sample=False, generators=None)

    @torch.no_grad()
    def _encoded_blocks(
        self, chunks: Iterable[Tensor], *, sample: bool, generators: Generators | None
    ) -> Iterator[Latents]:
        """The only way to encode: block by block, bottleneck included, so that a stream equals one shot."""
        cache, start = StreamCache(), 0
        for block, final in in_blocks(checked(chunks), first=1 + self.block_frames, others=self.block_frames):
            cache.begin_block(final=final)
            frames, height, width = block.shape[2:]
            features = self.encoder(self._padded(block.to(self.dtype), starts=cache.first), cache)
            yield self._latents(features, (frames, height, width), start=start, sample=sample, generators=generators)
            start += frames

    def _padded(self, video: Tensor, *, starts: bool) -> Tensor:
        """Repeat the last frame, column and row until the strides divide."""
        t, h, w = self.stride
        frames = video.shape[2] - 1 if starts else video.shape[2]
        missing = (-video.shape[4] % w, -video.shape[3] % h, -frames % t)
        if not any(missing):
            return video
        return F.pad(video, (0, missing[0], 0, missing[1], 0, missing[2]), mode="replicate")

    def _latents(
        self, features: Tensor, size: tuple[int, int, int], *, start: int, sample: bool, generators: Generators | None
    ) -> Latents:
        bottlenecked = self.bottleneck(
            rearrange(features, "b c t h w -> b (t h w) c"), sample=sample, generators=generators
        )
        ids = bottlenecked.ids
        tokens = self.standardise(bottlenecked.vectors) if ids is None else self.reals_from_ids(ids)
        return Latents(tokens, ids, size, self.spec, None, start)

    # decoding

    @torch.no_grad()
    def decode(self, latents: Latents, *, steps: int | None = None, generators: Generators | None = None) -> Tensor:
        return torch.cat(list(self.decode_stream([latents])), dim=2)

    @torch.no_grad()
    def decode_stream(self, chunks: Iterable[Latents]) -> Iterator[Tensor]:
        frames_in, frames_out, size = 0, 0, (0, 0)

        def vectors() -> Iterator[Tensor]:
            nonlocal frames_in, size
            for chunk in chunks:
                self._check_continues(chunk, frames_in, size)
                frames_in, size = frames_in + chunk.size[0], (chunk.size[1], chunk.size[2])
                yield self._vectors(chunk)

        rows = self.block_frames // self.stride[0]
        cache = StreamCache()
        for block, final in in_blocks(vectors(), first=1 + rows, others=rows):
            cache.begin_block(final=final)
            video = self.decoder(block, cache).clamp(-1.0, 1.0)
            video = video[:, :, : frames_in - frames_out, : size[0], : size[1]]
            frames_out += video.shape[2]
            yield video

    def _check_continues(self, latents: Latents, frames: int, size: tuple[int, int]) -> None:
        """Do `latents` fit this tokenizer and follow `frames` frames of `size` (height, width)?"""
        if latents.spec != self.spec:
            raise ValueError(f"these latents come from another tokenizer: expected {self.spec}, got {latents.spec}")
        if latents.start != frames:
            raise ValueError(
                f"expected latents that begin at frame {frames}, got ones that begin at frame {latents.start}; decode "
                "a stream from its first chunk on, in order, with decode_stream"
            )
        if frames and latents.size[1:] != size:
            raise ValueError(f"the chunks before are {size[0]}x{size[1]}, this one {latents.size[1]}x{latents.size[2]}")
        if frames and (frames - 1) % self.stride[0]:
            raise ValueError(
                f"the chunks before end after {frames} frames, inside a row of tokens; only the last chunk may (every "
                f"other one ends after 1 + {self.stride[0]}·k frames)"
            )

    def _vectors(self, latents: Latents) -> Tensor:
        tokens = latents.tokens if latents.ids is None else self.reals_from_ids(latents.ids)
        t, h, w = self.spec.grid(latents.size, start=latents.start)
        tokens = self.unstandardise(tokens.to(self.dtype))
        return rearrange(tokens, "b (t h w) c -> b c t h w", t=t, h=h, w=w)

    def reals_from_ids(self, ids: Tensor) -> Tensor:
        return self.standardise(self.bottleneck.lookup(ids))

    def ids_from_reals(self, tokens: Tensor) -> Tensor:
        return self.bottleneck.nearest(self.unstandardise(tokens.float()))  # bf16 could step over to another code

    # training

    def training_losses(
        self, video: Tensor, *, generators: Generators, critic: Critic | None = None
    ) -> dict[str, Tensor]:
        check_video(video)
        features = self.encoder(self._padded(video, starts=True))
        t, h, w = features.shape[2:]
        features = rearrange(features, "b c t h w -> b (t h w) c")
        bottlenecked = self.bottleneck(features, sample=True, generators=generators)
        vectors = rearrange(bottlenecked.vectors, "b (t h w) c -> b c t h w", t=t, h=h, w=w)
        reconstruction = self.decoder(vectors)[:, :, : video.shape[2], : video.shape[3], : video.shape[4]]
        error = (reconstruction - video).float()
        pixel_loss = error.abs().mean()
        losses = {"l1": pixel_loss, "l2": self.squared_weight * error.square().mean(), **bottlenecked.losses}
        if critic is not None:
            last_layer = self.decoder.conv_out.conv.weight
            losses |= critic(video, reconstruction, pixel_loss=pixel_loss, last_layer=last_layer)
        return losses


def halvings(stride: tuple[int, ...], patch: int) -> list[Factor]:
    """Downsampling factors that, after patches, give `stride`: space first, time last, together where they meet."""
    powers_of_two = all(extent > 0 and extent & (extent - 1) == 0 for extent in (*stride, patch))
    if len(stride) != 3 or stride[1] != stride[2] or not powers_of_two or stride[1] < patch:
        raise ValueError(
            f"stride must be three powers of two (t, s, s) with patch dividing s, got stride {tuple(stride)} and "
            f"patch {patch}; for example stride (4, 8, 8) with patch 2"
        )
    in_space, in_time = (stride[1] // patch).bit_length() - 1, stride[0].bit_length() - 1
    count = max(in_space, in_time)
    factors = []
    for index in range(count):
        s = 2 if index < in_space else 1
        factors.append((2 if index >= count - in_time else 1, s, s))
    return factors


def in_blocks(chunks: Iterable[Tensor], *, first: int, others: int) -> Iterator[tuple[Tensor, bool]]:
    """Cut a stream of `b c t h w` chunks into blocks of fixed lengths along t, and say which one is the last.

    The blocks depend on the total length alone, never on how the chunks came in.
    """
    waiting: list[Tensor] = []
    count, wanted = 0, first
    for chunk in chunks:
        waiting.append(chunk)
        count += chunk.shape[2]
        while count > wanted:  # not ≥: a full block may still be the last one
            joined = torch.cat(waiting, dim=2) if len(waiting) > 1 else waiting[0]
            yield joined[:, :, :wanted], False
            waiting, count, wanted = [joined[:, :, wanted:]], count - wanted, others
    if count:
        yield (torch.cat(waiting, dim=2) if len(waiting) > 1 else waiting[0]), True


def check_video(video: Tensor) -> None:
    if video.ndim != 5 or video.shape[1] != 3 or 0 in video.shape:
        raise ValueError(f"expected a video of shape b 3 t h w with at least one frame, got {tuple(video.shape)}")
    if not video.is_floating_point():
        raise ValueError(f"expected a video of floats in [-1, 1], got {video.dtype}; divide bytes by 127.5, subtract 1")


def checked(chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """The chunks of one stream, as long as they are videos of one size."""
    expected: tuple[int, ...] = ()
    for chunk in chunks:
        check_video(chunk)
        found = (chunk.shape[0], *chunk.shape[3:])
        expected = expected or found
        if found != expected:
            raise ValueError(f"chunks of one stream differ in (batch, height, width): first {expected}, then {found}")
        yield chunk
