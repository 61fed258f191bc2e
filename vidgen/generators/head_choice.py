"""Which head a generator gets, by name and by the kind of its tokens."""

from typing import Any

from vidgen.generators.depth_head import DepthHead
from vidgen.generators.heads import CategoricalHead, FlowHead, Head
from vidgen.generators.mixture_head import MixtureHead
from vidgen.latents import LatentSpec

FOR_IDS: dict[str, type[Head]] = {"auto": CategoricalHead, "depth": DepthHead}
FOR_REALS: dict[str, type[Head]] = {"auto": FlowHead, "mixture": MixtureHead}


def head_types(spec: LatentSpec) -> dict[str, type[Head]]:
    """The heads that tokens of a spec can have, by name."""
    return FOR_IDS if spec.discrete else FOR_REALS


def chosen_head(spec: LatentSpec, width: int, kind: str, options: dict[str, Any] | None = None) -> Head:
    """The head `kind` of a spec, with keyword arguments of its own; ValueError when it is none for such tokens."""
    kinds = head_types(spec)
    if kind not in kinds:
        tokens = "ids" if spec.discrete else "reals"
        raise ValueError(f"tokens that are {tokens} take a head_type of {', '.join(kinds)}, got {kind!r}")
    return kinds[kind](spec, width, **(options or {}))
