"""Key frames and motion (Video-LaVIT): tokens of every n-th frame, and block vectors that carry it to the others."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks the loader up in this module
from einops import rearrange, reduce, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from vidgen.bottlenecks import Bottleneck, Bottlenecked, build_bottleneck
from vidgen.latents import LatentPart, Latents, LatentSpec, VideoSize
from vidgen.nn.norms import ChannelRMSNorm, RMSNorm
from vidgen.nn.random import Generators
from vidgen.tokenizers.base import NO_SHAPE, check_latents, check_loss_weights, checked_shape
from vidgen.tokenizers.blockwise import check_block, checked, in_blocks, pad
from vidgen.tokenizers.vit import InSpace, PatchEmbedding, PatchOutput, check_transformer, check_windows
from vidgen.tokenizers.whole_clip import WholeClipTokenizer


class MotionVectors(Bottleneck):
    """Whole-pixel vectors (dy, dx) of at most `reach` along each axis, in units of `reach`; each one is a code.

    Args:
        reach: pixels.
        discrete: give ids; otherwise tokens are the rounded reals.
    """

    def __init__(self, *, reach: int, discrete: bool) -> None:
        super().__init__()
        self.reach, self.side = reach, 2 * reach + 1
        self.channels = self.in_channels = 2
        self.codebooks = (self.side**2,) if discrete else ()
        self.fixed = tuple(range(len(self.codebooks)))

    def forward(self, features: Tensor, *, sample: bool = False, generators: Generators | None = None) -> Bottlenecked:
        ids = self.nearest(features)
        return Bottlenecked(self.lookup(ids).to(features.dtype), ids if self.codebooks else None)

    def lookup(self, ids: Tensor) -> Tensor:
        return torch.cat([ids // self.side, ids % self.side], dim=-1) / self.reach - 1.0

    def nearest(self, vectors: Tensor) -> Tensor:
        steps = whole_pixels(vectors, self.reach) + self.reach
        return steps[..., :1] * self.side + steps[..., 1:]


def whole_pixels(vectors: Tensor, reach: int) -> Tensor:
    """Vectors in units of `reach` in whole pixels, long."""
    return (vectors.float() * reach).round().long().clamp(-reach, reach)


@torch.no_grad()
def block_motion(key: Tensor, frame: Tensor, *, block: int, reach: int) -> Tensor:
    """Where in `key` each block of `frame` comes from: `n 3 h w` twice -> (dy, dx) in pixels, `n 2 h/block w/block`.

    Full search for the least absolute difference; of equal ones the shortest vector.
    """
    _, _, h, w = frame.shape
    around = F.pad(key, (reach,) * 4, mode="replicate")
    candidates = [(dy, dx) for dy in range(-reach, reach + 1) for dx in range(-reach, reach + 1)]
    candidates.sort(key=lambda vector: (abs(vector[0]) + abs(vector[1]), vector))
    best, found = torch.empty(0), torch.empty(0)
    for dy, dx in candidates:
        moved = around[:, :, reach + dy : reach + dy + h, reach + dx : reach + dx + w]
        error = reduce((moved - frame).abs(), "n c (h p) (w q) -> n h w", "mean", p=block, q=block)
        vector = torch.tensor([dy, dx], device=key.device)[:, None, None]
        if (dy, dx) == (0, 0):
            best, found = error, vector.expand(len(key), 2, *error.shape[1:])
            continue
        better = error < best
        best, found = torch.where(better, error, best), torch.where(better[:, None], vector, found)
    return found


def carried(key: Tensor, vectors: Tensor, *, block: int) -> Tensor:
    """`key` (`n 3 h w`) with each block taken from where `vectors` (`n 2 ⌈h/block⌉ ⌈w/block⌉`, pixels) point."""
    n, _, h, w = key.shape
    dy, dx = repeat(vectors, "n two h w -> two n (h p) (w q)", p=block, q=block)[..., :h, :w]
    rows = (torch.arange(h, device=key.device)[:, None] + dy).clamp(0, h - 1)
    columns = (torch.arange(w, device=key.device)[None] + dx).clamp(0, w - 1)
    samples = torch.arange(n, device=key.device)[:, None, None]
    return rearrange(key[samples, :, rows, columns], "n h w c -> n c h w")


class Refiner(nn.Module):
    """Mends a carried frame: residual convolutions over it and its key frame, `n 3 h w` twice -> `n 3 h w`."""

    def __init__(self, width: int, *, layers: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(6, width, 3, padding=1)
        self.norms = nn.ModuleList(ChannelRMSNorm(width) for _ in range(layers))
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(layers))
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, frame: Tensor, key: Tensor) -> Tensor:
        x = self.conv_in(torch.cat([frame, key], dim=1))
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(F.silu(norm(x)))
        return frame + self.conv_out(F.silu(x))


class KeyframeMotionTokenizer(WholeClipTokenizer, ConfigMixin):
    """Frames in groups: the first one has image tokens, the others have block motion vectors from it.

    After Video-LaVIT (arXiv 2402.03161, section 3.1), whose motion tokens are a learned code of MPEG-4's vectors and
    whose decoder is a diffusion model; here a vector is its own code, and decoding moves blocks and mends them. Groups
    know nothing of each other: streams of any length run in constant memory.

    Args:
        bottleneck_type: of the key frames; a name in `vidgen.bottlenecks.BOTTLENECKS` with at most one id a token.
        bottleneck_options: keyword arguments of that bottleneck.
        group: frames from one key frame to the next.
        patch: pixels a side of a key-frame token; block: of a motion token.
        reach: longest motion in pixels along each axis.
        width, heads: of the key frames' transformers; windows: one entry a layer, tokens a side of its attention
            windows, 0 = the whole frame.
        refiner_width, refiner_layers: of the convolutions that mend moved frames.
        block_frames: inference runs in blocks of this many frames, a multiple of `group`.
        squared_weight: of the squared error beside the absolute one in training.
    """

    learns_hidden_frames = False  # key frames are coded one by one, and motion is searched in what is seen
    token_parts = ("to_patches", "encoder", "norm_features", "to_features", "bottlenecks")

    @register_to_config
    def __init__(
        self,
        bottleneck_type: str = "fsq",
        bottleneck_options: dict[str, Any] | None = None,
        group: int = 8,
        patch: int = 8,
        block: int = 16,
        reach: int = 7,
        width: int = 512,
        heads: int = 8,
        windows: tuple[int, ...] = (0, 0, 8, 8),
        refiner_width: int = 64,
        refiner_layers: int = 4,
        block_frames: int = 16,
        squared_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if group < 2 or min(patch, block, reach, refiner_width, refiner_layers) < 1:
            raise ValueError(
                "expected a group of at least 2 frames, and patch, block, reach, refiner_width and refiner_layers of "
                f"at least 1, got {group}, {patch}, {block}, {reach}, {refiner_width} and {refiner_layers}"
            )
        check_block(block_frames, (group, patch, patch))
        check_windows(windows)
        check_transformer(width=width, heads=heads, layers=len(windows))
        key = build_bottleneck(bottleneck_type, bottleneck_options or {})
        motion = MotionVectors(reach=reach, discrete=bool(key.codebooks))
        self.register_parts({"key": key, "motion": motion}, ("key", "motion"))
        self.group, self.patch, self.block, self.longest = group, patch, block, reach
        check_loss_weights(squared_weight=squared_weight)
        self.block_frames, self.squared_weight = block_frames, squared_weight
        self.to_patches = PatchEmbedding((1, patch, patch), width, lone_first=False)
        self.encoder = InSpace(width, heads, windows=tuple(windows))
        self.norm_features = RMSNorm(width)
        self.to_features = nn.Linear(width, key.in_channels)
        self.from_vectors = nn.Linear(key.channels, width)
        self.decoder = InSpace(width, heads, windows=tuple(windows))
        self.norm_pixels = RMSNorm(width)
        self.to_pixels = PatchOutput(width, (1, patch, patch), lone_first=False)
        self.refiner = Refiner(refiner_width, layers=refiner_layers)

    @property
    def spec(self) -> LatentSpec:
        key, motion = self.bottleneck_at(0), self.bottleneck_at(1)
        return LatentSpec(
            (
                LatentPart("key", "thw", (self.group, self.patch, self.patch), key.channels, key.codebooks),
                LatentPart(
                    "motion",
                    "thw",
                    (self.group, self.block, self.block),
                    motion.channels,
                    motion.codebooks,
                    count=self.group - 1,
                ),
            ),
            causal=True,
            streamable=True,
        )

    def features(self, video: Tensor) -> list[Tensor]:
        video = pad(video, (-video.shape[2] % self.group, 0, 0))
        keys = video[:, :, :: self.group]
        keys = pad(keys, (0, -keys.shape[3] % self.patch, -keys.shape[4] % self.patch))
        x = self.norm_features(self.encoder(self.to_patches(keys)))
        return [rearrange(self.to_features(x), "b t h w c -> b (t h w) c"), self._motion(video)]

    def _motion(self, video: Tensor) -> Tensor:
        """`b 3 (t g) h w -> b (g-1 t h' w') 2`: vectors from the key frame of each group to its other frames."""
        video = pad(video, (0, -video.shape[3] % self.block, -video.shape[4] % self.block))
        groups = rearrange(video, "b c (t g) h w -> g (b t) c h w", g=self.group)
        keys = repeat(groups[0], "b c h w -> (n b) c h w", n=self.group - 1)
        others = rearrange(groups[1:], "n b c h w -> (n b) c h w")
        vectors = block_motion(keys, others, block=self.block, reach=self.longest)
        vectors = rearrange(vectors, "(n b t) two h w -> b (n t h w) two", n=self.group - 1, b=len(video))
        return vectors.to(video.dtype) / self.longest

    def pixels(self, vectors: list[Tensor], size: VideoSize) -> Tensor:
        (t, h, w), (_, rows, columns) = self.spec.grid(size, 0), self.spec.grid(size, 1)
        x = self.decoder(rearrange(self.from_vectors(vectors[0]), "b (t h w) d -> b t h w d", t=t, h=h, w=w))
        keys = rearrange(self.to_pixels(self.norm_pixels(x)), "b c t h w -> (b t) c h w")[..., : size[1], : size[2]]
        motion = whole_pixels(vectors[1], self.longest)
        motion = rearrange(motion, "b (n t h w) two -> (n b t) two h w", t=t, h=rows, w=columns)
        sources = repeat(keys, "b c h w -> (n b) c h w", n=self.group - 1)
        others = self.refiner(carried(sources, motion, block=self.block), sources)
        frames = torch.cat([keys, others])
        return rearrange(frames, "(g b t) c h w -> b c (t g) h w", g=self.group, t=t)[:, :, : size[0]]

    @property
    def last_layer(self) -> Tensor:
        return self.to_pixels.others.weight

    # streams: groups are independent, and blocks are fixed so that a stream rounds like one shot

    def encode(self, video: Tensor, *, sample: bool = False, generators: Generators | None = None) -> Latents:
        return Latents.join(list(self._encoded_blocks([video], sample=sample, generators=generators)))

    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Latents]:
        return self._encoded_blocks(chunks, sample=False, generators=None)

    def _encoded_blocks(
        self, chunks: Iterable[Tensor], *, sample: bool, generators: Generators | None
    ) -> Iterator[Latents]:
        start = 0
        for block, _ in in_blocks(checked(chunks), first=self.block_frames, others=self.block_frames):
            yield self.encode_from(start, block, sample=sample, generators=generators)
            start += block.shape[2]

    @torch.no_grad()
    def decode(self, latents: Latents, *, steps: int | None = None, generators: Generators | None = None) -> Tensor:
        return torch.cat(list(self.decode_stream([latents])), dim=2)

    @torch.no_grad()
    def decode_stream(self, chunks: Iterable[Latents]) -> Iterator[Tensor]:
        rows = self.block_frames // self.group
        waiting: list[Latents] = []
        frames, shape = 0, NO_SHAPE
        for chunk in chunks:
            check_latents(chunk, self.spec)
            if chunk.start != frames or frames % self.group:
                raise ValueError(
                    f"expected latents that begin at frame {frames}, after whole groups of {self.group} frames, got "
                    f"ones that begin at frame {chunk.start}; decode a stream from its first chunk on, in order"
                )
            shape = checked_shape(chunk, shape)
            frames += chunk.size[0]
            waiting += chunk.split(1)
            while len(waiting) >= rows:
                yield self._decoded_block(waiting[:rows])
                waiting = waiting[rows:]
        if waiting:
            yield self._decoded_block(waiting)

    def _decoded_block(self, groups: list[Latents]) -> Tensor:
        block = replace(Latents.join(groups), start=0)
        return self.pixels(self.vectors(block), block.size).clamp(-1.0, 1.0)
