"""Residual codes: each quantizer encodes what the ones before it left over (SoundStream; residual VQ, FSQ, LFQ)."""

from typing import Any

import torch
from torch import Tensor

from vidgen.bottlenecks.base import Bottlenecked, kept_counts
from vidgen.bottlenecks.stack import Stack
from vidgen.nn.random import Generators


class Residual(Stack):
    """`count` quantizers in a row, from coarse to fine, each with ids of its own (arXiv 2107.03312).

    Fewer ids than quantizers decode too: `lookup(ids[..., :k])`. Several ids may stand for nearly one vector.

    Args:
        inner: kind of the quantizers: `"vq"` (with cosine off), `"simvq"`, `"fsq"` or `"lfq"`.
        options: of each of them.
        count: of them.
        dropout: share of the training clips that are decoded from a random number of their first ids, so that every
            prefix decodes well (quantizer dropout).
    """

    distinct = False

    def __init__(
        self, *, inner: str = "fsq", options: dict[str, Any] | None = None, count: int = 4, dropout: float = 0.0
    ) -> None:
        super().__init__(inner, options, count)
        first = self.quantizers[0]
        if first.unit_length:
            raise ValueError(
                f"residuals shrink from quantizer to quantizer, and the codes of {inner!r} have a fixed length; use "
                'fsq, lfq, simvq or vq with {"cosine": false} inside'
            )
        if first.needs_gradient:
            raise ValueError(f"{inner!r} learns from the gradient of each code by itself, and residual codes pass one")
        if not 0 <= dropout <= 1:
            raise ValueError(f"the dropout of residual codes is a share between 0 and 1, got {dropout}")
        self.dropout = dropout
        self.in_channels, self.channels, self.passed = first.in_channels, first.channels, first.passed
        self.finer = tuple(ratio**count for ratio in first.finer)

    def _scales(self, like: Tensor) -> list[Tensor]:
        """How large the codes of each quantizer are beside the first one's."""
        ratio = torch.tensor(self.quantizers[0].finer, device=like.device)
        return [ratio**number for number in range(len(self.layers))]

    def enter(self, features: Tensor) -> Tensor:
        return self.quantizers[0].enter(features)

    def quantize(self, vectors: Tensor, *, sample: bool = False, generators: Generators | None = None) -> Bottlenecked:
        codes, ids = torch.zeros_like(vectors), []
        kept = kept_counts(vectors, len(self.layers), self.dropout if self.learns else 0.0, generators)
        losses: dict[str, Tensor] = {}
        left = vectors
        for number, (layer, scale) in enumerate(zip(self.quantizers, self._scales(vectors), strict=True)):
            result = layer.quantize(left / scale, sample=sample, generators=generators)
            assert result.ids is not None
            part = scale * result.vectors.detach()
            left = left - part
            codes = codes + (part if kept is None else torch.where(number < kept, part, 0.0))
            ids.append(result.ids)
            for name, term in result.losses.items():
                losses[name] = losses[name] + term if name in losses else term
        return Bottlenecked(self.passed(vectors, codes), torch.cat(ids, dim=-1), losses)

    def lookup(self, ids: Tensor) -> Tensor:
        of_a_layer = len(self.quantizers[0].codebooks)
        if ids.shape[-1] % of_a_layer or not 0 < ids.shape[-1] <= len(self.codebooks):
            raise ValueError(
                f"expected the ids of 1 to {len(self.layers)} quantizers, {of_a_layer} a token and quantizer, got "
                f"{ids.shape[-1]} a token"
            )
        codes, first = torch.zeros((), device=ids.device), 0
        for layer, scale in zip(self.quantizers, self._scales(ids), strict=True):
            own = ids[..., first : first + len(layer.codebooks)]
            if own.shape[-1] == 0:
                break
            codes, first = codes + scale * layer.lookup(own), first + own.shape[-1]
        return codes

    def nearest(self, vectors: Tensor) -> Tensor:
        left, ids = vectors.float(), []
        for layer, scale in zip(self.quantizers, self._scales(vectors), strict=True):
            ids.append(layer.nearest(left / scale))
            left = left - scale * layer.lookup(ids[-1])
        return torch.cat(ids, dim=-1)
