"""The slot between encoder and decoder: what every bottleneck takes, gives and reports."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vidgen.nn.random import Generators, rand


@dataclass
class Bottlenecked:
    """Result of a bottleneck.

    Args:
        vectors: `b n c`, what the decoder gets.
        ids: `b n q` long for discrete bottlenecks, else `None`.
        losses: weighted terms to add to the tokenizer's loss; empty outside training.
    """

    vectors: Tensor
    ids: Tensor | None
    losses: dict[str, Tensor] = field(default_factory=dict)


class Bottleneck(nn.Module, ABC):
    """Turns encoder features into tokens.

    Attributes:
        in_channels: channels that the encoder must give.
        channels: channels of the vectors that the decoder gets.
        codebooks: size of each codebook; `()` = continuous.
        fixed: which codebooks are no codes that learn, such as steps of a number, and cannot collapse.
    """

    in_channels: int
    channels: int
    codebooks: tuple[int, ...] = ()
    fixed: tuple[int, ...] = ()

    @abstractmethod
    def forward(self, features: Tensor, *, sample: bool = False, generators: Generators | None = None) -> Bottlenecked:
        """`b n in_channels -> Bottlenecked`; `sample` draws from the posterior of stochastic bottlenecks.

        `torch.compile` makes one graph of it where nothing is drawn from generators and no k-means is asked for.
        """

    def lookup(self, ids: Tensor) -> Tensor:
        """`b n q -> b n c`: the vectors that `ids` stand for."""
        raise ValueError(f"{type(self).__name__} is continuous and has no ids; decode its tokens instead")

    def nearest(self, vectors: Tensor) -> Tensor:
        """`b n c -> b n q`: ids of the codes nearest to `vectors`, e.g. those that a flow generator made."""
        raise ValueError(f"{type(self).__name__} is continuous and has no ids; decode its tokens instead")


class Quantizer(Bottleneck):
    """A discrete bottleneck in two moves, so that quantizers can be stacked and put side by side.

    `enter` brings features to where the codes are, `quantize` picks codes. Vectors that went through ids are bit by bit
    those that came out of `quantize`: `lookup(result.ids) == result.vectors`.

    Attributes:
        distinct: no two ids stand for one vector, so that `nearest(lookup(ids)) == ids`.
        finer: how much smaller than its input is what a code leaves over, per channel or for all; 1 when unknown.
            `Residual` scales each quantizer down by it.
        unit_length: all codes have the same length, so that they cannot stand for what is left over.
        needs_gradient: it has weights that learn from the gradient of its vectors alone, not from what it is given.
        passed: vectors and their codes -> exactly the codes, with a gradient to the vectors.
    """

    distinct: bool = True
    finer: tuple[float, ...] = (1.0,)
    unit_length: bool = False
    needs_gradient: bool = False
    passed: Callable[[Tensor, Tensor], Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.passed = straight_through

    def forward(self, features: Tensor, *, sample: bool = False, generators: Generators | None = None) -> Bottlenecked:
        with torch.autocast(features.device.type, enabled=False):  # bf16 would pick other codes
            return self.quantize(self.enter(features.float()), sample=sample, generators=generators)

    def enter(self, features: Tensor) -> Tensor:
        """`b n in_channels -> b n c`: the features in the space of the codes, not yet rounded."""
        return features

    @abstractmethod
    def quantize(self, vectors: Tensor, *, sample: bool = False, generators: Generators | None = None) -> Bottlenecked:
        """Float32 `b n c` in the space of the codes -> codes, with a gradient to `vectors`.

        A codebook that keeps itself learns here, in training with gradients only: whoever encodes never moves it.
        """

    @abstractmethod
    def lookup(self, ids: Tensor) -> Tensor: ...

    @abstractmethod
    def nearest(self, vectors: Tensor) -> Tensor: ...

    @property
    def learns(self) -> bool:
        """A training step is going on."""
        return self.training and torch.is_grad_enabled()


def straight_through(vectors: Tensor, codes: Tensor) -> Tensor:
    """Exactly `codes`, with the gradient of `vectors` (Bengio et al. 2013, arXiv 1308.3432).

    The textbook's `vectors + (codes - vectors).detach()` rounds, and then differs from a lookup in the last bit.
    """
    return codes.detach() + (vectors - vectors.detach())


def rotated(vectors: Tensor, codes: Tensor) -> Tensor:
    """Exactly `codes`, with the gradient of the rotation and scaling that takes each of `vectors` to its code.

    The rotation trick (Fifty et al. 2024, arXiv 2410.06424, section 4.2): gradients keep their angle to the vector.
    """
    unit, code_unit = torch.nn.functional.normalize(vectors, dim=-1), torch.nn.functional.normalize(codes, dim=-1)
    between = torch.nn.functional.normalize(unit + code_unit, dim=-1).detach()
    unit, code_unit = unit.detach(), code_unit.detach()
    length, code_length = vectors.norm(dim=-1, keepdim=True).detach(), codes.norm(dim=-1, keepdim=True).detach()
    turned = (
        vectors
        - 2 * (vectors * between).sum(dim=-1, keepdim=True) * between
        + 2 * (vectors * unit).sum(dim=-1, keepdim=True) * code_unit
    )
    return straight_through(turned * (code_length / length.clamp(min=1e-6)), codes)


def kept_counts(vectors: Tensor, count: int, dropout: float, generators: Generators | None) -> Tensor | None:
    """`b 1 1`: how many of `count` codes in a row each clip is decoded from; None for all, as without `dropout`."""
    if not dropout:
        return None
    if generators is None:
        raise ValueError("dropping codes needs generators, one per sample")
    drawn = rand((len(vectors), 2), generators, like=vectors)
    some = 1 + (drawn[:, 1] * count).floor()
    return torch.where(drawn[:, 0] < dropout, some, float(count))[:, None, None]
