"""Tokenizers that run a clip in fixed blocks of frames: one grid of tokens, and streams that equal one shot."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from vidgen.bottlenecks import Bottleneck, Bottlenecked
from vidgen.latents import LatentPart, Latents, LatentSpec, VideoSize
from vidgen.nn.causal_conv import StreamCache
from vidgen.nn.random import Generators
from vidgen.tokenizers.base import (
    NO_SHAPE,
    Critic,
    Tokenizer,
    check_latents,
    check_pixels,
    check_video,
    check_whole,
    checked_shape,
    reconstruction_losses,
)


class BlockwiseTokenizer(Tokenizer):
    """A trunk gives `features` and `pixels` of a block; padding, bottleneck, streams and losses are here.

    Attributes:
        stride: frames, rows and columns of pixels per token.
        block_frames: frames of a block, a multiple of the temporal stride; `None` = the whole clip is one block, and
            nothing streams.
        lone_first: the first frame has a row of tokens by itself, and the first block is one frame longer.
        causal: features of a frame never depend on later ones.
        bottleneck: between the features and the pixels.
        squared_weight: of the squared error beside the absolute one.
    """

    stride: VideoSize
    block_frames: int | None
    lone_first: bool = True
    causal: bool = True
    bottleneck: Bottleneck
    squared_weight: float

    @abstractmethod
    def features(self, video: Tensor, cache: StreamCache | None) -> Tensor:
        """`b 3 t h w -> b c t' h' w'` with the `in_channels` of the bottleneck; `None` = the block is a whole clip."""

    @abstractmethod
    def pixels(self, vectors: Tensor, cache: StreamCache | None) -> Tensor:
        """`b c t' h' w' -> b 3 t h w`, all frames, rows and columns that the tokens stand for."""

    @abstractmethod
    def last_layer(self, frames: int) -> Tensor:
        """The decoder's weight at which an adversarial term measures its gradient, for clips of so many frames."""

    @property
    def spec(self) -> LatentSpec:
        channels, codebooks = self.bottleneck.channels, self.bottleneck.codebooks
        part = LatentPart("grid", "thw", self.stride, channels, codebooks, first_frame_alone=self.lone_first)
        return LatentSpec((part,), causal=self.causal, streamable=self.block_frames is not None)

    # encoding

    def encode(self, video: Tensor, *, sample: bool = False, generators: Generators | None = None) -> Latents:
        return Latents.join(list(self._encoded_blocks([video], sample=sample, generators=generators)))

    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Latents]:
        if self.block_frames is None:
            return super().encode_stream(chunks)
        return self._encoded_blocks(chunks, sample=False, generators=None)

    @torch.no_grad()
    def _encoded_blocks(
        self, chunks: Iterable[Tensor], *, sample: bool, generators: Generators | None
    ) -> Iterator[Latents]:
        """The only way to encode: block by block, bottleneck included, so that a stream equals one shot."""
        cache, start = StreamCache(), 0
        for block, final in self._blocks(checked(chunks), length=self.block_frames):
            cache.begin_block(final=final)
            frames, height, width = block.shape[2:]
            features = self.features(self._padded(block.to(self.dtype), starts=cache.first), cache)
            yield self._latents(features, (frames, height, width), start=start, sample=sample, generators=generators)
            start += frames

    def _blocks(self, chunks: Iterable[Tensor], *, length: int | None) -> Iterator[tuple[Tensor, bool]]:
        if length is not None:
            return in_blocks(chunks, first=self.lone_first + length, others=length)
        whole = list(chunks)
        return iter([(torch.cat(whole, dim=2), True)] if whole else [])

    def _padded(self, video: Tensor, *, starts: bool) -> Tensor:
        """Repeat the last frame, column and row until the strides divide."""
        t, h, w = self.stride
        frames = video.shape[2] - 1 if starts and self.lone_first else video.shape[2]
        return pad(video, (-frames % t, -video.shape[3] % h, -video.shape[4] % w))

    def _latents(
        self, features: Tensor, size: VideoSize, *, start: int, sample: bool, generators: Generators | None
    ) -> Latents:
        bottlenecked = self.bottlenecked(features, sample=sample, generators=generators)
        ids = bottlenecked.ids
        tokens = self.standardise(bottlenecked.vectors) if ids is None else self.reals_from_ids(ids, size)
        return Latents(tokens, ids, size, self.spec, None, start)

    def bottlenecked(self, features: Tensor, *, sample: bool, generators: Generators | None) -> Bottlenecked:
        """`features` through the bottleneck; the vectors are `b (t' h' w') c`."""
        return self.bottleneck(rearrange(features, "b c t h w -> b (t h w) c"), sample=sample, generators=generators)

    # decoding

    @torch.no_grad()
    def decode(self, latents: Latents, *, steps: int | None = None, generators: Generators | None = None) -> Tensor:
        return torch.cat(list(self._decoded_blocks([latents])), dim=2)

    def decode_stream(self, chunks: Iterable[Latents]) -> Iterator[Tensor]:
        if self.block_frames is None:
            return super().decode_stream(chunks)
        return self._decoded_blocks(chunks)

    @torch.no_grad()
    def _decoded_blocks(self, chunks: Iterable[Latents]) -> Iterator[Tensor]:
        frames_in, frames_out, shape = 0, 0, NO_SHAPE

        def vectors() -> Iterator[Tensor]:
            nonlocal frames_in, shape
            for chunk in chunks:
                self._check_continues(chunk, frames_in)
                shape = checked_shape(chunk, shape)
                frames_in += chunk.size[0]
                yield self.vectors(chunk)

        rows = None if self.block_frames is None else self.block_frames // self.stride[0]
        cache = StreamCache()
        for block, final in self._blocks(vectors(), length=rows):
            cache.begin_block(final=final)
            video = self.pixels(block, cache).clamp(-1.0, 1.0)
            video = video[:, :, : frames_in - frames_out, : shape[1], : shape[2]]
            frames_out += video.shape[2]
            yield video

    def _check_continues(self, latents: Latents, frames: int) -> None:
        """Do `latents` fit this tokenizer and follow `frames` frames?"""
        check_latents(latents, self.spec)
        if latents.start != frames:
            raise ValueError(
                f"expected latents that begin at frame {frames}, got ones that begin at frame {latents.start}; decode "
                "a stream from its first chunk on, in order, with decode_stream"
            )
        if frames and (frames - self.lone_first) % self.stride[0]:
            raise ValueError(
                f"the chunks before end after {frames} frames, inside a row of tokens; only the last chunk may (every "
                f"other one ends after {int(self.lone_first)} + {self.stride[0]}·k frames)"
            )

    def vectors(self, latents: Latents) -> Tensor:
        """What `pixels` takes."""
        check_whole(latents)
        tokens = latents.tokens if latents.ids is None else self.reals_from_ids(latents.ids)
        t, h, w = self.spec.grid(latents.size, start=latents.start)
        tokens = self.unstandardise(tokens.to(self.dtype))
        return rearrange(tokens, "b (t h w) c -> b c t h w", t=t, h=h, w=w)

    def reals_from_ids(self, ids: Tensor, size: VideoSize | None = None) -> Tensor:
        return self.standardise(self.bottleneck.lookup(ids))

    def ids_from_reals(self, tokens: Tensor, size: VideoSize | None = None) -> Tensor:
        return self.bottleneck.nearest(self.unstandardise(tokens.float()))  # bf16 could step over to another code

    # training

    def training_losses(
        self, video: Tensor, *, generators: Generators, critic: Critic | None = None
    ) -> dict[str, Tensor]:
        check_video(video)
        features = self.features(self._padded(video, starts=True), None)
        t, h, w = features.shape[2:]
        bottlenecked = self.bottlenecked(features, sample=True, generators=generators)
        vectors = rearrange(bottlenecked.vectors, "b (t h w) c -> b c t h w", t=t, h=h, w=w)
        reconstruction = self.pixels(vectors, None)[:, :, : video.shape[2], : video.shape[3], : video.shape[4]]
        losses = reconstruction_losses(
            video,
            reconstruction,
            squared_weight=self.squared_weight,
            critic=critic,
            last_layer=self.last_layer(video.shape[2]),
        )
        return {**losses, **bottlenecked.losses}


