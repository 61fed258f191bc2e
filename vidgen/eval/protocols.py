"""All named protocols: `list_protocols()`, and `get_protocol(name)` with the nearest names for a mistyped one."""

import difflib
from types import MappingProxyType
from typing import TypeVar

from vidgen.eval.frechet_protocols import FRECHET_PROTOCOLS
from vidgen.eval.protocol import FeatureProtocol, Protocol, ReconstructionProtocol
from vidgen.eval.recon_protocols import RECONSTRUCTION_PROTOCOLS

PROTOCOLS: MappingProxyType[str, Protocol] = MappingProxyType(
    {protocol.name: protocol for protocol in (*RECONSTRUCTION_PROTOCOLS, *FRECHET_PROTOCOLS)}
)
USES: dict[type[Protocol], str] = {
    ReconstructionProtocol: "score reconstructions (vidgen eval recon)",
    FeatureProtocol: "compare sets of videos (vidgen eval fvd, fid, kvd, distance)",
}
AnyProtocol = TypeVar("AnyProtocol", bound=Protocol)


def list_protocols(kind: type[AnyProtocol] = Protocol) -> list[AnyProtocol]:
    """The presets of one kind (all of them without), in the order of their tables."""
    return [protocol for protocol in PROTOCOLS.values() if isinstance(protocol, kind)]


def get_protocol(name: str, kind: type[AnyProtocol] = Protocol) -> AnyProtocol:
    """The preset called `name`; ValueError with the nearest names when there is none of that kind."""
    names = [protocol.name for protocol in list_protocols(kind)]
    found = PROTOCOLS.get(name)
    if isinstance(found, kind):
        return found
    if found is not None:
        raise ValueError(
            f"protocol {name} is to {USES[type(found)]}, and what is wanted is one to {USES[kind]}: {', '.join(names)}"
        )
    nearest = difflib.get_close_matches(name, names, n=3, cutoff=0.3)
    advice = f"did you mean {' or '.join(nearest)}?" if nearest else f"there are {', '.join(names)}"
    raise ValueError(f"there is no protocol called {name!r}; {advice}")
