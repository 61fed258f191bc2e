"""SimVQ: a frozen table behind one learned linear map, so that all codes move together (Zhu et al. 2024)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidgen.bottlenecks.base import Bottlenecked, Quantizer, rotated, straight_through
from vidgen.kernels.ops import vq_assign
from vidgen.nn.random import Generators


class SimVQ(Quantizer):
    """One id a token out of `codes`; every code gets a gradient at each step, so none dies (arXiv 2411.02038).

    Args:
        codes: size of the codebook.
        channels: length of a code.
        commitment: weight that pulls encoder outputs to their codes.
        codebook: weight that pulls codes to encoder outputs.
        rotation: gradients pass by the rotation trick (arXiv 2410.06424) in place of straight through.
    """

    table: Tensor

    def __init__(
        self,
        *,
        codes: int = 65536,
        channels: int = 8,
        commitment: float = 0.25,
        codebook: float = 1.0,
        rotation: bool = True,
    ) -> None:
        super().__init__()
        if codes < 2 or channels < 1:
            raise ValueError(f"SimVQ needs at least 2 codes of at least 1 channel, got {codes} codes of {channels}")
        if min(commitment, codebook) < 0:
            raise ValueError(f"SimVQ's weights must not be negative, got {commitment} and {codebook}")
        self.channels = self.in_channels = channels
        self.codebooks = (codes,)
        self.commitment, self.codebook = commitment, codebook
        self.passed = rotated if rotation else straight_through
        self.register_buffer("table", torch.randn(codes, channels) * channels**-0.5)
        self.turn = nn.Linear(channels, channels, bias=False)

    def adopt(self, table: Tensor) -> None:
        """Freeze other vectors `k c` in the place of the random ones, as SPAE (arXiv 2306.17842) a model's words.

        Their mean is taken away and their spread made that of the random ones, which the encoder's outputs begin with.
        """
        if table.shape != self.table.shape:
            raise ValueError(f"expected a table of shape {tuple(self.table.shape)}, got {tuple(table.shape)}")
        table = table.detach().double() - table.detach().double().mean(dim=0)
        self.table.copy_(table * (table.square().mean() * self.channels).rsqrt())

    def codes(self) -> Tensor:
        """`k c`, always the whole table: a matrix product of fewer rows can differ in the last bit."""
        with torch.autocast(self.table.device.type, enabled=False):  # ids are of these codes, not of rounded ones
            return F.linear(self.table, self.turn.weight)

    def quantize(self, vectors: Tensor, *, sample: bool = False, generators: Generators | None = None) -> Bottlenecked:
        table = self.codes()
        ids = vq_assign(vectors, table)
        codes = table[ids]
        losses = {}
        if self.training:
            losses["commitment"] = self.commitment * (vectors - codes.detach()).square().mean()
            losses["codebook"] = self.codebook * (vectors.detach() - codes).square().mean()
        return Bottlenecked(self.passed(vectors, codes), ids.unsqueeze(-1), losses)

    def lookup(self, ids: Tensor) -> Tensor:
        return self.codes()[ids.squeeze(-1)]

    def nearest(self, vectors: Tensor) -> Tensor:
        return vq_assign(vectors, self.codes()).unsqueeze(-1)
