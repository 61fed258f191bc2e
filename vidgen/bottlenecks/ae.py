"""AE: the features themselves, neither noise nor codes (Cosmos' continuous tokenizer)."""

from torch import Tensor

from vidgen.bottlenecks.base import Bottleneck, Bottlenecked
from vidgen.nn.random import Generators


class AE(Bottleneck):
    """Continuous tokens of `channels` numbers without any prior; the tokenizer's statistics standardise them."""

    def __init__(self, *, channels: int = 16) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"AE needs at least 1 channel, got {channels}")
        self.channels = self.in_channels = channels

    def forward(self, features: Tensor, *, sample: bool = False, generators: Generators | None = None) -> Bottlenecked:
        return Bottlenecked(features, None)
