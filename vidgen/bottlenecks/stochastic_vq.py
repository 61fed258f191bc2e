"""Stochastic VQ: training draws a code by its similarity, inference takes the most similar one (LARP)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidgen.bottlenecks.base import Bottlenecked, Quantizer, straight_through
from vidgen.kernels.ops import vq_assign
from vidgen.nn.random import Generators, categorical

SIMILARITIES = 2**22  # in memory at once


class StochasticVQ(Quantizer):
    """One id a token; codes of length 1 that learn by gradient (arXiv 2410.21264, section 3.2).

    Args:
        codes: size of the codebook.
        channels: length of a code.
        temperature: of the softmax over cosine similarities that a sampled code follows.
        commitment: weight that pulls encoder outputs to their codes.
        codebook: weight that pulls codes to encoder outputs.
    """

    unit_length = True

    def __init__(
        self,
        *,
        codes: int = 8192,
        channels: int = 16,
        temperature: float = 0.03,
        commitment: float = 0.025,
        codebook: float = 0.1,
    ) -> None:
        super().__init__()
        if codes < 2 or channels < 2:
            raise ValueError(
                f"stochastic VQ needs at least 2 codes of at least 2 channels (codes have length 1), got {codes} codes "
                f"of {channels}"
            )
        if temperature <= 0 or min(commitment, codebook) < 0:
            raise ValueError(
                "stochastic VQ needs a temperature above 0 and no negative weights, got temperature "
                f"{temperature}, commitment {commitment}, codebook {codebook}"
            )
        self.channels = self.in_channels = channels
        self.codebooks = (codes,)
        self.temperature, self.commitment, self.codebook = temperature, commitment, codebook
        self.table = nn.Parameter(F.normalize(torch.randn(codes, channels), dim=-1))

    def enter(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=-1)

    def quantize(self, vectors: Tensor, *, sample: bool = False, generators: Generators | None = None) -> Bottlenecked:
        ids = self._drawn(vectors, generators) if sample else self.nearest(vectors)
        codes = self.lookup(ids)
        losses = {}
        if self.training:
            losses["commitment"] = self.commitment * (vectors - codes.detach()).square().mean()
            losses["codebook"] = self.codebook * (vectors.detach() - codes).square().mean()
        return Bottlenecked(straight_through(vectors, codes), ids, losses)

    @torch.no_grad()
    def _drawn(self, vectors: Tensor, generators: Generators | None) -> Tensor:
        """Ids `b n 1` by the softmax of their similarities, so many tokens at a time that memory stays bounded."""
        if generators is None:
            raise ValueError("sampling codes needs generators, one per sample")
        codes = F.normalize(self.table.float(), dim=-1)
        rows = max(1, SIMILARITIES // (len(codes) * len(vectors)))
        ids = []
        for some in vectors.split(rows, dim=1):
            ids.append(categorical(some @ codes.T / self.temperature, generators))
        return torch.cat(ids, dim=1).unsqueeze(-1)

    def lookup(self, ids: Tensor) -> Tensor:
        return F.normalize(self.table[ids.squeeze(-1)], dim=-1)

    def nearest(self, vectors: Tensor) -> Tensor:
        return vq_assign(vectors, self.table, cosine=True).unsqueeze(-1)
