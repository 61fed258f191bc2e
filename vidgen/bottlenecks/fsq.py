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
        levels: number of values of each channel, each ≥ 3; the paper's 1000 codes are (8, 5, 5, 5).
    """

    def __init__(self, *, levels: tuple[int, ...] = (8, 5, 5, 5)) -> None:
        super().__init__()
        if not levels or min(levels) < 3 or math.prod(levels) >= 2**31:
            raise ValueError(
                "FSQ needs at least 3 levels in every channel and fewer than 2^31 codes in all, got levels "
                f"{tuple(levels)}; for example (8, 5, 5, 5)"
            )
        self.levels = tuple(levels)
        self.channels = self.in_channels = len(levels)
        self.codebooks = (math.prod(levels),)
        # Its own ids cost a table of all codes and are wrong past 2^24 codes, where float32 skips integers.
        self.quantizer = LibraryFSQ(list(levels), return_indices=False)

    def forward(self, features: Tensor, *, sample: bool = False, generators: Generators | None = None) -> Bottlenecked:
        with torch.autocast(features.device.type, enabled=False):  # bf16 cannot hold the ids
            vectors, _ = self.quantizer(features.float())
        return Bottlenecked(vectors, self.nearest(vectors.detach()))

    def lookup(self, ids: Tensor) -> Tensor:
        return self.quantizer.indices_to_codes(ids.squeeze(-1))

    def nearest(self, vectors: Tensor) -> Tensor:
        levels = torch.tensor(self.levels, device=vectors.device)
        places = torch.tensor([math.prod(self.levels[:channel]) for channel in range(self.channels)]).to(levels)
        half_widths = levels // 2
        steps = (vectors.float() * half_widths).round().long() + half_widths
        steps = torch.minimum(steps.clamp(min=0), levels - 1)
        return (steps * places).sum(dim=-1, keepdim=True)
