"""What goes wrong in training without an error, with advice: collapsed codebooks, a discriminator that has won."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vidgen.bottlenecks.record import Passage
from vidgen.eval.codebook import Histogram


class CodebookCounter:
    """Counts the ids of codes that learn, of the last steps of training, at most `kept` of them."""

    def __init__(self, *, kept: int = 64) -> None:
        self.seen: deque[tuple[dict[int, int], Tensor]] = deque(maxlen=kept)

    def add(self, passages: list[Passage]) -> None:
        """Keep the ids for later: counting them now would make a GPU wait."""
        for bottleneck, result in passages:
            sizes = {number: size for number, size in enumerate(bottleneck.codebooks) if number not in bottleneck.fixed}
            if result.ids is not None and sizes:
                self.seen.append((sizes, result.ids))

    def read(self) -> dict[str, float]:
        """Since the last call, of the codebook in the worst state: the codes used, how many could have been (the
        codebook's size, or the number of tokens seen) and their perplexity; {} when nothing was seen."""
        histograms: dict[tuple[int, int], Histogram] = {}
        for sizes, ids in self.seen:
            for number, size in sizes.items():
                own = ids[..., number].flatten().cpu()
                histograms.setdefault((number, size), Histogram()).add(own, torch.ones_like(own))
        self.seen.clear()
        if not histograms:
            return {}
        (_, size), worst = min(histograms.items(), key=lambda item: item[1].entropy_bits)
        return {
            "codes_used": float(len(worst.ids)),
            "codes_possible": float(min(size, worst.total)),
            "perplexity": 2**worst.entropy_bits,
        }


def codebook_collapsed(scalars: dict[str, float]) -> str | None:
    if "perplexity" not in scalars or scalars["perplexity"] >= min(100.0, 0.02 * scalars["codes_possible"]):
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
