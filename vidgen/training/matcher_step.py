"""One training step of a matcher: latents of clips beside texts that fit, that nearly fit, and that do not."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from vidgen.latents import Latents
from vidgen.matchers import CrossAttentionMatcher
from vidgen.nn.random import Generators, rand
from vidgen.tokenizers.base import Tokenizer
from vidgen.training.checkpoint import write_folder
from vidgen.training.latent_cache import latents_of
from vidgen.training.step import Batch, TrainingStep

NearMiss = Callable[[str, torch.Generator], str]
MOVED = (0.03, 0.4)  # share of the tokens of a broken clip that come from elsewhere in it
CHANGED, CHANGES = 0.7, 2  # root mean square change of a token that shows, and how many make a clip a broken one


class MatcherStep(TrainingStep):
    """Trains `matcher` to tell its clip's caption from others (binary cross-entropy, both halves weigh the same).

    Args:
        tokenizer: makes the tokens; it is not trained.
        near_miss: a caption that is nearly right, from a right one, or `None`.
        near_misses: how many of them a clip is offered.
        others: captions of other clips of the batch that it is offered.
        broken: share of the clips with some tokens moved elsewhere, which no text fits.
        shortest: frames that are left at least where only a part of a clip is looked at.
    """

    def __init__(
        self,
        matcher: CrossAttentionMatcher,
        tokenizer: Tokenizer,
        *,
        near_miss: NearMiss | None,
        near_misses: int,
        others: int,
        broken: float,
        shortest: int,
    ) -> None:
        super().__init__()
        self.matcher = matcher
        self.encode: Callable[[Batch], Latents] = lambda batch: latents_of(batch, tokenizer)
        self.decode = tokenizer.decode
        self.near_miss, self.near_misses, self.others = near_miss, near_misses, others
        self.broken, self.shortest = broken, shortest
        self.right = torch.zeros(())

    def forward(self, batch: Batch, generators: Generators) -> dict[str, Tensor]:
        latents, broken = self.seen(batch, generators)
        texts = self.offered(batch["caption"], generators)
        frames = part_in_time(latents.size[0], generators, shortest=self.shortest)
        scores = self.matcher.scores(latents, texts, frames=frames)
        fits = torch.tensor([[text == row[0] for text in row] for row in texts], device=scores.device)
        fits &= ~broken.to(scores.device)[:, None]
        losses = F.binary_cross_entropy_with_logits(scores, fits.float(), reduction="none")
        counts = fits.sum().clamp(min=1), (~fits).sum().clamp(min=1)
        self.right = ((scores > 0) == fits).float().mean()
        return {"fitting": losses[fits].sum() / counts[0] / 2, "others": losses[~fits].sum() / counts[1] / 2}

    def evaluate(self, batch: Batch, generators: Generators) -> dict[str, Tensor]:
        return self(batch, generators)

    def measures(self) -> dict[str, float]:
        return {"right": float(self.right)}

    def seen(self, batch: Batch, generators: Generators) -> tuple[Latents, Tensor]:
        """The latents that the matcher sees, and bool `b`: those of broken clips."""
        latents = self.encode(batch)
        rows = torch.arange(len(latents))[:, None]
        source = scattered(latents, generators)
        change = (latents.tokens[rows, source] - latents.tokens).square().mean(dim=2).sqrt()
        shows = (change > CHANGED).sum(dim=1).cpu() >= CHANGES
        broken = (rand((len(latents),), generators) < self.broken) & shows
        source = torch.where(broken[:, None], source, torch.arange(source.shape[1]))
        ids = None if latents.ids is None else latents.ids[rows, source]
        return Latents(latents.tokens[rows, source], ids, latents.size, latents.spec, latents.length), broken

    def offered(self, captions: Sequence[str], generators: Generators) -> list[list[str]]:
        """The texts that each clip of a batch is offered: its caption, its near misses, captions of the next clips."""
        rows = []
        for place, (caption, generator) in enumerate(zip(captions, generators, strict=True)):
            near = (
                [] if self.near_miss is None else [self.near_miss(caption, generator) for _ in range(self.near_misses)]
            )
            rows.append([caption, *near, *(captions[(place + 1 + i) % len(captions)] for i in range(self.others))])
        return rows

    @torch.no_grad()
    def samples(self, batch: Batch, generators: Generators) -> Tensor:
        """The clips as the matcher sees them."""
        return self.decode(self.seen(batch, generators)[0])

    def export(self, folder: Path) -> None:
        write_folder(folder, self.matcher.save_pretrained)


def part_in_time(frames: int, generators: Generators, *, shortest: int) -> tuple[int, int] | None:
    """The frames that a batch is judged by: half of the time all, else some that follow each other."""
    whole, length, start = rand((1, 3), generators[:1])[0].tolist()
    if whole < 0.5 or shortest >= frames:
        return None
    kept = shortest + int(length * (frames - shortest + 1))
    first = int(start * (frames - kept + 1))
    return first, first + kept


def scattered(latents: Latents, generators: Generators) -> Tensor:
    """`b n`: for each token the number of the token of its clip that takes its place, mostly itself."""
    sources = []
    for part, place in zip(latents.spec.parts, latents.spec.slices(latents.size), strict=True):
        grid = part.grid(latents.size) or (part.count,)
        numbers = torch.arange(math.prod(grid)).view(grid) + place.start
        draws = rand((len(latents), 1 + len(grid)), generators)
        chosen = rand((len(latents), *grid), generators)
        rows = []
        for (share, *moves), drawn in zip(draws.tolist(), chosen, strict=True):
            shift = tuple(1 + int(move * (extent - 1)) for move, extent in zip(moves, grid, strict=True))
            moved = drawn < MOVED[0] + share * (MOVED[1] - MOVED[0])
            rows.append(torch.where(moved, numbers.roll(shift, tuple(range(len(grid)))), numbers).flatten())
        sources.append(torch.stack(rows))
    return torch.cat(sources, dim=1)
