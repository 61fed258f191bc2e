"""Full attention on fewer tokens than there are, step by step of a sampling (AsymRnR, arXiv 2412.11706)."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from vidgen.kernels.token_reduction import MatchingCache, Reduction, Triple, match

Ratio = float | Callable[[int, float], float]


@dataclass(frozen=True, kw_only=True)
class TokenReduction:
    """How many tokens attention leaves out, in which blocks and at which steps, without training."""

    query: Ratio = 0.0
    """Share of the queries that get the result of a similar one: a number, or a function of the block's number and the
    noise level in [0, 1], for ratios of their own per block and step."""
    key: Ratio = 0.0
    """Share of the keys and values that are left out, likewise."""
    blocks: Collection[int] | None = None
    """Numbers of the blocks that reduce; all by default."""
    levels: tuple[float, float] = (0.0, 1.0)
    """Noise levels between which they do."""
    every: int = 5
    """Steps for which a matching of tokens is kept: similar tokens stay similar."""
    cell: Triple = (2, 2, 2)
    """Tokens along (t, h, w) of which one always stays: at most 7/8 can go in cells of 2×2×2. Text in a joint attention
    always stays."""

    def __post_init__(self) -> None:
        low, high = self.levels
        if not 0 <= low < high <= 1:
            raise ValueError(f"levels must be two noise levels, 0 <= low < high <= 1, got {self.levels}")
        for name, ratio in (("query", self.query), ("key", self.key)):
            if isinstance(ratio, float | int) and not 0 <= ratio < 1:
                raise ValueError(f"{name} is the share of tokens to leave out, at least 0 and below 1, got {ratio}")
        if self.every < 1:
            raise ValueError(f"every must be at least 1 (a new matching at every step), got {self.every}")
        if any(extent < 1 for extent in self.cell):
            raise ValueError(f"cell must have at least 1 token along each axis, got {self.cell}")

    def ratios(self, block: int, level: float) -> tuple[float, float]:
        """Of queries and of keys, in a block at a noise level."""
        if (self.blocks is not None and block not in self.blocks) or not self.levels[0] <= level <= self.levels[1]:
            return 0.0, 0.0
        query, key = (
            float(ratio) if isinstance(ratio, float | int) else ratio(block, level) for ratio in (self.query, self.key)
        )
        return query, key


class ReductionRun:
    """A reduction along one sampling, in one branch of guidance; `step` and `level` are where it stands."""

    def __init__(self, settings: TokenReduction) -> None:
        self.settings = settings
        self.cache = MatchingCache(reuse_steps=settings.every)
        self.step, self.level = 0, 1.0

    def at(self, step: int, level: float) -> "ReductionRun":
        self.step, self.level = step, level
        return self

    def in_block(self, block: int, grid: Triple) -> "ReducedAttention | None":
        """What the attention of a block does now with tokens on `grid`; `None` where it leaves nothing out."""
        query, key = self.settings.ratios(block, self.level)
        return ReducedAttention(self, block, grid, query, key) if query or key else None


@dataclass(frozen=True)
class ReducedAttention:
    """The attention of one block at one step, where every token sees every token."""

    run: ReductionRun
    block: int
    grid: Triple
    query: float
    key: float

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """`b h n d`, three times -> `b h n d`. Tokens before those of the grid (text) always stay.

        `mask`, bool or a bias on the scores, is `b 1 1 n` or `b 1 n n`.
        """
        by_query, by_key = self.reduction("query", q, self.query), self.reduction("key", v, self.key)
        q = q if by_query is None else by_query.reduce(q)
        if by_key is not None:
            k, v = by_key.reduce(k), by_key.reduce(v)
        if mask is not None:
            mask = chosen(chosen(mask, 2, by_query), 3, by_key)
        mixed = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, attn_mask=mask)
        return mixed if by_query is None else by_query.restore(mixed)

    def reduction(self, name: str, x: Tensor, ratio: float) -> Reduction | None:
        if not ratio:
            return None
        t, h, w = self.grid
        matching = self.run.cache.matching(
            (self.block, name),
            self.run.step,
            lambda: match(x, self.grid, cell=self.run.settings.cell, prefix=x.shape[2] - t * h * w),
        )
        return matching.reduction(ratio)


def chosen(mask: Tensor, axis: int, reduction: Reduction | None) -> Tensor:
    """The rows (axis 2) or columns (axis 3) of the kept tokens, for each head: `b 1 n n -> b h m n` or `b h n m`."""
    if reduction is None or mask.shape[axis] == 1:
        return mask
    batch, heads, kept = reduction.kept.shape
    mask = mask.expand(batch, heads, -1, -1)
    places = reduction.kept.unsqueeze(5 - axis)
    shape = (batch, heads, kept, mask.shape[3]) if axis == 2 else (batch, heads, mask.shape[2], kept)
    return mask.gather(axis, places.expand(shape))
