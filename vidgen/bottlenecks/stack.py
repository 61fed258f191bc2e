"""The quantizers inside a composed one: several of one kind, built from its name and options."""

from typing import Any

from torch import nn

from vidgen.bottlenecks.base import Quantizer


class Stack(Quantizer):
    """A quantizer made of `count` quantizers of the kind `inner`, each with its own codes and `options`."""

    def __init__(self, inner: str, options: dict[str, Any] | None, count: int) -> None:
        from vidgen.bottlenecks import build_bottleneck  # the table lists the stacks too

        super().__init__()
        name = type(self).__name__
        if count < 2:
            raise ValueError(f"{name} needs a count of at least 2 quantizers, got {count}; use {inner} alone")
        layers = []
        for _ in range(count):
            layer = build_bottleneck(inner, options or {})
            if not isinstance(layer, Quantizer):
                raise ValueError(f"{name} cannot be made of {inner!r}; use a quantizer such as vq, fsq or lfq inside")
            layers.append(layer)
        self.layers = nn.ModuleList(layers)
        self.codebooks = tuple(size for layer in layers for size in layer.codebooks)
        of_a_layer = len(layers[0].codebooks)
        self.fixed = tuple(of_a_layer * number + fixed for number in range(count) for fixed in layers[0].fixed)

    @property
    def quantizers(self) -> list[Quantizer]:
        return [layer for layer in self.layers if isinstance(layer, Quantizer)]
