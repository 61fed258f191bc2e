"""What goes wrong in training without an error, with advice: collapsed codebooks, a discriminator that has won."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vidgen.bottlenecks import Bottleneck
from vidgen.bottlenecks.record import Passage
from vidgen.eval.codebook import Histogram


class CodebookCounter:
    """Counts the ids of codes that learn, of the last steps of training, at most `kept` of them."""

    def __init__(self, *, kept: int = 64) -> None:
        self.seen: deque[tuple[Bottleneck, list[int], Tensor]] = deque(maxlen=kept)

    def add(self, passages: list[Passage]) -> None:
        """Keep the ids for later: counting them now would make a GPU wait."""
        for bottleneck, result in passages:
            learning = [number for number in range(len(bottleneck.codebooks)) if number not in bottleneck.fixed]
            if result.ids is not None:
                self.seen.append((bottleneck, learning, result.ids))

    def read(self) -> dict[str, float]:
        """Since the last call, of the codebook in the worst state: the codes used, how many could have been (the
        codebook's size, or the number of tokens seen) and their perplexity; {} when nothing was seen."""
        histograms: dict[tuple[Bottleneck, int], Histogram] = {}
        for bottleneck, learning, ids in self.seen:
            for number in learning:
                own = ids[..., number].flatten().cpu()
                histograms.setdefault((bottleneck, number), Histogram()).add(own, torch.ones_like(own))
        self.seen.clear()
        codebooks = [
            {
                "codes_used": float(len(histogram.ids)),
                "codes_possible": float(min(bottleneck.codebooks[number], histogram.total)),
                "perplexity": 2**histogram.entropy_bits,
            }
            for (bottleneck, number), histogram in histograms.items()
        ]
        return min(codebooks, key=health, default={})


def health(codes: dict[str, float]) -> float:
    """Perplexity of a codebook over the least that a living one has: 2 % of its codes, between 2 and 100, and half of
    a codebook of fewer than 4."""
    possible = codes["codes_possible"]
    return codes["perplexity"] / min(max(0.02 * possible, min(2.0, possible / 2)), 100.0)


def codebook_collapsed(scalars: dict[str, float]) -> str | None:
    if "perplexity" not in scalars or health(scalars) >= 1:
        return None
    return (
        f"the codebook has collapsed: {scalars['codes_used']:.0f} of {scalars['codes_possible']:.0f} codes in use, "
        f"perplexity {scalars['perplexity']:.1f}; raise --learning-rate, let dead codes restart (vq: restart_below, "
        "kmeans_steps), add an entropy term (fsq, lfq, bsq: entropy) or use fewer codes"
    )


def discriminator_has_won(scalars: dict[str, float]) -> str | None:
    """Of several judges, `discriminator.NAME` each, the one with the smallest loss."""
    verdicts = {
        name: loss for name, loss in scalars.items() if name == "discriminator" or name.startswith("discriminator.")
    }
    winner = min(verdicts, key=lambda name: verdicts[name], default=None)
    if winner is None or verdicts[winner] >= 0.05:
        return None
    _, _, name = winner.partition(".")
    judge = f"the discriminator of {name}" if name else "the discriminator"
    return (
        f"{judge} has won (its loss is {verdicts[winner]:.3f}): it tells the tokenizer nothing any more; lower its "
        "learning rate or --adversarial-weight, start it later (--discriminator-start) or hold it back "
        "(--r1-weight 10, --lecam-weight 0.001)"
    )


@dataclass
class TrainingMonitor:
    """Looks at the scalars of each log entry and says what has stayed wrong for `patience` entries, once each time.

    The last entry of a run is judged by all before it, so that short runs are told too: what was wrong in the last
    `patience` entries, or in all of them where there were fewer.

    Args:
        first_step: earlier steps count for the last entry alone: every codebook begins small.
    """

    first_step: int = 500
    patience: int = 5
    rules: tuple[Callable[[dict[str, float]], str | None], ...] = (codebook_collapsed, discriminator_has_won)
    counts: dict[int, int] = field(default_factory=dict)
    streaks: dict[int, int] = field(default_factory=dict)
    entries: int = 0

    def observe(self, step: int, scalars: dict[str, float], *, last: bool = False) -> list[str]:
        """Warnings to show at a step.

        Args:
            last: no entry follows.
        """
        self.entries += 1
        warnings = []
        for number, rule in enumerate(self.rules):
            message = rule(scalars)
            if message is None:
                self.counts[number] = self.streaks[number] = 0
                continue
            self.streaks[number] = self.streaks.get(number, 0) + 1
            self.counts[number] = self.counts.get(number, 0) + (step >= self.first_step)
            said = self.counts[number] >= self.patience
            long_enough = self.streaks[number] >= min(self.patience, self.entries)
            if self.counts[number] == self.patience or (last and not said and long_enough):
                warnings.append(f"warning at step {step}: {message}")
        return warnings
