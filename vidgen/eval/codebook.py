"""How much of its codebooks a tokenizer uses: share of codes seen, entropy and perplexity over a data set."""

import math
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from vidgen.eval.metric import Metric
from vidgen.latents import Latents, LatentSpec


@dataclass
class Histogram:
    """How often each id was seen; memory grows with the ids seen, not with the codebook.

    Args:
        ids: sorted, long, each once.
        counts: long, as many.
    """

    ids: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    counts: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    def add(self, ids: Tensor, counts: Tensor) -> None:
        """See `ids` so many more times; ids may repeat."""
        self.ids, places = torch.cat([self.ids, ids]).unique(return_inverse=True)
        counts = torch.cat([self.counts, counts])
        self.counts = torch.zeros_like(self.ids).index_add_(0, places, counts)

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    @property
    def entropy_bits(self) -> float:
        """Of the frequencies; 0 when nothing was seen."""
        if self.total == 0:
            return 0.0
        seen = self.counts.sort().values.double()
        return max(0.0, math.log2(self.total) - float((seen * seen.log2()).sum()) / self.total)


class CodebookUsage(Metric):
    """Counts the codes of a discrete tokenizer, per part and codebook.

    Keys: ``codebook.<part>.<number>.usage`` (share of codes seen at least once, 0 to 1), ``.entropy_bits`` (of the
    codes' frequencies) and ``.perplexity`` (2 to that power: how many equally likely codes would be as varied), and
    ``codebook.usage`` and ``codebook.perplexity``, their means over all codebooks, and ``codebook.bits_per_token``,
    what a token costs when each of its ids is coded by its own frequencies (mean over the tokens of all parts).
    Usage can at most be the number of tokens seen over the size of the codebook, so it needs a data set that is large
    for the codebook; entropy and bits come out too low until then.
    """

    def __init__(self, spec: LatentSpec) -> None:
        if not spec.discrete:
            raise ValueError("codebook usage needs a tokenizer with codebooks, and this spec is continuous")
        self.spec = spec
        self.sizes = {
            f"{part.name}.{number}": size for part in spec.parts for number, size in enumerate(part.codebooks)
        }
        self.counts = {name: Histogram() for name in self.sizes}

    def update(self, latents: Latents) -> None:
        """Count the ids of a batch; only each sample's valid prefix where the tokenizer is variable-rate."""
        if latents.ids is None:
            raise ValueError("codebook usage needs latents with ids, and these are continuous")
        ids = latents.ids.cpu()
        valid = torch.ones(ids.shape[:2], dtype=torch.bool)
        if latents.length is not None:
            valid = torch.arange(ids.shape[1]) < latents.length.cpu()[:, None]
        places = self.spec.slices(latents.size, start=latents.start)
        for part, place in zip(self.spec.parts, places, strict=True):
            for number, size in enumerate(part.codebooks):
                seen = ids[:, place, number][valid[:, place]]
                if len(seen) and not 0 <= int(seen.min()) <= int(seen.max()) < size:
                    raise ValueError(
                        f"codebook {part.name}.{number} has {size} codes, got ids {int(seen.min())}…{int(seen.max())}"
                    )
                self.counts[f"{part.name}.{number}"].add(seen, torch.ones_like(seen))

    def merge(self, other: Self) -> None:
        for name, histogram in other.counts.items():
            self.counts[name].add(histogram.ids, histogram.counts)

    def compute(self) -> dict[str, float]:
        scores: dict[str, float] = {}
        usages, perplexities = [], []
        for name, histogram in self.counts.items():
            if histogram.total == 0:
                raise ValueError(f"codebook {name} has seen no token; call update first")
            usage, entropy = len(histogram.ids) / self.sizes[name], histogram.entropy_bits
            usages.append(usage)
            perplexities.append(2**entropy)
            scores[f"codebook.{name}.usage"] = usage
            scores[f"codebook.{name}.entropy_bits"] = entropy
            scores[f"codebook.{name}.perplexity"] = 2**entropy
        scores["codebook.usage"] = sum(usages) / len(usages)
        scores["codebook.perplexity"] = sum(perplexities) / len(perplexities)
        tokens = sum(self.counts[f"{part.name}.0"].total for part in self.spec.parts)
        bits = sum(histogram.total * histogram.entropy_bits for histogram in self.counts.values())
        scores["codebook.bits_per_token"] = bits / tokens
        return scores

    def state_dict(self) -> dict[str, Tensor]:
        state = {}
        for name, histogram in self.counts.items():
            state[f"{name}.ids"], state[f"{name}.counts"] = histogram.ids.clone(), histogram.counts.clone()
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.counts = {
            name: Histogram(state[f"{name}.ids"].clone(), state[f"{name}.counts"].clone()) for name in self.counts
        }

    def empty(self) -> "CodebookUsage":
        return CodebookUsage(self.spec)
