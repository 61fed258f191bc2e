"""LFQ: the sign of every channel is a bit of the id, no codebook at all (MAGVIT-v2)."""

import math

import torch
from einops import rearrange
from torch import Tensor

from vidgen.bottlenecks.base import Bottlenecked, Quantizer, straight_through
from vidgen.bottlenecks.entropy import EntropyTerm, mean_over_processes
from vidgen.kernels.ops import binary_entropy_stats
from vidgen.nn.random import Generators

LARGEST_ID = 62  # bits of one int64 id
LARGEST_JOINT = 24  # bits whose joint distribution is held: 64 MiB


class LFQ(Quantizer):
    """2^bits codes: every channel becomes -1 or 1 (arXiv 2310.05737, section 3.1).

    Args:
        bits: channels, one bit each.
        groups: ids that the bits of a token are shared out to, each of 2^(bits/groups) codes; generators need ids
            that are small enough for their tables.
        entropy: weight of the entropy term, exact over all codes (over each run of at most 24 bits beyond that).
        entropy_boost, boost_steps: the weight starts so many times higher and falls to `entropy` over these training
            steps.
        diversity: weight of the codebook's entropy against a token's.
        temperature: of the soft assignment that the entropies are of.
        commitment: weight that pulls features to their codes.
    """

    finer = (0.5,)

    def __init__(
        self,
        *,
        bits: int = 18,
        groups: int = 1,
        entropy: float = 0.1,
        entropy_boost: float = 3.0,
        boost_steps: int = 2000,
        diversity: float = 1.0,
        temperature: float = 0.01,
        commitment: float = 0.25,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if bits < 1 or groups < 1 or bits % groups or bits // groups > LARGEST_ID:
            raise ValueError(
                f"{name} needs bits that divide by groups into ids of 1 to {LARGEST_ID} bits, got {bits} bits in "
                f"{groups} groups; for example 36 bits in 2 groups"
            )
        if temperature <= 0 or commitment < 0:
            raise ValueError(
                f"{name} needs a temperature above 0 and a commitment of at least 0, got {temperature}, {commitment}"
            )
        self.channels = self.in_channels = bits
        self.codebooks = (2 ** (bits // groups),) * groups
        self.temperature, self.commitment = temperature, commitment
        self.entropy = EntropyTerm(entropy, boost=entropy_boost, steps=boost_steps, diversity=diversity)
        self.scale = 1.0

    def quantize(self, vectors: Tensor, *, sample: bool = False, generators: Generators | None = None) -> Bottlenecked:
        ids = self.nearest(vectors)
        codes = self.lookup(ids)
        losses = {}
        if self.training:
            losses["commitment"] = self.commitment * (vectors - codes).square().mean()
            of_a_token, of_the_mean = self._entropies(vectors)
            losses["entropy"] = self.entropy(of_a_token, of_the_mean, codes=self.codebooks)
        return Bottlenecked(straight_through(vectors, codes), ids, losses)

    def _entropies(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Mean entropy of a token's code and entropy of the mean code, in nats, summed over as few runs as can be."""
        runs = [
            binary_entropy_stats(run, 1 / self.temperature, scale=self.scale, groups=1, average=mean_over_processes)
            for run in vectors.tensor_split(math.ceil(self.channels / LARGEST_JOINT), dim=-1)
        ]
        of_a_token, of_the_mean = zip(*runs, strict=True)
        return torch.stack(of_a_token).sum(), torch.stack(of_the_mean).sum()

    def lookup(self, ids: Tensor) -> Tensor:
        bits = (ids.unsqueeze(-1) >> self._places(ids)) & 1
        return self.scale * (2.0 * rearrange(bits, "b n q c -> b n (q c)") - 1.0)

    def nearest(self, vectors: Tensor) -> Tensor:
        bits = rearrange((vectors > 0).long(), "b n (q c) -> b n q c", q=len(self.codebooks))
        return (bits << self._places(bits)).sum(dim=-1)

    def _places(self, like: Tensor) -> Tensor:
        """How far each bit of an id is shifted; the first channel is the highest bit."""
        return torch.arange(self.channels // len(self.codebooks) - 1, -1, -1, device=like.device)
