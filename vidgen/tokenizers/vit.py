"""Transformer parts that tokenizers share: patches in and out, blocks for one shot, and blocks that stream."""

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from vidgen.kernels import AttentionSpec, attention3d
from vidgen.latents import VideoSize
from vidgen.nn.causal_conv import StreamCache
from vidgen.nn.norms import RMSNorm, RotaryRMSNorm
from vidgen.nn.positions import grid_places, rotary
from vidgen.nn.transformer import Block, FeedForward


def check_transformer(*, width: int, heads: int, layers: int) -> None:
    """ValueError unless a transformer of these sizes can be built."""
    whole = all(isinstance(number, int) for number in (width, heads, layers))
    if not whole or min(width, heads, layers) < 1 or width % (2 * heads) or width < 6 * heads:
        raise ValueError(
            "a transformer needs at least one layer and a width that is an even multiple of its heads, at least 6 "
            f"channels each (two for a place along each axis), got width {width}, {heads} heads and {layers} layers; "
            f"for example width {max(1, heads) * 64} for {heads} heads"
        )


def check_windows(windows: tuple[int, ...]) -> None:
    """ValueError unless each of `windows`, at least one, is a number of tokens a side, or 0 for the whole frame."""
    if not windows or not all(isinstance(window, int) and window >= 0 for window in windows):
        raise ValueError(
            f"each window, one a layer, must be a number of tokens a side, or 0 for a whole frame, got {windows}"
        )


def check_stride(stride: tuple[int, ...]) -> VideoSize:
    """`stride` as (frames, rows, columns) per token, each at least 1; else ValueError."""
    if len(stride) != 3 or not all(isinstance(extent, int) and extent >= 1 for extent in stride):
        raise ValueError(
            f"stride must be three whole numbers (t, h, w) of at least 1, got {tuple(stride)}; e.g. (4, 8, 8)"
        )
    return stride[0], stride[1], stride[2]


class PatchEmbedding(nn.Module):
    """`b 3 t h w -> b t' h' w' d`: a linear map of each patch; a lone first frame has a map of its own.

    Args:
        stride: pixels of a patch along t, h, w; they must divide the video.
        lone_first: the first frame of a video makes patches by itself.
    """

    def __init__(self, stride: VideoSize, width: int, *, lone_first: bool) -> None:
        super().__init__()
        self.stride = stride
        frames, pixels = stride[0], 3 * stride[1] * stride[2]
        self.first = nn.Linear(pixels, width) if lone_first and frames > 1 else None
        self.others = nn.Linear(frames * pixels, width)

    def forward(self, video: Tensor, *, starts: bool = True) -> Tensor:
        if self.first is None or not starts:
            return self.others(self._patches(video, self.stride[0]))
        first, others = self._patches(video[:, :, :1], 1), self._patches(video[:, :, 1:], self.stride[0])
        return torch.cat([self.first(first), self.others(others)], dim=1)

    def _patches(self, video: Tensor, frames: int) -> Tensor:
        _, p, q = self.stride
        return rearrange(video, "b c (t f) (h p) (w q) -> b t h w (c f p q)", f=frames, p=p, q=q)


class PatchOutput(nn.Module):
    """`b t' h' w' d -> b 3 t h w`: the embedding backwards."""

    def __init__(self, width: int, stride: VideoSize, *, lone_first: bool) -> None:
        super().__init__()
        self.stride = stride
        frames, pixels = stride[0], 3 * stride[1] * stride[2]
        self.first = nn.Linear(width, pixels) if lone_first and frames > 1 else None
        self.others = nn.Linear(width, frames * pixels)

    def forward(self, x: Tensor, *, starts: bool = True) -> Tensor:
        if self.first is None or not starts:
            return self._video(self.others(x), self.stride[0])
        first, others = self.first(x[:, :1]), self.others(x[:, 1:])
        return torch.cat([self._video(first, 1), self._video(others, self.stride[0])], dim=2)

    def layer(self, frames: int) -> nn.Linear:
        """The layer that makes all but the first frame of a clip of so many frames, or that one where it is alone."""
        return self.others if self.first is None or frames > 1 else self.first

    def _video(self, patches: Tensor, frames: int) -> Tensor:
        _, p, q = self.stride
        return rearrange(patches, "b t h w (c f p q) -> b c (t f) (h p) (w q)", f=frames, p=p, q=q)


