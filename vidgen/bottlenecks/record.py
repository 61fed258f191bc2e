"""What went through the bottlenecks of a model during a forward, for those who watch or judge it from outside."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from vidgen.bottlenecks.base import Bottleneck, Bottlenecked

Passage = tuple[Bottleneck, Bottlenecked]


@contextmanager
def recorded_bottlenecks(model: nn.Module) -> Iterator[list[Passage]]:
    """Inside, the list fills with every result of every bottleneck, in order, with its gradients."""
    passages: list[Passage] = []

    def record(module: nn.Module, _: object, result: Bottlenecked) -> None:
        assert isinstance(module, Bottleneck)
        passages.append((module, result))

    handles = [bottleneck.register_forward_hook(record) for bottleneck in outermost_bottlenecks(model)]
    try:
        yield passages
    finally:
        for handle in handles:
            handle.remove()


def outermost_bottlenecks(model: nn.Module) -> list[Bottleneck]:
    """The bottlenecks of a model, without the quantizers inside a composed one."""
    found: list[Bottleneck] = []
    inside: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, Bottleneck) and module not in inside:
            inside.update(module.modules())
            found.append(module)
    return found