def check_block(block_frames: int, stride: VideoSize) -> None:
    """ValueError unless blocks of `block_frames` frames are whole rows of tokens."""
    if not isinstance(block_frames, int):
        raise ValueError(f"block_frames is a whole number of frames, got {block_frames}; for example {4 * stride[0]}")
    if block_frames < 1 or block_frames % stride[0]:
        raise ValueError(
            f"block_frames {block_frames} is not a multiple of the temporal stride {stride[0]}; "
            f"use {max(1, round(block_frames / stride[0])) * stride[0]}"
        )


def pad(video: Tensor, missing: VideoSize) -> Tensor:
    """`b 3 t h w` with the last frame, row and column repeated `missing` (t, h, w) times."""
    if not any(missing):
        return video
    return F.pad(video, (0, missing[2], 0, missing[1], 0, missing[0]), mode="replicate")


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
            yield joined[:, :, :wanted].contiguous(), False  # products of a strided view may round otherwise
            waiting, count, wanted = [joined[:, :, wanted:]], count - wanted, others
    if count:
        yield (torch.cat(waiting, dim=2) if len(waiting) > 1 else waiting[0]).contiguous(), True


def checked(chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """The chunks of one stream, as long as they are videos of one size."""
    expected: tuple[int, ...] = ()
    for chunk in chunks:
        check_pixels(chunk)
        found = (chunk.shape[0], *chunk.shape[3:])
        expected = expected or found
        if found != expected:
            raise ValueError(f"chunks of one stream differ in (batch, height, width): first {expected}, then {found}")
        yield chunk