class InSpace(nn.Module):
    """Blocks within each frame of `b t h w d`: a layer sees the whole frame (0) or windows of so many tokens a side."""

    def __init__(self, width: int, heads: int, *, windows: tuple[int, ...]) -> None:
        super().__init__()
        self.windows = windows
        self.blocks = nn.ModuleList(Block(width, heads) for _ in windows)
        self.head_channels = width // heads

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w, _ = x.shape
        frame = (1, h, w)
        turns = rotary(grid_places(frame, device=x.device), self.head_channels)
        x = rearrange(x, "b t h w d -> (b t) (h w) d")
        for block, side in zip(self.blocks, self.windows, strict=True):
            pattern = AttentionSpec.swin3d(frame, (1, side, side)) if side else AttentionSpec.full(frame)
            x = block(x, pattern, turns)
        return rearrange(x, "(b t) (h w) d -> b t h w d", b=b, h=h, w=w)


class FrameCausalAttention(nn.Module):
    """Self-attention in which the tokens of a frame see those of their own frame and of `past` frames before it.

    Positions are rotary and count within what is seen, so they never grow and a still stream stays still.
    """

    def __init__(self, width: int, heads: int, *, past: int) -> None:
        super().__init__()
        self.heads, self.past = heads, past
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.norm_q = RotaryRMSNorm(width // heads)
        self.norm_k = RotaryRMSNorm(width // heads)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor, grid: VideoSize, cache: StreamCache | None) -> Tensor:
        """`b (t h w) d -> b (t h w) d`; `cache` holds the keys and values of the frames before these."""
        q, k, v = rearrange(self.to_qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        t, h, w = grid
        keys_values = rearrange([k, v], "two b n (t h w) d -> b (two n d) t h w", t=t, h=h, w=w)
        if cache is not None:
            keys_values = cache.extend(self, keys_values, at_start=0, between=self.past)
        seen = keys_values.shape[2]
        k, v = rearrange(keys_values, "b (two n d) t h w -> two b n (t h w) d", two=2, n=self.heads)
        cosines, sines = rotary(grid_places((seen, h, w), device=x.device), q.shape[-1])
        q, k = self.norm_q(q, cosines[-q.shape[2] :], sines[-q.shape[2] :]), self.norm_k(k, cosines, sines)
        pattern = AttentionSpec(
            grid=grid,
            window=((self.past, 0), None, None),
            causal=(True, False, False),
            q_frame_offset=seen - t,
            kv_frames=seen,
        )
        return self.to_out(rearrange(attention3d(q, k, v, pattern), "b h n d -> b n (h d)"))


class FrameCausalBlock(nn.Module):
    """Pre-norm block that streams: x + frame-causal self-attention, + feed-forward."""

    def __init__(self, width: int, heads: int, *, past: int, expansion: float = 4.0) -> None:
        super().__init__()
        self.norm_attn = RMSNorm(width)
        self.attn = FrameCausalAttention(width, heads, past=past)
        self.norm_ff = RMSNorm(width)
        self.ff = FeedForward(width, expansion=expansion)

    def forward(self, x: Tensor, grid: VideoSize, cache: StreamCache | None) -> Tensor:
        x = x + self.attn(self.norm_attn(x), grid, cache)
        return x + self.ff(self.norm_ff(x))


def learned_vectors(count: int, width: int) -> nn.Parameter:
    """`n d` vectors that learn, as loud as `sine_features`."""
    return nn.Parameter(torch.randn(count, width) * math.sqrt(0.5))
