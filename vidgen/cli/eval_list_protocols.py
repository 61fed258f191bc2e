"""`vidgen eval list-protocols`: the named protocols, their hashes and where their conditions were read."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Command:
    """List the protocols that scores can be computed under.

    A protocol fixes every condition that decides a number: frames, resize kernel, crop, rounding, conventions, counts.
    Its hash stands in every result, and `vidgen eval compare` refuses two results whose hashes differ.

    Example: vidgen eval list-protocols --name recon.vidtok
    """

    name: str | None = None
    """Show this protocol in full."""


def run(command: Command) -> None:
    """Do it; errors are for the user."""
    import json

    from vidgen.eval.protocols import get_protocol, list_protocols

    if command.name is not None:
        protocol = get_protocol(command.name)
        print(json.dumps(protocol.to_json() | {"note": protocol.note}, indent=1, ensure_ascii=False))
        return
    protocols = list_protocols()
    width = max(len(protocol.name) for protocol in protocols)
    for protocol in protocols:
        print(f"{protocol.name:<{width}}  {protocol.sha256[:12]}  {protocol.source}")
