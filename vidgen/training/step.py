"""`TrainingStep`: the module that gets wrapped for data-parallel training, one kind per thing that is trained."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vidgen.nn.random import Generators

Batch = dict[str, Any]
"""Collated items: `video` (`b 3 t h w` in [-1, 1]), `caption` and `id` (lists of str), and `step` (int)."""


class TrainingStep(nn.Module, ABC):
    """All modules that train together; its forward is the loss.

    Data-parallel wrappers synchronise gradients only of what runs inside `forward`, so nothing is trained through
    any other method. Frozen networks that merely help are held outside the module tree.

    Args:
        freeze: parameters whose name (within this module) starts so are not trained, and their modules stay in
            evaluation mode.
    """

    def __init__(self) -> None:
        super().__init__()
        self.frozen: tuple[str, ...] = ()

    def freeze(self, prefixes: Iterable[str]) -> None:
        """Stop training the parts whose names start with one of `prefixes`; ValueError when one fits none."""
        self.frozen = tuple(prefixes)
        for prefix in self.frozen:
            names = [name for name, _ in [*self.named_modules(), *self.named_parameters()]]
            if not any(starts_with(name, prefix) for name in names):
                children = sorted({name for name in names if name.count(".") == 1})
                raise ValueError(f"nothing to freeze is called {prefix!r}; there are {', '.join(children)}")
            for name, weight in self.named_parameters():
                if starts_with(name, prefix):
                    weight.requires_grad_(False)

    def train(self, mode: bool = True) -> "TrainingStep":
        super().train(mode)
        for name, module in self.named_modules():
            if any(starts_with(name, prefix) for prefix in self.frozen):
                module.train(False)
        return self

    @abstractmethod
    def forward(self, batch: Batch, generators: Generators) -> dict[str, Tensor]:
        """Weighted loss terms; their sum is the loss. `generators` has one per sample."""

    @abstractmethod
    def evaluate(self, batch: Batch, generators: Generators) -> dict[str, Tensor]:
        """Loss terms of a validation batch, without gradients; their sum chooses the best checkpoint."""

    def measures(self) -> dict[str, float]:
        """What the steps since the last call say about the model's health, for the log and the monitor."""
        return {}

    @abstractmethod
    def samples(self, batch: Batch, generators: Generators) -> Tensor:
        """Videos `b 3 t h w` in [-1, 1] that show a person how training goes."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write the model as users load it."""


def starts_with(name: str, prefix: str) -> bool:
    """Dotted name `name` lies at or below `prefix`."""
    return name == prefix or name.startswith(prefix.rstrip(".") + ".")
