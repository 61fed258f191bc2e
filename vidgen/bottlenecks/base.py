"""The slot between encoder and decoder: what every bottleneck takes, gives and reports."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from torch import Tensor, nn

from vidgen.nn.random import Generators


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
    """

    in_channels: int
    channels: int
    codebooks: tuple[int, ...] = ()

    @abstractmethod
    def forward(self, features: Tensor, *, sample: bool = False, generators: Generators | None = None) -> Bottlenecked:
        """`b n in_channels -> Bottlenecked`; `sample` draws from the posterior of stochastic bottlenecks."""

    def lookup(self, ids: Tensor) -> Tensor:
        """`b n q -> b n c`: the vectors that `ids` stand for."""
        raise ValueError(f"{type(self).__name__} is continuous and has no ids; decode its tokens instead")

    def nearest(self, vectors: Tensor) -> Tensor:
        """`b n c -> b n q`: ids of the codes nearest to `vectors`, e.g. those that a flow generator made."""
        raise ValueError(f"{type(self).__name__} is continuous and has no ids; decode its tokens instead")
