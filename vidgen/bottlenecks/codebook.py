"""A table of codes that follows the vectors assigned to it: moving averages, k-means start, dead codes restarted."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidgen.kernels.ops import vq_assign

SMOOTHING = 1e-5  # added to the count of each code, so that one without members keeps a finite mean
FADED = 1e-3  # a smaller count says nothing of where members are, but how long there were none


class Codebook(nn.Module):
    """`codes` vectors, each the moving mean of its members (van den Oord et al. 2017, arXiv 1711.00937, appendix A.1).

    Memory is the table and its averages, never one number for each (vector, code): the nearest code is searched in
    blocks and sums are scattered. In a process group all ranks learn from all ranks' vectors.

    Args:
        channels: length of a code.
        cosine: codes have length 1 and nearness is the angle (Yu et al. 2021, arXiv 2110.04627).
        decay: of the moving averages of counts and sums.
        restart_below: a code whose moving count of members is below this restarts at a vector of the batch.
        kmeans_steps: Lloyd iterations on the first training batch; 0 starts from random codes.
    """

    vectors: Tensor
    counts: Tensor
    sums: Tensor
    started: Tensor

    def __init__(
        self, codes: int, channels: int, *, cosine: bool, decay: float, restart_below: float, kmeans_steps: int
    ) -> None:
        super().__init__()
        self.cosine, self.decay, self.restart_below, self.kmeans_steps = cosine, decay, restart_below, kmeans_steps
        vectors = torch.randn(codes, channels) * channels**-0.5
        self.register_buffer("vectors", F.normalize(vectors, dim=-1) if cosine else vectors)
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("sums", self.vectors.clone())
        self.register_buffer("started", torch.tensor(kmeans_steps == 0))

    def nearest(self, vectors: Tensor) -> Tensor:
        """`… c -> …` long."""
        return vq_assign(vectors, self.vectors, cosine=self.cosine)

    @torch.no_grad()
    def start(self, vectors: Tensor) -> None:
        """k-means on the first vectors `… c` of a training run, where the options ask for it."""
        if self.kmeans_steps == 0 or self.started:
            return
        members = vectors.detach().reshape(-1, vectors.shape[-1])
        self._replace(torch.ones_like(self.counts, dtype=torch.bool), members)
        for _ in range(self.kmeans_steps):
            counts, sums = self._totals(members, self.nearest(members))
            means = sums / counts.clamp(min=1)[:, None]
            self.vectors.copy_(torch.where(counts[:, None] > 0, self._placed(means), self.vectors))
            self.counts.copy_(counts.clamp(min=1))
            self.sums.copy_(self.vectors * self.counts[:, None])
        self.started.fill_(True)

    @torch.no_grad()
    def learn(self, vectors: Tensor, ids: Tensor, weights: Tensor | None = None) -> None:
        """Move the codes towards their members: `… c`, `…`, and how much each member counts, `…`."""
        members = vectors.detach().reshape(-1, vectors.shape[-1])
        counts, sums = self._totals(members, ids.flatten(), None if weights is None else weights.flatten())
        self.counts.lerp_(counts.to(self.counts.dtype), 1 - self.decay)
        self.sums.lerp_(sums.to(self.sums.dtype), 1 - self.decay)
        total = self.counts.sum()
        smoothed = (self.counts + SMOOTHING) / (total + len(self.counts) * SMOOTHING) * total
        moved = self._placed(self.sums / smoothed[:, None]).to(self.vectors.dtype)
        self.vectors.copy_(torch.where(self.counts[:, None] > FADED, moved, self.vectors))  # others wait where they are
        self._replace(self.counts < self.restart_below, members)

    def _placed(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self.cosine else vectors

    def _totals(self, members: Tensor, ids: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Number and sum of the members of each code over all processes."""
        weights = members.new_ones(len(members)) if weights is None else weights.to(members.dtype)
        counts = members.new_zeros(len(self.vectors)).index_add_(0, ids, weights)
        sums = members.new_zeros(self.vectors.shape).index_add_(0, ids, members * weights[:, None])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(counts)
            torch.distributed.all_reduce(sums)
        return counts, sums

    def _replace(self, dead: Tensor, members: Tensor) -> None:
        """Put `dead` codes (`k` bool) on members of the batch, no member twice; the rest waits for another batch.

        Without a look at how many are dead: that would make a GPU wait and break a compiled graph.
        """
        # from torch's global generator, which the trainer seeds for each step
        shuffled = members[torch.randperm(len(members), device=members.device)][: len(dead)]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.broadcast(shuffled, src=0)
        turn = dead.long().cumsum(dim=0) - 1
        replaced = (dead & (turn < len(shuffled)))[:, None]
        fresh = self._placed(shuffled[turn.clamp(0, len(shuffled) - 1)]).to(self.vectors.dtype)
        self.vectors.copy_(torch.where(replaced, fresh, self.vectors))
        at_the_edge = max(self.restart_below, SMOOTHING)
        self.counts.copy_(torch.where(replaced[:, 0], at_the_edge, self.counts))
        self.sums.copy_(torch.where(replaced, fresh * at_the_edge, self.sums))
