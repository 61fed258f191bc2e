"""Convolution that is causal in time, with the state of a stream passed in and out explicitly."""

from collections.abc import Iterable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from vidgen.nn.norms import ActivatedChannelNorm


class StreamCache:
    """State of one stream between two blocks: the last input frames of every causal layer.

    Create one per stream, call `begin_block` before each block, and pass it to every layer. Without a cache a layer
    treats its input as a whole clip.

    Attributes:
        first: the block begins the stream.
        final: no block follows, so nothing is kept for one.
        states: what networks of other libraries keep, by any name; theirs to fill.
    """

    def __init__(self) -> None:
        self.first = True
        self.final = False
        self._blocks = 0
        self._frames: dict[nn.Module, Tensor] = {}
        self.states: dict[str, Any] = {}

    def begin_block(self, *, final: bool) -> None:
        self.first = self._blocks == 0
        self.final = final
        self._blocks += 1

    def extend(self, layer: nn.Module, x: Tensor, *, at_start: int, between: int) -> Tensor:
        """Put the frames before `x` in front of it.

        Args:
            layer: the layer whose state it is.
            x: `b c t h w`, the layer's input for this block.
            at_start: frames needed before the first frame of the stream; that frame is repeated.
            between: frames of a block that the next block needs.
        """
        before = self.before(layer)
        x = repeat_first_frame(x, at_start) if before is None else torch.cat([before, x], dim=2)
        self.keep(layer, x, between)
        return x

    def before(self, layer: nn.Module) -> Tensor | None:
        """Take out the frames that the last block left for `layer`; None at the start of the stream."""
        return self._frames.pop(layer, None)

    def keep(self, layer: nn.Module, x: Tensor, between: int) -> None:
        """Leave the last `between` frames of `b c t h w` for the next block, if there is one."""
        if not self.final and between > 0:
            self._frames[layer] = x[:, :, -between:].clone()

    def num_bytes(self) -> int:
        return sum(frames.numel() * frames.element_size() for frames in self._frames.values())


def repeat_first_frame(x: Tensor, times: int) -> Tensor:
    """`b c t h w -> b c (times + t) h w`: causal padding that keeps a still video still (VidTok)."""
    if times == 0:
        return x
    return torch.cat([x[:, :, :1].expand(-1, -1, times, -1, -1), x], dim=2)


class CausalConv3d(nn.Module):
    """3D convolution that never looks at later frames: `b c t h w -> b c' t' h' w'`.

    The first frame of a stream is repeated in front of it; space is padded with zeros. With stride s in time,
    1 + s·k frames become 1 + k (MAGVIT-v2, arXiv 2310.05737, section 3.2).

    Args:
        kernel, stride: along t, h, w; odd kernels.
        depthwise: each channel by itself.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: tuple[int, int, int],
        stride: tuple[int, int, int] = (1, 1, 1),
        depthwise: bool = False,
    ) -> None:
        super().__init__()
        padding = (0, kernel[1] // 2, kernel[2] // 2)
        groups = in_channels if depthwise else 1
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride, padding, groups=groups)
        self.at_start = kernel[0] - 1
        self.between = kernel[0] - stride[0]

    def forward(self, x: Tensor, cache: StreamCache | None = None) -> Tensor:
        if self.at_start == 0:
            return self.conv(x)
        if cache is None:
            return self.conv(repeat_first_frame(x, self.at_start))
        return self.conv(cache.extend(self, x, at_start=self.at_start, between=self.between))

    def after(self, norm: ActivatedChannelNorm, x: Tensor, cache: StreamCache | None = None) -> Tensor:
        """`self(norm(x), cache)`, the result of the norm written straight behind the frames of the cache."""
        x = norm(x, None if cache is None else cache.before(self), at_start=self.at_start)
        if cache is not None:
            cache.keep(self, x, self.between)
        return self.conv(x)


class Downsample(nn.Module):
    """Strided causal convolution; `factor` along t, h, w is 1 or 2."""

    def __init__(self, in_channels: int, out_channels: int, *, factor: tuple[int, int, int]) -> None:
        super().__init__()
        kernel = tuple_of_three(3 if extent > 1 else 1 for extent in factor)
        self.conv = CausalConv3d(in_channels, out_channels, kernel=kernel, stride=factor)

    def forward(self, x: Tensor, cache: StreamCache | None = None) -> Tensor:
        return self.conv(x, cache)


def tuple_of_three(values: Iterable[int]) -> tuple[int, int, int]:
    t, h, w = values
    return t, h, w


class Upsample(nn.Module):
    """Each position to its sub-pixels; the first frame of a stream gives one frame, every other `factor[0]`.

    A pointwise map: the blocks that follow mix neighbours at the finer resolution, where it costs less than a
    3 × 3 × 3 convolution to all sub-pixels.
    """

    def __init__(self, in_channels: int, out_channels: int, *, factor: tuple[int, int, int]) -> None:
        super().__init__()
        self.factor = factor
        subpixels = factor[0] * factor[1] * factor[2]
        self.to_subpixels = CausalConv3d(in_channels, out_channels * subpixels, kernel=(1, 1, 1))

    def forward(self, x: Tensor, cache: StreamCache | None = None) -> Tensor:
        x = self.to_subpixels(x)
        t, h, w = self.factor
        x = rearrange(x, "b (c ft fh fw) t h w -> b c (t ft) (h fh) (w fw)", ft=t, fh=h, fw=w)
        return x[:, :, t - 1 :] if cache is None or cache.first else x
