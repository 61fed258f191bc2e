"""Tokens of any spec to vectors: ids through tables, reals through a map, positions and known pixels on top."""

import math

import torch
from torch import Tensor, nn

from vidgen.conditioning import TokenState
from vidgen.latents import LatentSpec
from vidgen.nn.positions import positions, sine_features

LARGEST_TABLE = 2**14
SCALE = 0.5  # tokens, conditions and positions are equally loud; with quiet positions nothing spatial is ever learned


def sub_codebooks(codes: int) -> tuple[int, ...]:
    """Factors of a codebook that are small enough for a table (MAGVIT-v2's token factorisation, section 3.3)."""
    if codes <= LARGEST_TABLE:
        return (codes,)
    for first in range(math.isqrt(codes), 1, -1):
        if codes % first == 0 and codes // first <= LARGEST_TABLE:
            return (first, codes // first)
    raise ValueError(
        f"a codebook of {codes} codes does not factor into two of at most {LARGEST_TABLE}; use a power of two"
    )


class Digits:
    """Ids of a spec as digits small enough for tables and logits: codebook by codebook, most significant first.

    One set of digits serves all parts: each codebook is as large as the largest part needs.
    """

    def __init__(self, spec: LatentSpec) -> None:
        largest = [max(sizes) for sizes in zip(*(part.codebooks for part in spec.parts), strict=True)]
        self.codebooks = [sub_codebooks(codes) for codes in largest]
        self.sizes = [size for factors in self.codebooks for size in factors]

    def split(self, ids: Tensor) -> list[Tensor]:
        """`… q` to one `…` for each digit."""
        digits = []
        for index, factors in enumerate(self.codebooks):
            rest, lowest_first = ids[..., index], []
            for size in reversed(factors):
                lowest_first.append(rest % size)
                rest = rest // size
            digits += reversed(lowest_first)
        return digits

    def join(self, digits: list[Tensor]) -> Tensor:
        """The ids `… q` of digits `…`."""
        ids, remaining = [], iter(digits)
        for factors in self.codebooks:
            value = next(remaining)
            for size in factors[1:]:
                value = value * size + next(remaining)
            ids.append(value)
        return torch.stack(ids, dim=-1)

    def allowed(self, chosen: list[Tensor], limits: Tensor) -> Tensor:
        """How many values the digit after `chosen` may take for ids below `limits` (`n q` or `b n q`): `n` or `b n`."""
        begun, codebook = list(chosen), 0
        while len(begun) >= len(self.codebooks[codebook]):
            begun, codebook = begun[len(self.codebooks[codebook]) :], codebook + 1
        factors = self.codebooks[codebook]
        left = limits[..., codebook]
        for place, digit in enumerate(begun):
            left = left - digit * math.prod(factors[place + 1 :])
        unit = math.prod(factors[len(begun) + 1 :])  # ids that share this digit
        return (left + unit - 1) // unit


class TokenEmbedding(nn.Module):
    """`b n q` ids (discrete spec) or `b n c` reals (continuous spec) to `b n width`."""

    def __init__(self, spec: LatentSpec, width: int) -> None:
        super().__init__()
        self.discrete = spec.discrete
        if self.discrete:
            self.digits = Digits(spec)
            self.tables = nn.ModuleList(nn.Embedding(size, width) for size in self.digits.sizes)
            for table in self.tables:
                nn.init.normal_(table.weight, std=SCALE / math.sqrt(len(self.tables)))  # pyright: ignore
        else:
            self.from_reals = nn.Linear(spec.channels, width)
            nn.init.normal_(self.from_reals.weight, std=SCALE / math.sqrt(spec.channels))
            nn.init.zeros_(self.from_reals.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        if not self.discrete:
            return self.from_reals(tokens)
        vectors = [table(digit) for table, digit in zip(self.tables, self.digits.split(tokens), strict=True)]
        return torch.stack(vectors).sum(dim=0)


class PlaceEmbedding(nn.Module):
    """Sine features of the place plus a learned vector for the part: `n 5 -> n width`."""

    def __init__(self, spec: LatentSpec, width: int) -> None:
        super().__init__()
        self.width, self.unit = width, spec.unit
        self.parts = nn.Embedding(len(spec.parts), width)
        nn.init.zeros_(self.parts.weight)

    def forward(self, coordinates: Tensor) -> Tensor:
        features = sine_features(positions(coordinates, self.unit), self.width)
        return 2**0.5 * SCALE * features.to(self.parts.weight.dtype) + self.parts(coordinates[:, 0])


class KnownEmbedding(nn.Module):
    """The encoded condition video and the state of each token: `b n c`, `b n -> b n width` (COMMIT)."""

    def __init__(self, spec: LatentSpec, width: int) -> None:
        super().__init__()
        self.from_tokens = nn.Linear(spec.channels, width)
        nn.init.normal_(self.from_tokens.weight, std=SCALE / math.sqrt(spec.channels))
        self.states = nn.Embedding(len(TokenState), width)
        nn.init.normal_(self.states.weight, std=SCALE)

    def forward(self, tokens: Tensor, states: Tensor) -> Tensor:
        told = (states != int(TokenState.UNKNOWN)).unsqueeze(-1)
        return torch.where(told, self.from_tokens(tokens) + self.states(states), 0.0)  # all unknown = no condition


class TextProjection(nn.Module):
    """Condition states to the generator's width, with one state that is always there: "nothing was said"."""

    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(text_width, width)
        self.nothing = nn.Parameter(torch.randn(width) * SCALE)

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`b l d`, bool or bias `b l` or `b n l` -> the same with one more state in front that all tokens see."""
        projected = self.project(states)
        nothing = self.nothing.to(projected.dtype).expand(states.shape[0], 1, -1)
        always = mask.new_full((*mask.shape[:-1], 1), not mask.is_floating_point())
        return torch.cat([nothing, projected], dim=1), torch.cat([always, mask], dim=-1)
