"""KL, VQ, FSQ…: one slot, one file each, listed once in `BOTTLENECKS`."""

import inspect
import math
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from vidgen.bottlenecks.adacode import AdaCode
from vidgen.bottlenecks.ae import AE
from vidgen.bottlenecks.base import Bottleneck, Bottlenecked, Quantizer
from vidgen.bottlenecks.bsq import BSQ
from vidgen.bottlenecks.fsq import FSQ
from vidgen.bottlenecks.gumbel import Gumbel
from vidgen.bottlenecks.joint_vq import JointVQ
from vidgen.bottlenecks.kl import KL
from vidgen.bottlenecks.lfq import LFQ
from vidgen.bottlenecks.product import Product
from vidgen.bottlenecks.residual import Residual
from vidgen.bottlenecks.simvq import SimVQ
from vidgen.bottlenecks.stochastic_vq import StochasticVQ
from vidgen.bottlenecks.vq import VQ

BOTTLENECKS: dict[str, type[Bottleneck]] = {
    "kl": KL,
    "ae": AE,
    "vq": VQ,
    "simvq": SimVQ,
    "stochastic-vq": StochasticVQ,
    "joint-vq": JointVQ,
    "gumbel": Gumbel,
    "adacode": AdaCode,
    "fsq": FSQ,
    "lfq": LFQ,
    "bsq": BSQ,
    "residual": Residual,
    "product": Product,
}

__all__ = [
    "AE",
    "BOTTLENECKS",
    "BSQ",
    "FSQ",
    "KL",
    "LFQ",
    "VQ",
    "AdaCode",
    "Bottleneck",
    "Bottlenecked",
    "Gumbel",
    "JointVQ",
    "Product",
    "Quantizer",
    "Residual",
    "SimVQ",
    "StochasticVQ",
    "build_bottleneck",
]


def build_bottleneck(name: str, options: dict[str, Any]) -> Bottleneck:
    """The bottleneck called `name`, with the options of its constructor."""
    if name not in BOTTLENECKS:
        raise ValueError(f"unknown bottleneck {name!r}; one of {', '.join(BOTTLENECKS)}")
    accepted = list(inspect.signature(BOTTLENECKS[name]).parameters)
    unknown = [option for option in options if option not in accepted]
    if unknown:
        raise ValueError(f"bottleneck {name!r} has no option {', '.join(unknown)}; it takes {', '.join(accepted)}")
    expected = get_type_hints(BOTTLENECKS[name].__init__)
    for option, value in options.items():
        if not fits(value, expected[option]):
            kind = getattr(expected[option], "__name__", expected[option])
            raise ValueError(f"the {option} of bottleneck {name!r} is of type {kind}; got {value!r}")
    return BOTTLENECKS[name](**options)


def fits(value: Any, kind: Any) -> bool:
    """Whether a value from JSON or Python is of this kind: lists are tuples, whole numbers are floats, NaN is none."""
    if get_origin(kind) is tuple:
        return isinstance(value, list | tuple) and all(fits(entry, get_args(kind)[0]) for entry in value)
    if isinstance(kind, UnionType):
        return any(fits(value, one) for one in get_args(kind))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    return isinstance(value, get_origin(kind) or kind) and (kind is bool or not isinstance(value, bool))
