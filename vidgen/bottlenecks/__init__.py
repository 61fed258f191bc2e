"""KL, VQ, FSQ…: one slot, one file each, listed once in `BOTTLENECKS`."""

import inspect
from typing import Any

from vidgen.bottlenecks.base import Bottleneck, Bottlenecked
from vidgen.bottlenecks.fsq import FSQ
from vidgen.bottlenecks.kl import KL
from vidgen.bottlenecks.vq import VQ

BOTTLENECKS: dict[str, type[Bottleneck]] = {"kl": KL, "vq": VQ, "fsq": FSQ}

__all__ = ["BOTTLENECKS", "FSQ", "KL", "VQ", "Bottleneck", "Bottlenecked", "build_bottleneck"]


def build_bottleneck(name: str, options: dict[str, Any]) -> Bottleneck:
    """The bottleneck called `name`, with the options of its constructor."""
    if name not in BOTTLENECKS:
        raise ValueError(f"unknown bottleneck {name!r}; one of {', '.join(BOTTLENECKS)}")
    accepted = list(inspect.signature(BOTTLENECKS[name]).parameters)
    unknown = [option for option in options if option not in accepted]
    if unknown:
        raise ValueError(f"bottleneck {name!r} has no option {', '.join(unknown)}; it takes {', '.join(accepted)}")
    return BOTTLENECKS[name](**options)
