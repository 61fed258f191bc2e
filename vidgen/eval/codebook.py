"""How much of its codebooks a tokenizer uses: share of codes seen, entropy and perplexity over a data set."""

import math
from typing import Self

import torch
from torch import Tensor

from vidgen.eval.metric import Metric
from vidgen.latents import Latents, LatentSpec


class CodebookUsage(Metric):
    """Counts the codes of a discrete tokenizer, per part and codebook.

    Keys: ``codebook.<part>.<number>.usage`` (share of codes seen at least once, 0 to 1), ``.entropy_bits`` (of the
    codes' frequencies) and ``.perplexity`` (2 to that power: how many equally likely codes would be as varied), and
    ``codebook.usage`` and ``codebook.perplexity``, their means over all codebooks. Usage can at most be the number of
    tokens seen over the size of the codebook, so it needs a data set that is large for the codebook.
    """

    def __init__(self, spec: LatentSpec) -> None:
        if not spec.discrete:
            raise ValueError("codebook usage needs a tokenizer with codebooks, and this spec is continuous")
        self.spec = spec
        self.counts = {
            f"{part.name}.{number}": torch.zeros(size, dtype=torch.int64)
            for part in spec.parts
            for number, size in enumerate(part.codebooks)
        }

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
                self.counts[f"{part.name}.{number}"] += torch.bincount(seen, minlength=size)

    def merge(self, other: Self) -> None:
        for name, counts in other.counts.items():
            self.counts[name] = self.counts[name] + counts

    def compute(self) -> dict[str, float]:
        scores: dict[str, float] = {}
        usages, perplexities = [], []
        for name, counts in self.counts.items():
            total = int(counts.sum())
            if total == 0:
                raise ValueError(f"codebook {name} has seen no token; call update first")
            seen = counts[counts > 0].double()
            usage = len(seen) / len(counts)
            entropy = math.log2(total) - float((seen * seen.log2()).sum()) / total
            entropy = max(0.0, entropy)
            usages.append(usage)
            perplexities.append(2**entropy)
            scores[f"codebook.{name}.usage"] = usage
            scores[f"codebook.{name}.entropy_bits"] = entropy
            scores[f"codebook.{name}.perplexity"] = 2**entropy
        scores["codebook.usage"] = sum(usages) / len(usages)
        scores["codebook.perplexity"] = sum(perplexities) / len(perplexities)
        return scores

    def state_dict(self) -> dict[str, Tensor]:
        return {name: counts.clone() for name, counts in self.counts.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.counts = {name: state[name].clone() for name in self.counts}

    def empty(self) -> "CodebookUsage":
        return CodebookUsage(self.spec)
