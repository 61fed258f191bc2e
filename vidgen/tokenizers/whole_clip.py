"""Tokenizers that look at a whole clip at once: any parts of tokens, each with a bottleneck and statistics."""

from abc import abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vidgen.bottlenecks import Bottleneck, Bottlenecked
from vidgen.latents import Latents, VideoSize
from vidgen.nn.random import Generators
from vidgen.tokenizers.base import Critic, check_latents, check_pixels, check_video, check_whole, reconstruction_losses
from vidgen.tokenizers.parts import PartedTokenizer


@dataclass
class BottleneckedParts:
    """Vectors and ids (none if continuous) of each part, and the weighted terms of all bottlenecks."""

    vectors: list[Tensor] = field(default_factory=list)
    ids: list[Tensor] = field(default_factory=list)
    losses: dict[str, Tensor] = field(default_factory=dict)


class WholeClipTokenizer(PartedTokenizer):
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
        """Keep the bottlenecks, and fresh statistics."""
        numbers = {name: len(bottleneck.codebooks) for name, bottleneck in bottlenecks.items()}
        if len(set(numbers.values())) != 1:
            raise ValueError(
                f"all parts need equally many ids a token (0 = continuous), these have {numbers}; choose a bottleneck "
                "with one id a token or a continuous one"
            )
        self.bottlenecks, self.bottleneck_of = nn.ModuleDict(bottlenecks), bottleneck_of
        self.register_part_statistics([bottlenecks[name].channels for name in bottleneck_of])

    def bottleneck_at(self, part: int) -> Bottleneck:
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
        check_latents(latents, self.spec)
        check_whole(latents)
        if latents.start:
            raise ValueError(f"expected latents of a whole clip, got a chunk that begins at frame {latents.start}")
        tokens = latents.tokens if latents.ids is None else self.reals_from_ids(latents.ids, latents.size)
        return self.unstandardised(tokens.to(self.dtype), latents.size)

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
