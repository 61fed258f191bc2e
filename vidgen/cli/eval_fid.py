"""`vidgen eval fid`: Fréchet inception distance between the frames of two folders of videos or images."""

from dataclasses import dataclass

from vidgen.cli.distances import DistanceOptions, run_distance


@dataclass(frozen=True, kw_only=True)
class Command(DistanceOptions):
    """Compare the frames of two folders by FID (rFID, when one holds reconstructions of the other), with KID beside it.

    Example: vidgen eval fid --real clips/ --fake reconstructions/ --inception pt_inception-2015-12-05-6726825d.pth
    """

    protocol: str = "rfid.frames"
    """Preset; `vidgen eval list-protocols` names them."""


def run(command: Command) -> None:
    """Do it; errors are for the user."""
    run_distance(command, command.protocol, ("fid", "kid"))
