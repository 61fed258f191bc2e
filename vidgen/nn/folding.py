"""Pixels folded into channels before the first layer, and back: plain patches, or the bands of Haar wavelets."""

from abc import ABC, abstractmethod

import torch
from einops import rearrange
from torch import Tensor

from vidgen.nn.causal_conv import StreamCache, repeat_first_frame

TIME, HEIGHT, WIDTH = 2, 3, 4  # dimensions of `b c t h w`


class Folding(ABC):
    """`b c t h w <-> b (c·frames·side²) t' h' w'`, exactly invertible and causal.

    The first frame of a stream is folded with itself, so that it has a row alone (Cosmos, arXiv 2501.03575, 3.1).

    Args:
        frames, side: pixels folded along t, and along h and w; powers of two.
    """

    def __init__(self, *, frames: int, side: int) -> None:
        self.frames, self.side = frames, side
        self.pixels = frames * side * side

    def fold(self, video: Tensor, cache: StreamCache | None = None) -> Tensor:
        starts = cache is None or cache.first
        return self.folded(repeat_first_frame(video, self.frames - 1) if starts else video)

    def unfold(self, x: Tensor, cache: StreamCache | None = None) -> Tensor:
        starts = cache is None or cache.first
        return self.unfolded(x)[:, :, self.frames - 1 if starts else 0 :]

    @abstractmethod
    def folded(self, video: Tensor) -> Tensor:
        """Whole patches only."""

    @abstractmethod
    def unfolded(self, x: Tensor) -> Tensor:
        """The inverse of `folded`."""


class PatchFolding(Folding):
    """Every pixel of a patch is a channel."""

    def folded(self, video: Tensor) -> Tensor:
        f, p = self.frames, self.side
        return rearrange(video, "b c (t f) (h p) (w q) -> b (c f p q) t h w", f=f, p=p, q=p)

    def unfolded(self, x: Tensor) -> Tensor:
        f, p = self.frames, self.side
        return rearrange(x, "b (c f p q) t h w -> b c (t f) (h p) (w q)", f=f, p=p, q=p)


class HaarFolding(Folding):
    """Every band of a Haar wavelet packet is a channel: means first, then differences (Cosmos; WF-VAE, 2411.17459).

    Low bands are means and high bands half differences, so that all stay within the range of the pixels.
    """

    def __init__(self, *, frames: int, side: int) -> None:
        super().__init__(frames=frames, side=side)
        self.axes: list[int] = []
        for level in range(max(frames, side).bit_length() - 1):
            self.axes += [WIDTH, HEIGHT] if level < side.bit_length() - 1 else []
            self.axes += [TIME] if level < frames.bit_length() - 1 else []

    def folded(self, video: Tensor) -> Tensor:
        for axis in self.axes:
            even, odd = video.unflatten(axis, (-1, 2)).unbind(axis + 1)
            video = torch.cat([(even + odd) / 2, (even - odd) / 2], dim=1)
        return video

    def unfolded(self, x: Tensor) -> Tensor:
        for axis in reversed(self.axes):
            low, high = x.chunk(2, dim=1)
            x = torch.stack([low + high, low - high], dim=axis + 1).flatten(axis, axis + 1)
        return x


FOLDINGS: dict[str, type[Folding]] = {"patch": PatchFolding, "haar": HaarFolding}
