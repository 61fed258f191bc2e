"""Tokenizers that look at a whole clip at once: any parts of tokens, each with a bottleneck and statistics."""

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidgen.bottlenecks import Bottleneck, Bottlenecked
from vidgen.latents import Latents, VideoSize
from vidgen.nn.random import Generators
from vidgen.tokenizers.base import Critic, Tokenizer, check_pixels, check_video, reconstruction_losses


@dataclass
class BottleneckedParts:
    """Vectors and ids (none if continuous) of each part, and the weighted terms of all bottlenecks."""

    vectors: list[Tensor] = field(default_factory=list)
    ids: list[Tensor] = field(default_factory=list)
    losses: dict[str, Tensor] = field(default_factory=dict)


class WholeClipTokenizer(Tokenizer):
    """A trunk gives the features of the parts of `spec` and makes the video from their vectors; the rest is here.

    Attributes:
        bottlenecks: by name; the names tell their loss terms apart where there are several.
        bottleneck_of: for each part of the spec the name of its bottleneck; parts that share one follow each other.
        squared_weight: of the squared error beside the absolute one.
    """

    bottlenecks: nn.ModuleDict
    bottleneck_of: tuple[str, ...]
    squared_weight: float

    @abstractmethod
    def features(self, video: Tensor) -> list[Tensor]:
        """`b 3 t h w` of any size -> `b n c` for each part, with the `in_channels` of its bottleneck."""

    @abstractmethod
    def pixels(self, vectors: list[Tensor], size: VideoSize) -> Tensor:
        """`b n c` for each part -> `b 3 t h w` of exactly `size`."""

    @property
    @abstractmethod
    def last_layer(self) -> Tensor:
        """The weight of the decoder at which an adversarial term measures its gradient."""

    def register_parts(self, bottlenecks: dict[str, Bottleneck], bottleneck_of: tuple[str, ...]) -> None:
        """Keep the bottlenecks; statistics are `p c`, one row a part, 0 and 1 where a part has fewer channels."""
        numbers = {name: len(bottleneck.codebooks) for name, bottleneck in bottlenecks.items()}
        if len(set(numbers.values())) != 1:
            raise ValueError(
                f"all parts need equally many ids a token (0 = continuous), these have {numbers}; choose a bottleneck "
                "with one id a token or a continuous one"
            )
        self.bottlenecks, self.bottleneck_of = nn.ModuleDict(bottlenecks), bottleneck_of
        shape = (len(bottleneck_of), max(bottleneck.channels for bottleneck in bottlenecks.values()))
        self.register_buffer("latent_mean", torch.zeros(shape))
        self.register_buffer("latent_std", torch.ones(shape))

    def bottleneck(self, part: int) -> Bottleneck:
        bottleneck = self.bottlenecks[self.bottleneck_of[part]]
        assert isinstance(bottleneck, Bottleneck)
        return bottleneck

    # encoding

    def encode(self, video: Tensor, *, sample: bool = False, generators: Generators | None = None) -> Latents:
        check_pixels(video)
        return self.encode_from(0, video, sample=sample, generators=generators)

    @torch.no_grad()
    def encode_from(self, start: int, video: Tensor, *, sample: bool, generators: Generators | None) -> Latents:
        """Tokens of frames that begin at frame `start` of their video."""
        tokens = self.bottlenecked(self.features(video.to(self.dtype)), sample=sample, generators=generators)
        size = (video.shape[2], video.shape[3], video.shape[4])
        if not self.spec.discrete:
            return Latents(self.standardised(tokens.vectors), None, size, self.spec, None, start)
        ids = torch.cat(tokens.ids, dim=1)
        return Latents(self.reals_from_ids(ids, size), ids, size, self.spec, None, start)

    def bottlenecked(self, features: list[Tensor], *, sample: bool, generators: Generators | None) -> BottleneckedParts:
        """Features of each part through the bottlenecks; parts that share one go through it together, as one batch."""
        result = BottleneckedParts()
        for name, bottleneck in self.bottlenecks.items():
            own = [feature for feature, of in zip(features, self.bottleneck_of, strict=True) if of == name]
            tokens: Bottlenecked = bottleneck(torch.cat(own, dim=1), sample=sample, generators=generators)
            lengths = [feature.shape[1] for feature in own]
            result.vectors += tokens.vectors.split(lengths, dim=1)
            result.ids += [] if tokens.ids is None else tokens.ids.split(lengths, dim=1)
            prefix = "" if len(self.bottlenecks) == 1 else f"{name}_"
            result.losses |= {f"{prefix}{term}": value for term, value in tokens.losses.items()}
        return result

    # decoding

    @torch.no_grad()
    def decode(self, latents: Latents, *, steps: int | None = None, generators: Generators | None = None) -> Tensor:
        return self.pixels(self.vectors(latents), latents.size).clamp(-1.0, 1.0)

    def vectors(self, latents: Latents) -> list[Tensor]:
        """What `pixels` takes: `b n c` of each part."""
        if latents.spec != self.spec:
            raise ValueError(f"these latents come from another tokenizer: expected {self.spec}, got {latents.spec}")
        if latents.start:
            raise ValueError(f"expected latents of a whole clip, got a chunk that begins at frame {latents.start}")
        tokens = latents.tokens if latents.ids is None else self.reals_from_ids(latents.ids, latents.size)
        return self.unstandardised(tokens.to(self.dtype), latents.size)

    def standardised(self, vectors: list[Tensor]) -> Tensor:
        """Vectors `b n c` of each part -> tokens `b n c` of all, with zeros where a part has fewer channels."""
        rows = []
        for mean, deviation, part in zip(self.latent_mean, self.latent_std, vectors, strict=True):
            padded = F.pad(part, (0, len(mean) - part.shape[2]))
            rows.append((padded - mean.to(part.dtype)) / deviation.to(part.dtype))
        return torch.cat(rows, dim=1)

    def unstandardised(self, tokens: Tensor, size: VideoSize | None) -> list[Tensor]:
        """The inverse of `standardised`."""
        vectors = []
        for part, place in enumerate(self._slices(size)):
            channels = self.bottleneck(part).channels
            mean, deviation = self.latent_mean[part, :channels], self.latent_std[part, :channels]
            vectors.append(tokens[:, place, :channels] * deviation.to(tokens.dtype) + mean.to(tokens.dtype))
        return vectors

    def reals_from_ids(self, ids: Tensor, size: VideoSize | None = None) -> Tensor:
        return self.standardised(
            [self.bottleneck(part).lookup(ids[:, place]) for part, place in enumerate(self._slices(size))]
        )

    def ids_from_reals(self, tokens: Tensor, size: VideoSize | None = None) -> Tensor:
        vectors = self.unstandardised(tokens.float(), size)
        return torch.cat([self.bottleneck(part).nearest(vector) for part, vector in enumerate(vectors)], dim=1)

    def _slices(self, size: VideoSize | None) -> list[slice]:
        """Where each part lies in the token axis of a video of `size`."""
        if len(self.spec.parts) == 1:
            return [slice(None)]
        if size is None:
            raise ValueError(
                f"{type(self).__name__} has parts {[part.name for part in self.spec.parts]}; give the size (frames, "
                "height, width) of the video, which says which token is of which part"
            )
        return self.spec.slices(size)

    # training

    def training_losses(
        self, video: Tensor, *, generators: Generators, critic: Critic | None = None
    ) -> dict[str, Tensor]:
        check_video(video)
        tokens = self.bottlenecked(self.features(video), sample=True, generators=generators)
        reconstruction = self.pixels(tokens.vectors, (video.shape[2], video.shape[3], video.shape[4]))
        losses = reconstruction_losses(
            video, reconstruction, squared_weight=self.squared_weight, critic=critic, last_layer=self.last_layer
        )
        return {**losses, **tokens.losses}

    @torch.no_grad()
    def fit_statistics(self, videos: Iterable[Tensor]) -> None:
        """Measure `latent_mean` and `latent_std` of each part over `videos` (`b 3 t h w`); once, after training."""
        count, total, squares = torch.zeros(len(self.spec.parts), 1), torch.zeros(1), torch.zeros(1)
        for video in videos:
            latents = self.encode(video)
            vectors = [part.double().flatten(0, 1) for part in self.unstandardised(latents.tokens, latents.size)]
            padded = [F.pad(part, (0, self.latent_mean.shape[1] - part.shape[1])) for part in vectors]
            count = count + torch.tensor([[len(part)] for part in padded])
            total = total.to(video.device) + torch.stack([part.sum(dim=0) for part in padded])
            squares = squares.to(video.device) + torch.stack([part.square().sum(dim=0) for part in padded])
        if not count.all():
            raise ValueError("expected at least one video to measure the latent statistics on, got none")
        count = count.to(total)
        mean = total / count
        deviation = (squares / count - mean.square()).clamp(min=1e-12).sqrt()
        for part in range(len(self.spec.parts)):
            channels = self.bottleneck(part).channels
            self.latent_mean[part, :channels] = mean[part, :channels].to(self.latent_mean)
            self.latent_std[part, :channels] = deviation[part, :channels].clamp(min=1e-4).to(self.latent_std)
