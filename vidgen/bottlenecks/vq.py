"""VQ: nearest vector of a learned codebook, kept by exponential moving average (van den Oord et al. 2017)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vidgen.bottlenecks.base import Bottlenecked, Quantizer, rotated, straight_through
from vidgen.bottlenecks.codebook import Codebook
from vidgen.bottlenecks.sinkhorn import balanced_ids
from vidgen.nn.random import Generators

LARGEST_BALANCED = 2**14


class VQ(Quantizer):
    """One id a token out of `codes`.

    Args:
        codes: size of the codebook.
        channels: length of a code; few channels keep the codebook in use (Yu et al. 2021).
        cosine: features and codes have length 1; off, they are compared by distance.
        commitment: weight that pulls encoder outputs to their codes.
        decay: of the moving average.
        restart_below: codes used less often than this (moving count of a batch) restart at a batch vector.
        kmeans_steps: Lloyd iterations that place the codes on the first batch; 0 starts from random codes.
        rotation: gradients pass by the rotation trick (arXiv 2410.06424) in place of straight through.
        balance: temperature of a balanced assignment in training: codes then share the vectors of a batch about
            equally, whatever their distances (Sinkhorn; SeLa, arXiv 1911.05371); 0 for the nearest code.
    """

    def __init__(
        self,
        *,
        codes: int = 1024,
        channels: int = 8,
        cosine: bool = True,
        commitment: float = 0.25,
        decay: float = 0.99,
        restart_below: float = 0.1,
        kmeans_steps: int = 0,
        rotation: bool = False,
        balance: float = 0.0,
    ) -> None:
        super().__init__()
        if codes < 2 or channels < 1:
            raise ValueError(f"VQ needs at least 2 codes of at least 1 channel, got {codes} codes of {channels}")
        if cosine and channels == 1:
            raise ValueError(
                "VQ with cosine codes of 1 channel has two codes, -1 and 1; use cosine false or 2 channels"
            )
        if not 0 < decay < 1 or min(commitment, restart_below, kmeans_steps) < 0:
            raise ValueError(
                "VQ needs a decay between 0 and 1 and no negative commitment, restart_below or kmeans_steps, got decay "
                f"{decay}, commitment {commitment}, restart_below {restart_below}, kmeans_steps {kmeans_steps}"
            )
        if balance < 0 or (balance > 0 and codes > LARGEST_BALANCED):
            raise ValueError(
                f"a balanced assignment needs a temperature of at least 0 and at most {LARGEST_BALANCED} codes (all of "
                f"which it compares with all vectors of a batch at once), got {balance} and {codes} codes"
            )
        self.channels = self.in_channels = channels
        self.codebooks = (codes,)
        self.unit_length, self.commitment, self.balance = cosine, commitment, balance
        self.passed = rotated if rotation else straight_through
        self.codebook = Codebook(
            codes, channels, cosine=cosine, decay=decay, restart_below=restart_below, kmeans_steps=kmeans_steps
        )

    def enter(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=-1) if self.unit_length else features

    def quantize(self, vectors: Tensor, *, sample: bool = False, generators: Generators | None = None) -> Bottlenecked:
        if self.learns:
            self.codebook.start(vectors)
        ids = self._balanced(vectors) if self.learns and self.balance else self.nearest(vectors)
        codes = self.lookup(ids)
        losses = {"commitment": self.commitment * (vectors - codes).square().mean()} if self.training else {}
        if self.learns:
            self.codebook.learn(vectors, ids.squeeze(-1))
        return Bottlenecked(self.passed(vectors, codes), ids, losses)

    @torch.no_grad()
    def _balanced(self, vectors: Tensor) -> Tensor:
        """`b n c -> b n 1`."""
        distances = torch.cdist(vectors.flatten(0, 1), self.codebook.vectors.float()).square()
        return balanced_ids(-distances / self.balance).view(*vectors.shape[:2], 1)

    def lookup(self, ids: Tensor) -> Tensor:
        return self.codebook.vectors[ids.squeeze(-1)]

    def nearest(self, vectors: Tensor) -> Tensor:
        return self.codebook.nearest(vectors).unsqueeze(-1)
