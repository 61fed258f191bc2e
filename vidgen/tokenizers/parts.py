"""Tokens of several parts, each with a bottleneck and statistics of its own."""

from abc import abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from vidgen.bottlenecks import Bottleneck
from vidgen.latents import VideoSize
from vidgen.tokenizers.base import Tokenizer


class PartedTokenizer(Tokenizer):
    """Statistics are `p c`, one row a part of `spec`, 0 and 1 where a part has fewer channels than others."""

    @abstractmethod
    def bottleneck_at(self, part: int) -> Bottleneck:
        """The bottleneck of a part; several may share one."""

    def register_part_statistics(self, channels: list[int]) -> None:
        """Fresh statistics of parts of so many channels."""
        shape = (len(channels), max(channels))
        self.register_buffer("latent_mean", torch.zeros(shape))
        self.register_buffer("latent_std", torch.ones(shape))

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
        for part, place in enumerate(self.places(tokens.shape[1], size)):
            channels = self.bottleneck_at(part).channels
            mean, deviation = self.latent_mean[part, :channels], self.latent_std[part, :channels]
            vectors.append(tokens[:, place, :channels] * deviation.to(tokens.dtype) + mean.to(tokens.dtype))
        return vectors

    def reals_from_ids(self, ids: Tensor, size: VideoSize | None = None) -> Tensor:
        places = self.places(ids.shape[1], size)
        return self.standardised([self.bottleneck_at(part).lookup(ids[:, place]) for part, place in enumerate(places)])

    def ids_from_reals(self, tokens: Tensor, size: VideoSize | None = None) -> Tensor:
        vectors = self.unstandardised(tokens.float(), size)
        return torch.cat([self.bottleneck_at(part).nearest(vector) for part, vector in enumerate(vectors)], dim=1)

    def places(self, count: int, size: VideoSize | None) -> list[slice]:
        """Where each part lies among the `count` tokens of a video, or of a later chunk of one, of `size`."""
        if len(self.spec.parts) == 1:
            return [slice(None)]
        if size is None:
            raise ValueError(
                f"{type(self).__name__} has parts {[part.name for part in self.spec.parts]}; give the size (frames, "
                "height, width) of the video, which says which token is of which part"
            )
        begins = self.spec.num_tokens(size) == count  # else a lone first frame went before these
        return self.spec.slices(size, start=0 if begins else 1)

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
            channels = self.bottleneck_at(part).channels
            self.latent_mean[part, :channels] = mean[part, :channels].to(self.latent_mean)
            self.latent_std[part, :channels] = deviation[part, :channels].clamp(min=1e-4).to(self.latent_std)
