"""FSQ: every channel rounded to a few fixed levels, the codebook is their product (Mentzer et al. 2023)."""

import math

import torch
from torch import Tensor

from vidgen.bottlenecks.base import Bottlenecked, Quantizer, straight_through
from vidgen.bottlenecks.entropy import EntropyTerm, product_entropy
from vidgen.nn.random import Generators

LARGEST_JOINT = 2**24  # codes whose joint distribution is held: 64 MiB
MARGIN = 1e-3  # the outermost levels are reached a little before the end of tanh


class FSQ(Quantizer):
    """One id a token out of prod(levels), without a table (arXiv 2309.15505).

    Args:
        levels: number of values of each channel, each ≥ 3; the paper's 1000 codes are (8, 5, 5, 5).
        commitment: weight that pulls bounded features to their codes (VidTok: 0.25).
        entropy: weight of the entropy term (VidTok: 0.1): sure about each token, even over the codebook.
        entropy_boost, boost_steps: the weight starts so many times higher and falls to `entropy` over so many forward
            passes in training (VidTok: 3, 2000).
        temperature: of the soft assignment to levels that the entropies are of, in squared level distances.
    """

    def __init__(
        self,
        *,
        levels: tuple[int, ...] = (8, 5, 5, 5),
        commitment: float = 0.0,
        entropy: float = 0.0,
        entropy_boost: float = 1.0,
        boost_steps: int = 2000,
        temperature: float = 0.1,
    ) -> None:
        super().__init__()
        if not levels or min(levels) < 3 or math.prod(levels) >= 2**31:
            raise ValueError(
                "FSQ needs at least 3 levels in every channel and fewer than 2^31 codes in all, got levels "
                f"{tuple(levels)}; for example (8, 5, 5, 5)"
            )
        if commitment < 0 or temperature <= 0:
            raise ValueError(
                f"FSQ needs a commitment of at least 0 and a temperature above 0, got {commitment} and {temperature}"
            )
        if not entropy and entropy_boost != 1:
            raise ValueError(
                f"entropy_boost {entropy_boost} raises the weight of the entropy term, and there is none; set entropy "
                "above 0 or leave entropy_boost out"
            )
        if entropy and math.prod(levels) > LARGEST_JOINT:
            raise ValueError(
                f"the entropy term holds the distribution over all codes, at most {LARGEST_JOINT}, and levels "
                f"{tuple(levels)} have {math.prod(levels)}; set entropy to 0 or use a product of two fsq"
            )
        self.levels = tuple(levels)
        self.channels = self.in_channels = len(levels)
        self.codebooks = (math.prod(levels),)
        self.commitment, self.temperature = commitment, temperature
        self.entropy = EntropyTerm(entropy, boost=entropy_boost, steps=boost_steps) if entropy else None
        # An odd number of levels cuts the range into equal cells, an even one leaves half a cell out at the top.
        self.finer = tuple(1 / count if count % 2 else 1 / (count - 1) for count in levels)

    def _like(self, values: list[float], vectors: Tensor) -> Tensor:
        return torch.tensor(values, device=vectors.device, dtype=torch.float32)

    def _half_widths(self, vectors: Tensor) -> Tensor:
        return self._like([count // 2 for count in self.levels], vectors)

    def enter(self, features: Tensor) -> Tensor:
        """Squash each channel to just over [-1, 1] (odd) or [-1, 1 - 2/levels] (even), so that rounding fits."""
        reach = self._like([(count - 1) * (1 + MARGIN) / 2 for count in self.levels], features)
        offset = self._like([0.0 if count % 2 else 0.5 for count in self.levels], features)
        shift = torch.atanh(offset / reach)
        return ((features + shift).tanh() * reach - offset) / self._half_widths(features)

    def quantize(self, vectors: Tensor, *, sample: bool = False, generators: Generators | None = None) -> Bottlenecked:
        ids = self.nearest(vectors.detach())
        codes = self.lookup(ids)
        losses = {}
        if self.training and self.commitment:
            losses["commitment"] = self.commitment * (vectors - codes).square().mean()
        if self.training and self.entropy is not None:
            losses["entropy"] = self.entropy(*product_entropy(self._level_probabilities(vectors)), codes=self.codebooks)
        return Bottlenecked(straight_through(vectors, codes), ids, losses)

    def lookup(self, ids: Tensor) -> Tensor:
        levels, places = self._places(ids)
        return ((ids // places) % levels - levels // 2) / self._half_widths(ids)

    def nearest(self, vectors: Tensor) -> Tensor:
        levels, places = self._places(vectors)
        steps = (vectors.float() * self._half_widths(vectors)).round().long() + levels // 2
        steps = torch.minimum(steps.clamp(min=0), levels - 1)
        return (steps * places).sum(dim=-1, keepdim=True)

    def _places(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Levels of each channel and what one level of it adds to an id."""
        places = [math.prod(self.levels[:channel]) for channel in range(self.channels)]
        return torch.tensor(self.levels, device=like.device), torch.tensor(places, device=like.device)

    def _level_probabilities(self, vectors: Tensor) -> list[Tensor]:
        """`b n c` -> for each channel `(b n) levels`, softmax of minus the squared distance in levels."""
        steps = (vectors * self._half_widths(vectors)).flatten(0, 1)
        probabilities = []
        for channel, count in enumerate(self.levels):
            values = torch.arange(count, device=vectors.device) - count // 2
            distances = (steps[:, channel, None] - values).square()
            probabilities.append((-distances / self.temperature).softmax(dim=-1))
        return probabilities
