"""The interface of every tokenizer: video in, `Latents` out, and back."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar, Protocol

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from vidgen.latents import Latents, LatentSpec, VideoSize
from vidgen.nn.random import Generators
from vidgen.tokenizers.losses import absolute_error, squared_error

NO_SHAPE = (0, 0, 0)  # of the chunks before the first one
FAR = 4.0  # pixels beyond are no overshoot of a video in [-1, 1]
PixelTerms = Callable[[Tensor, Tensor], dict[str, Tensor]]
"""Original and reconstruction -> weighted pixel errors: what a tokenizer takes when nobody says otherwise."""


class Critic(Protocol):
    """Judges a reconstruction; owned by training (pixel errors, perceptual distance, discriminators)."""

    def __call__(self, real: Tensor, fake: Tensor, *, own: PixelTerms, last_layer: Tensor) -> dict[str, Tensor]:
        """All weighted loss terms of the reconstruction `fake` of `real`, videos `b 3 t h w` in [-1, 1].

        `own` is what the tokenizer would take by itself, for a critic to use or to replace. `last_layer` (a weight of
        the decoder) lets an adversarial term balance its gradient (VQGAN, arXiv 2012.09841, equation 7).
        """
        ...


class Tokenizer(ModelMixin, ConfigMixin, ABC):
    """Video ↔ tokens.

    Every tokenizer gives back exactly as many frames of exactly that size for any video of ≥ 1 frames.
    Tokens are standardised by `latent_mean` and `latent_std` (`c` each, buffers, frozen after training).
    """

    latent_mean: Tensor
    latent_std: Tensor
    learns_hidden_frames: ClassVar[bool] = True
    """Whether it can be trained to give back frames that it was not shown (`frame_masking`)."""
    trains_on_pieces: ClassVar[bool] = False
    """Whether a training step makes pieces of its clips alone, so that nothing else can learn from what it makes."""
    token_parts: tuple[str, ...] = ()
    """Names of all modules and weights that make tokens of a video; the others only make a video of tokens."""
    reach: tuple[int | None, int | None] = (None, None)
    """How many pixels beyond a token `encode` looks, and how many beyond a token it changes in `decode`, on every side;
    None where that may be the whole frame."""

    def register_statistics(self, channels: int) -> None:
        self.register_buffer("latent_mean", torch.zeros(channels))
        self.register_buffer("latent_std", torch.ones(channels))

    @property
    @abstractmethod
    def spec(self) -> LatentSpec:
        """What the tokens are."""

    @abstractmethod
    def encode(self, video: Tensor, *, sample: bool = False, generators: Generators | None = None) -> Latents:
        """Tokens of `b 3 t h w` in [-1, 1], any t ≥ 1, any h, w, without gradients.

        The result is the same in train and eval mode, and nothing in the module changes.
        `sample` draws from the posterior of a stochastic bottleneck with one generator per sample; otherwise its mode.
        """

    @abstractmethod
    def decode(self, latents: Latents, *, steps: int | None = None, generators: Generators | None = None) -> Tensor:
        """Video `b 3 t h w` of exactly `latents.size`, in [-1, 1].

        Discrete latents decode their ids. `steps` and `generators` are for decoders that denoise.
        """

    def decode_known(self, latents: Latents, known: Tensor, where: Tensor) -> Tensor:
        """`decode` of a video some pixels of which are known, and come back unchanged.

        Args:
            latents: of the whole video.
            known: `b 3 t h w` of `latents.size`; what it holds elsewhere does not matter.
            where: bool, `b 1 t h w`, which pixels are known.
        """
        check_known(known, where, len(latents), latents.size)
        decoded = self.decode(latents)
        return torch.where(where, known, decoded.to(known.dtype))

    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Latents]:
        """Latents of a video that comes in chunks `b 3 t h w` of any lengths, in constant memory."""
        raise ValueError(f"{type(self).__name__} sees the whole clip at once (spec.streamable is False); use encode")

    def decode_stream(self, chunks: Iterable[Latents]) -> Iterator[Tensor]:
        """Video chunks of latents that come in chunks of any lengths, in constant memory."""
        raise ValueError(f"{type(self).__name__} sees the whole clip at once (spec.streamable is False); use decode")

    def encode_chunks(self, chunks: Iterable[Tensor]) -> Iterator[Latents]:
        """Latents of a video in chunks `b 3 t h w`: a stream where the tokenizer streams, else all at once."""
        if self.spec.streamable:
            yield from self.encode_stream(chunks)
        elif held := list(chunks):
            yield self.encode(torch.cat(held, dim=2))

    def decode_chunks(self, chunks: Iterable[Latents]) -> Iterator[Tensor]:
        """Video chunks of what `encode_chunks` gave."""
        return iter(self.decode_stream(chunks)) if self.spec.streamable else map(self.decode, chunks)

    @abstractmethod
    def training_losses(
        self, video: Tensor, *, generators: Generators, critic: Critic | None = None
    ) -> dict[str, Tensor]:
        """Weighted terms whose sum is to be minimised; each tokenizer knows its own training."""

    @abstractmethod
    def reals_from_ids(self, ids: Tensor, size: VideoSize | None = None) -> Tensor:
        """`b n q -> b n c`: standardised tokens of ids.

        `size` is that of their video; only specs of several parts need it, to know which token is of which part.
        """

    @abstractmethod
    def ids_from_reals(self, tokens: Tensor, size: VideoSize | None = None) -> Tensor:
        """`b n c -> b n q`: ids of the codes nearest to standardised tokens; `size` as above."""

    def standardise(self, vectors: Tensor) -> Tensor:
        return (vectors - self.latent_mean.to(vectors.dtype)) / self.latent_std.to(vectors.dtype)

    def unstandardise(self, tokens: Tensor) -> Tensor:
        return tokens * self.latent_std.to(tokens.dtype) + self.latent_mean.to(tokens.dtype)

    @torch.no_grad()
    def fit_statistics(self, videos: Iterable[Tensor]) -> None:
        """Measure `latent_mean` and `latent_std` over `videos` (`b 3 t h w` each); once, after training."""
        count, total, squares = 0, torch.zeros(0), torch.zeros(0)
        for video in videos:
            vectors = self.unstandardise(self.encode(video).tokens).double().flatten(0, 1)
            sums = vectors.sum(0), vectors.square().sum(0)
            total, squares = sums if count == 0 else (total + sums[0], squares + sums[1])
            count += vectors.shape[0]
        if count == 0:
            raise ValueError("expected at least one video to measure the latent statistics on, got none")
        mean = total / count
        deviation = (squares / count - mean.square()).clamp(min=1e-12).sqrt()
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(deviation.clamp(min=1e-4))


def check_video(video: Tensor) -> None:
    """ValueError unless `video` is a video as tokenizers take it."""
    if not isinstance(video, Tensor):
        raise ValueError(
            f"expected a video as a torch tensor of shape b 3 t h w, got {type(video).__name__}; of a clip that "
            "vidgen.data.read_video gave, encode to_tensor(clip.frames)[None]"
        )
    if video.ndim != 5 or video.shape[1] != 3 or 0 in video.shape:
        raise ValueError(f"expected a video of shape b 3 t h w with at least one frame, got {tuple(video.shape)}")
    if not video.is_floating_point():
        raise ValueError(f"expected a video of floats in [-1, 1], got {video.dtype}; divide bytes by 127.5, subtract 1")


def at_hand(tensor: Tensor) -> bool:
    """Whether its values can be looked at: it is real, nothing is being compiled, and no GPU has to be waited for."""
    return type(tensor) is Tensor and not torch.compiler.is_compiling() and tensor.device.type == "cpu"


def check_pixels(video: Tensor) -> None:
    """`check_video`, and ValueError for pixels that are no overshoot of [-1, 1], NaN among them, on a CPU."""
    check_video(video)
    if at_hand(video):
        low, high = video.aminmax()
        if not (low >= -FAR and high <= FAR):  # NaN is neither
            raise ValueError(
                f"expected a video of floats in [-1, 1], got {low.item():g} to {high.item():g}; divide 0…255 by 127.5 "
                "and subtract 1, and look for NaN where it comes from"
            )


def check_latents(latents: Latents, spec: LatentSpec) -> None:
    """ValueError unless `latents` are what a tokenizer of this spec gives, and so can decode; ids are looked at on a
    CPU."""
    if not isinstance(latents, Latents):
        raise ValueError(
            f"expected Latents, got {type(latents).__name__}; decode what encode returns (vidgen.latents.Latents), "
            "not its tokens or ids alone"
        )
    if latents.spec != spec:
        raise ValueError(f"these latents come from another tokenizer: expected {spec}, got {latents.spec}")
    if at_hand(latents.tokens):
        latents.check_ids()


def check_whole(latents: Latents) -> None:
    """ValueError for latents of which only a prefix is to be decoded."""
    if latents.length is not None:
        raise ValueError(
            "these latents have a length, and this tokenizer has no use for a prefix of its tokens; decode all of them "
            "(length None)"
        )


def checked_shape(latents: Latents, before: tuple[int, int, int]) -> tuple[int, int, int]:
    """(batch, height, width) of a chunk of a stream; ValueError unless those of the chunks `before` are the same."""
    shape = (len(latents), latents.size[1], latents.size[2])
    if before not in (NO_SHAPE, shape):
        raise ValueError(f"chunks of one stream differ in (batch, height, width): first {before}, then {shape}")
    return shape


def check_loss_weights(**weights: float) -> None:
    """ValueError unless all of these weights of loss terms are at least 0."""
    for name, weight in weights.items():
        if not weight >= 0:  # NaN is not
            raise ValueError(f"{name} is the weight of a loss term and at least 0, got {weight}")


def check_known(known: Tensor, where: Tensor, batch: int, size: VideoSize) -> None:
    """ValueError unless these are known pixels, and which of them are, of `batch` videos of `size`."""
    if known.shape != (batch, 3, *size) or where.shape != (batch, 1, *size) or where.dtype != torch.bool:
        raise ValueError(
            f"expected known pixels of shape {(batch, 3, *size)} and a bool mask of shape {(batch, 1, *size)}, got "
            f"{tuple(known.shape)} and {where.dtype} {tuple(where.shape)}"
        )


def reconstruction_losses(
    video: Tensor, reconstruction: Tensor, *, squared_weight: float, critic: Critic | None, last_layer: Tensor
) -> dict[str, Tensor]:
    """What every trunk minimises between two videos `b 3 t h w`: pixel errors, or the critic's terms.

    `squared_weight` is that of the squared error beside the absolute one.
    """

    def own(real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        return {"l1": absolute_error(fake, real), "l2": squared_weight * squared_error(fake, real)}

    if critic is None:
        return own(video, reconstruction)
    return critic(video, reconstruction, own=own, last_layer=last_layer)
