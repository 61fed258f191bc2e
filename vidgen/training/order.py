"""Which clips a step is made of, and which seeds its noise has: functions of (seed, step) without any state."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

from vidgen.nn.random import seeded

NOISE, EPOCH, GLOBAL = 1, 2, 3  # keep the streams of seeds apart


def seed_of(*numbers: int) -> int:
    """One 63-bit seed of several numbers; neighbours are unrelated."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


class DataOrder:
    """The clips of every step.

    Args:
        count: clips in a finite set, each seen once an epoch in a new order; None for an endless world, where every
            step gets fresh clips.
        batch_size: clips of a step, over all processes.
        seed: of the permutations.
    """

    def __init__(self, count: int | None, batch_size: int, *, seed: int) -> None:
        if count is not None and count < 1:
            raise ValueError("expected at least one training clip, got none")
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self._permutation: tuple[int, np.ndarray] | None = None

    def indices(self, step: int) -> list[int]:
        """Clip numbers at positions 0…batch_size-1 of the step."""
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        if self.count is None:
            return list(positions)
        return [int(self._order_of(position // self.count)[position % self.count]) for position in positions]

    def _order_of(self, epoch: int) -> np.ndarray:
        assert self.count is not None
        if self._permutation is None or self._permutation[0] != epoch:
            generator = np.random.default_rng(np.random.SeedSequence([self.seed, EPOCH, epoch]))
            self._permutation = epoch, generator.permutation(self.count)
        return self._permutation[1]


def positions_of(micro: int, *, batch_size: int, accumulation: int, rank: int, world_size: int) -> range:
    """Positions in the global batch that one process has in one micro-batch."""
    share = batch_size // (accumulation * world_size)
    first = (micro * world_size + rank) * share
    return range(first, first + share)


class MicroBatches(Sampler[list[int]]):
    """Batch sampler of one process: its clips of every micro-batch, from any step on."""

    def __init__(
        self, order: DataOrder, *, start: int, stop: int, accumulation: int, rank: int, world_size: int
    ) -> None:
        if order.batch_size % (accumulation * world_size):
            raise ValueError(
                f"batch_size {order.batch_size} does not divide by {world_size} processes × {accumulation} "
                f"micro-batches; use a multiple of {world_size * accumulation}"
            )
        self.order, self.start, self.stop = order, start, stop
        self.accumulation, self.rank, self.world_size = accumulation, rank, world_size

    def __len__(self) -> int:
        return (self.stop - self.start) * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.stop):
            indices = self.order.indices(step)
            for micro in range(self.accumulation):
                positions = positions_of(
                    micro,
                    batch_size=self.order.batch_size,
                    accumulation=self.accumulation,
                    rank=self.rank,
                    world_size=self.world_size,
                )
                yield [indices[position] for position in positions]


def noise_generators(seed: int, step: int, *, positions: range) -> list[torch.Generator]:
    """One generator per clip; clip `position` of the global batch has the same noise however the batch is cut."""
    return seeded([seed_of(seed, NOISE, step, position) for position in positions])
