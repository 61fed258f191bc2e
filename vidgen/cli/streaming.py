"""How a command sends a clip of any length through a tokenizer: chunks of frames in, chunks of frames or tokens out."""

from collections.abc import Iterable, Iterator

import numpy as np
from einops import rearrange
from rich.console import Console
from rich.progress import track
from torch import Tensor

from vidgen.data.video import to_frames, to_tensor
from vidgen.latents import Latents
from vidgen.tokenizers.base import Tokenizer

CHUNK = 16  # frames held at a time; the tokenizer's own blocks decide what is computed together


def chunks_of(frames: Iterable[np.ndarray], tokenizer: Tokenizer) -> Iterator[Tensor]:
    """Frames (`h w 3` uint8) as chunks `1 3 t h w` in [-1, 1], on the tokenizer's device and in its dtype."""
    held: list[np.ndarray] = []
    for frame in frames:
        held.append(frame)
        if len(held) == CHUNK:
            yield _batch(held, tokenizer)
            held = []
    if held:
        yield _batch(held, tokenizer)


def encoded(tokenizer: Tokenizer, frames: Iterable[np.ndarray]) -> Iterator[Latents]:
    """Tokens of a clip, chunk by chunk where the tokenizer streams, all at once where it has to see the whole clip."""
    return tokenizer.encode_chunks(chunks_of(frames, tokenizer))


def tokens_of(tokenizer: Tokenizer, frames: Iterable[np.ndarray]) -> Latents:
    """All tokens of a clip as one value; the frames themselves are never all in memory where the tokenizer streams."""
    chunks = list(encoded(tokenizer, frames))
    return chunks[0] if len(chunks) == 1 else Latents.join(chunks)


def reconstructed(tokenizer: Tokenizer, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The frames (`h w 3` uint8) that come back from the tokens of `frames`: as many, of the same size."""
    yield from decoded(tokenizer, encoded(tokenizer, frames))


def decoded(tokenizer: Tokenizer, latents: Iterable[Latents]) -> Iterator[np.ndarray]:
    """The frames (`h w 3` uint8) of tokens that come in chunks."""
    on_device = (chunk.to(tokenizer.device, tokenizer.dtype) for chunk in latents)
    for chunk in tokenizer.decode_chunks(on_device):
        yield from to_frames(rearrange(chunk.float(), "1 c t h w -> c t h w"))


class Counted:
    """Frames on their way, counted, with a bar where the errors go if that is a terminal.

    Args:
        total: how many are expected, if that is known.
    """

    def __init__(self, frames: Iterable[np.ndarray], *, total: int | None) -> None:
        self.frames, self.total, self.count = frames, total, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        console = Console(stderr=True)
        hidden = not console.is_terminal
        for frame in track(self.frames, "frames", self.total, console=console, transient=True, disable=hidden):
            self.count += 1
            yield frame


def _batch(frames: list[np.ndarray], tokenizer: Tokenizer) -> Tensor:
    video = to_tensor(np.stack(frames))
    return rearrange(video, "c t h w -> 1 c t h w").to(tokenizer.device, tokenizer.dtype)
