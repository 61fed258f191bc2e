"""One training step of a matcher: clips beside texts that fit, that nearly fit, and that do not."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from vidgen.latents import Latents
from vidgen.matchers.cross_attention import CrossAttentionMatcher
from vidgen.nn.random import Generators, rand
from vidgen.tokenizers.base import Tokenizer
from vidgen.training.checkpoint import write_folder
from vidgen.training.step import Batch, TrainingStep

MOVED = (0.03, 0.4)  # share of the tokens of a broken clip that come from elsewhere in it
VISIBLE = 0.15  # a pixel that changed by so much, of a range of 2, is seen to have changed
CHANGED = 0.004  # share of a clip's pixels that must have changed for it to count as broken


class MatcherStep(TrainingStep):
    """Trains `matcher` to tell its clip's caption from others (binary cross-entropy, both halves weigh the same).

    Args:
        tokenizers: clips pass through one of them or none, by chance; they are not trained.
        broken: share of the clips that pass through a tokenizer with tokens moved elsewhere, so that no text fits.
        shortest: frames that are left at least where a clip is cut to a part of it.
        others: captions of other clips of the batch that a clip is offered.
    """

    def __init__(
        self,
        matcher: CrossAttentionMatcher,
        *,
        tokenizers: Sequence[Tokenizer],
        broken: float,
        shortest: int,
        others: int,
    ) -> None:
        super().__init__()
        self.matcher = matcher
        self.tokenizers = tuple(tokenizers)
        self.broken, self.shortest, self.others = broken, shortest, others

    def forward(self, batch: Batch, generators: Generators) -> dict[str, Tensor]:
        video, broken = self.seen(batch["video"], generators)
        video = cut(video, generators, shortest=self.shortest)
        texts = offered(batch["caption"], batch.get("near_misses"), others=self.others)
        scores = self.matcher.scores(video, texts)
        fits = torch.tensor([[text == row[0] for text in row] for row in texts], device=scores.device)
        fits &= ~broken[:, None]
        losses = F.binary_cross_entropy_with_logits(scores, fits.float(), reduction="none")
        counts = fits.sum().clamp(min=1), (~fits).sum().clamp(min=1)
        self.right = ((scores > 0) == fits).float().mean()
        return {"fitting": losses[fits].sum() / counts[0] / 2, "others": losses[~fits].sum() / counts[1] / 2}

    def evaluate(self, batch: Batch, generators: Generators) -> dict[str, Tensor]:
        return self(batch, generators)

    def measures(self) -> dict[str, float]:
        return {"right": float(self.right)}

    @torch.no_grad()
    def seen(self, video: Tensor, generators: Generators) -> tuple[Tensor, Tensor]:
        """What the matcher sees of the clips, and bool `b`: those that are broken."""
        broken = torch.zeros(len(video), dtype=torch.bool, device=video.device)
        if not self.tokenizers:
            return video, broken
        draws = rand((len(video), 2), generators).to(video.device)
        apart = draws[:, 1] < self.broken
        through = (draws[:, 0] * (len(self.tokenizers) + 1)).long()
        through = torch.where(apart, through % len(self.tokenizers), through)
        shown = video.clone()
        for number, tokenizer in enumerate(self.tokenizers):
            rows = (through == number).nonzero().flatten()
            if len(rows):
                latents = tokenizer.encode(video[rows])
                shown[rows] = tokenizer.decode(latents).to(video.dtype)
                moved = [place for place, row in enumerate(rows) if apart[row]]
                if moved:
                    rows = rows[moved]
                    mixed = with_moved_tokens(latents, moved, [generators[int(row)] for row in rows])
                    changed = tokenizer.decode(mixed).to(video.dtype)
                    difference = (changed - shown[rows]).abs().amax(dim=1) > VISIBLE
                    broken[rows] = difference.float().mean(dim=(1, 2, 3)) > CHANGED
                    shown[rows] = torch.where(broken[rows].view(-1, 1, 1, 1, 1), changed, shown[rows])
        return shown, broken

    def samples(self, batch: Batch, generators: Generators) -> Tensor:
        """The clips as the matcher sees them."""
        return self.seen(batch["video"], generators)[0]

    def export(self, folder: Path) -> None:
        write_folder(folder, self.matcher.save_pretrained)


def offered(captions: Sequence[str], near_misses: Sequence[Sequence[str]] | None, *, others: int) -> list[list[str]]:
    """The texts that each clip of a batch is offered: its caption, its near misses, captions of the next clips."""
    near = [[] for _ in captions] if near_misses is None else near_misses
    around = [*captions, *captions]
    return [
        [caption, *misses, *around[place + 1 : place + 1 + others]]
        for place, (caption, misses) in enumerate(zip(captions, near, strict=True))
    ]


def cut(video: Tensor, generators: Generators, *, shortest: int) -> Tensor:
    """A part of the clips in time, the same for all of a batch; half of the time all of it."""
    frames = video.shape[2]
    whole, length, start = rand((1, 3), generators[:1])[0].tolist()
    if whole < 0.5 or shortest >= frames:
        return video
    kept = shortest + int(length * (frames - shortest + 1))
    first = int(start * (frames - kept + 1))
    return video[:, :, first : first + kept]


def with_moved_tokens(latents: Latents, rows: Sequence[int], generators: Generators) -> Latents:
    """Some samples of latents, a share of their tokens replaced by those of another place in the same clip."""
    grid = latents.spec.grid(latents.size)
    numbers = torch.arange(math.prod(grid)).view(grid)
    draws = rand((len(rows), 4), generators)
    chosen = rand((len(rows), *grid), generators)
    source = []
    for (t, y, x, share), drawn in zip(draws.tolist(), chosen, strict=True):
        shift = int(t * grid[0]), 1 + int(y * (grid[1] - 1)), int(x * grid[2])
        moved = drawn < MOVED[0] + share * (MOVED[1] - MOVED[0])
        source.append(torch.where(moved, numbers.roll(shift, (0, 1, 2)), numbers).flatten())
    place = (torch.tensor(rows)[:, None], torch.stack(source))
    ids = None if latents.ids is None else latents.ids[place]
    return Latents(latents.tokens[place], ids, latents.size, latents.spec)
