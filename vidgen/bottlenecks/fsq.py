"""FSQ: every channel rounded to a few fixed levels, the codebook is their product (Mentzer et al. 2023)."""

import math

import torch
from torch import Tensor
from vector_quantize_pytorch import FSQ as LibraryFSQ

from vidgen.bottlenecks.base import Bottleneck, Bottlenecked
from vidgen.nn.random import Generators


class FSQ(Bottleneck):
    """One id a token out of prod(levels), without a table.

    Args:
        levels: number of values of each channel, each ≥ 2; the paper's 1000 codes are (8, 5, 5, 5).
    """

    def __init__(self, *, levels: tuple[int, ...] = (8, 5, 5, 5)) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"FSQ needs at least 2 levels in every channel, got {tuple(levels)}")
        self.levels = tuple(levels)
        self.channels = self.in_channels = len(levels)
        self.codebooks = (math.prod(levels),)
        self.quantizer = LibraryFSQ(list(levels))

    def forward(self, features: Tensor, *, sample: bool = False, generators: Generators | None = None) -> Bottlenecked:
        with torch.autocast(features.device.type, enabled=False):  # bf16 cannot hold the ids
            vectors, ids = self.quantizer(features.float())
        return Bottlenecked(vectors, ids.long().unsqueeze(-1))

    def lookup(self, ids: Tensor) -> Tensor:
        return self.quantizer.indices_to_codes(ids.squeeze(-1))

    def nearest(self, vectors: Tensor) -> Tensor:
        half_width = vectors.new_tensor([level // 2 for level in self.levels])
        top = vectors.new_tensor([level - 1 for level in self.levels])
        steps = (vectors * half_width + half_width).round().clamp(min=torch.zeros_like(top), max=top)
        return self.quantizer.codes_to_indices((steps - half_width) / half_width).long().unsqueeze(-1)
