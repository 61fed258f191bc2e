"""Product codes: the channels of a token shared out to quantizers side by side (FQGAN, ImageFolder)."""

from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from vidgen.bottlenecks.base import Bottlenecked
from vidgen.bottlenecks.stack import Stack
from vidgen.nn.random import Generators


class Product(Stack):
    """`count` sub-codebooks, one id of each at every position: K^count codes at the cost of count · K.

    Args:
        inner: kind of the quantizers.
        options: of each of them.
        count: of them.
        disentangle: weight of the mean squared cosine between the sub-codes of a token, which keeps one from
            repeating another (FQGAN, arXiv 2411.16681, section 3.2).
    """

    def __init__(
        self,
        *,
        inner: str = "vq",
        options: dict[str, Any] | None = None,
        count: int = 2,
        disentangle: float = 0.0,
    ) -> None:
        super().__init__(inner, options, count)
        if disentangle < 0:
            raise ValueError(f"the weight of disentangling must be 0 or more, got {disentangle}")
        self.disentangle = disentangle
        first = self.quantizers[0]
        self.in_channels, self.channels = count * first.in_channels, count * first.channels
        self.distinct, self.finer, self.unit_length = first.distinct, first.finer, first.unit_length
        self.needs_gradient, self.passed = first.needs_gradient, self._passed_in_parts
        if len(self.finer) > 1:
            self.finer = self.finer * count

    def _passed_in_parts(self, vectors: Tensor, codes: Tensor) -> Tensor:
        """Each part as its own quantizer passes it."""
        pairs = zip(vectors.chunk(len(self.layers), dim=-1), codes.chunk(len(self.layers), dim=-1), strict=True)
        return torch.cat([self.quantizers[0].passed(*pair) for pair in pairs], dim=-1)

    def enter(self, features: Tensor) -> Tensor:
        parts = features.chunk(len(self.layers), dim=-1)
        return torch.cat([layer.enter(part) for layer, part in zip(self.quantizers, parts, strict=True)], dim=-1)

    def quantize(self, vectors: Tensor, *, sample: bool = False, generators: Generators | None = None) -> Bottlenecked:
        codes, ids = [], []
        losses: dict[str, Tensor] = {}
        for layer, part in zip(self.quantizers, vectors.chunk(len(self.layers), dim=-1), strict=True):
            result = layer.quantize(part, sample=sample, generators=generators)
            assert result.ids is not None
            codes.append(result.vectors)
            ids.append(result.ids)
            for name, term in result.losses.items():
                losses[name] = losses[name] + term if name in losses else term
        if self.training and self.disentangle:
            cosines = [torch.cosine_similarity(one, other, dim=-1) for one, other in combinations(codes, 2)]
            losses["disentangle"] = self.disentangle * torch.stack(cosines).square().mean()
        return Bottlenecked(torch.cat(codes, dim=-1), torch.cat(ids, dim=-1), losses)

    def lookup(self, ids: Tensor) -> Tensor:
        own = ids.split([len(layer.codebooks) for layer in self.quantizers], dim=-1)
        return torch.cat([layer.lookup(part) for layer, part in zip(self.quantizers, own, strict=True)], dim=-1)

    def nearest(self, vectors: Tensor) -> Tensor:
        parts = vectors.chunk(len(self.layers), dim=-1)
        return torch.cat([layer.nearest(part) for layer, part in zip(self.quantizers, parts, strict=True)], dim=-1)
