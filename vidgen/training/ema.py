"""The moving average of a model's weights, which is what gets validated and exported."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """Average of the trained parameters; buffers are not averaged, the live ones are used.

    The decay grows from 0.1 to `decay` as (1 + n) / (10 + n), so that early averages forget the initial weights.
    """

    def __init__(self, module: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.parameters = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        self.averages = {name: weight.detach().clone() for name, weight in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.decay > 0 else 0.0
        weights = [weight.detach() for weight in self.parameters.values()]
        torch._foreach_lerp_(list(self.averages.values()), weights, 1 - decay)
        self.updates += 1

    @torch.no_grad()
    def switch(self) -> None:
        """Training goes on from the averages (Switch EMA, arXiv 2402.09240)."""
        torch._foreach_copy_([weight.detach() for weight in self.parameters.values()], list(self.averages.values()))

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside, the module has the averages as its parameters."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, weight in self.parameters.items():
            weight.data, self.averages[name] = self.averages[name], weight.data

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.averages)

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor], *, updates: int) -> None:
        for name, average in self.averages.items():
            average.copy_(state[name])
        self.updates = updates
