"""Keys and values of the clean frames of a video that grows chunk by chunk (ViD-GPT, arXiv 2406.10981)."""

import torch
from torch import Tensor


class LayerFrames:
    """One layer's part of a `FrameCache`."""

    def __init__(self, owner: "FrameCache") -> None:
        self.owner = owner
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values `b h n d` to attend to; the new ones are kept only while the cache is storing."""
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)
        if self.owner.storing:
            self.keys, self.values = self.owner.kept(keys), self.owner.kept(values)
        return keys, values


class FrameCache:
    """What a frame-causal transformer remembers of the clean frames so far; one for each branch of guidance.

    Args:
        layers: of the transformer.
        tokens_per_frame: as the transformer sees them (patches).
        past_frames, sink_frames: frames to keep, the last and the first ones; `None` keeps all. With a number the
            memory is constant however long the video gets.
    """

    def __init__(
        self, layers: int, tokens_per_frame: int, *, past_frames: int | None = None, sink_frames: int = 0
    ) -> None:
        self.layers = [LayerFrames(self) for _ in range(layers)]
        self.tokens_per_frame = tokens_per_frame
        self.past_frames, self.sink_frames = past_frames, sink_frames
        self.storing = False

    @property
    def frames(self) -> int:
        """Frames that are remembered."""
        keys = self.layers[0].keys
        return 0 if keys is None else keys.shape[2] // self.tokens_per_frame

    def kept(self, tensor: Tensor) -> Tensor:
        """`b h n d` without the frames that no later frame sees."""
        if self.past_frames is None or tensor.shape[2] <= (self.sink_frames + self.past_frames) * self.tokens_per_frame:
            return tensor
        first = tensor[:, :, : self.sink_frames * self.tokens_per_frame]
        last = tensor[:, :, tensor.shape[2] - self.past_frames * self.tokens_per_frame :]
        return torch.cat([first, last], dim=2)
