"""AdaCode: several codebooks mixed by weights, few or many of which are kept (Jiang et al. 2023)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidgen.bottlenecks.base import Bottlenecked, Quantizer, kept_counts, straight_through
from vidgen.bottlenecks.codebook import Codebook
from vidgen.nn.random import Generators


class AdaCode(Quantizer):
    """The nearest code of each of `count` codebooks, mixed by weights that a linear map reads off the token.

    M-AdaCode (arXiv 2309.11661, section 3): codebooks of their own for kinds of content, and small weights masked out
    for a lower rate. Ids are one of each codebook, then the weights in `levels` steps; a codebook with weight 0 has
    id 0, so that an entropy coder pays little for it. `masked(ids, kept)` masks more, at any time. Codebooks of
    classes with labels come first in the paper; here each learns from a token as much as its weight says.

    Args:
        codes: size of each codebook.
        channels: length of a code.
        count: of the codebooks.
        levels: steps of a weight, 0 among them.
        kept: codebooks a token that encoding keeps; all of them without.
        dropout: share of the training clips that keep a random number of codebooks, so that every rate decodes.
        commitment: weight that pulls encoder outputs to their codes.
        decay, restart_below: of the codebooks, as for `vq`.
    """

    distinct = False
    needs_gradient = True

    def __init__(
        self,
        *,
        codes: int = 1024,
        channels: int = 16,
        count: int = 4,
        levels: int = 8,
        kept: int | None = None,
        dropout: float = 0.0,
        commitment: float = 0.25,
        decay: float = 0.99,
        restart_below: float = 0.1,
    ) -> None:
        super().__init__()
        kept = count if kept is None else kept
        if codes < 2 or min(channels, count - 1) < 1 or levels < count + 1 or not 1 <= kept <= count:
            raise ValueError(
                "AdaCode needs at least 2 codebooks of at least 2 codes of at least 1 channel, more levels than "
                f"codebooks, and keeps 1 to all of them; got {count} codebooks of {codes} codes of {channels}, with "
                f"{levels} levels and {kept} kept"
            )
        if not 0 <= dropout <= 1 or not 0 < decay < 1 or min(commitment, restart_below) < 0:
            raise ValueError(
                "AdaCode needs a dropout and a decay between 0 and 1 and no negative commitment or restart_below, got "
                f"{dropout}, {decay}, {commitment} and {restart_below}"
            )
        self.channels = self.in_channels = channels
        self.codebooks = (codes,) * count + (levels,) * count
        self.fixed = tuple(range(count, 2 * count))
        self.count, self.levels, self.kept = count, levels, kept
        self.dropout, self.commitment = dropout, commitment
        self.tables = nn.ModuleList(
            Codebook(codes, channels, cosine=False, decay=decay, restart_below=restart_below, kmeans_steps=0)
            for _ in range(count)
        )
        self.to_weights = nn.Linear(channels, count)

    @property
    def table_modules(self) -> list[Codebook]:
        return [table for table in self.tables if isinstance(table, Codebook)]

    def quantize(self, vectors: Tensor, *, sample: bool = False, generators: Generators | None = None) -> Bottlenecked:
        kept = kept_counts(vectors, self.kept, self.dropout if self.learns else 0.0, generators)
        weights, steps = self._weights(vectors, self.kept if kept is None else kept)
        chosen = self._chosen(vectors)
        ids = self._ids(chosen, steps)
        mixed = self.lookup(ids)
        losses = {}
        soft = torch.zeros_like(vectors)
        for number, table in enumerate(self.table_modules):
            soft = soft + weights[..., number, None] * table.vectors[chosen[..., number]]
            if self.learns:
                share = torch.where(steps[..., number] > 0, weights[..., number], 0.0).detach()
                table.learn(vectors, chosen[..., number], share)
        if self.training:
            losses["commitment"] = self.commitment * (vectors - mixed).square().mean()
        return Bottlenecked(straight_through(vectors + soft, mixed), ids, losses)

    def _weights(self, vectors: Tensor, kept: Tensor | int) -> tuple[Tensor, Tensor]:
        """Of each codebook, `b n count`: weights that sum to 1 over the `kept` largest, and their steps (long)."""
        layer = self.to_weights
        with torch.autocast(vectors.device.type, enabled=False):
            weights = F.linear(vectors, layer.weight.float(), layer.bias.float()).softmax(dim=-1)
        weights = torch.where(rank(weights) < kept, weights, 0.0)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        return weights, (weights * (self.levels - 1)).round().long()  # levels > count: the largest is never 0

    def _chosen(self, vectors: Tensor) -> Tensor:
        """The nearest code of each codebook, `b n count`."""
        return torch.stack([table.nearest(vectors) for table in self.table_modules], dim=-1)

    def _ids(self, chosen: Tensor, steps: Tensor) -> Tensor:
        return torch.cat([torch.where(steps > 0, chosen, 0), steps], dim=-1)

    def masked(self, ids: Tensor, kept: int) -> Tensor:
        """`b n q -> b n q`: the same tokens with their `kept` largest weights alone, for a lower rate."""
        if not 1 <= kept <= self.count:
            raise ValueError(f"a token keeps 1 to {self.count} codebooks, got {kept}")
        codes, steps = ids.split(self.count, dim=-1)
        return torch.cat([torch.where(rank(steps) < kept, part, 0) for part in (codes, steps)], dim=-1)

    def lookup(self, ids: Tensor) -> Tensor:
        steps = ids[..., self.count :].float()
        weights = steps / steps.sum(dim=-1, keepdim=True).clamp(min=1.0)
        codes = torch.stack(
            [table.vectors[ids[..., number]].float() for number, table in enumerate(self.table_modules)], dim=-2
        )
        return (weights.unsqueeze(-1) * codes).sum(dim=-2)

    def nearest(self, vectors: Tensor) -> Tensor:
        vectors = vectors.float()
        return self._ids(self._chosen(vectors), self._weights(vectors, self.kept)[1])


def rank(values: Tensor) -> Tensor:
    """0 for the largest along the last axis, 1 for the next; of equal ones the first comes first."""
    return values.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
