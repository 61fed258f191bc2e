"""`vidgen eval fvd`: Fréchet video distance between two folders, by a published protocol."""

from dataclasses import dataclass

from vidgen.cli.distances import DistanceOptions, run_distance


@dataclass(frozen=True, kw_only=True)
class Command(DistanceOptions):
    """Compare two folders of videos by FVD, with its interval, its limit for many videos, and its noise floor.

    The protocol fixes network, clips, resizing, number of videos and estimator. `--protocol fd.squeezenet` gives a
    distance that needs no I3D weights; it is not FVD and is not called so.

    Example: vidgen eval fvd --real clips/ --fake samples/ --protocol fvd.styleganv.2048x16 --i3d i3d_pretrained_400.pt
    """

    protocol: str = "fvd.styleganv.2048x16"
    """Preset; `vidgen eval list-protocols` names them."""


def run(command: Command) -> None:
    """Do it; errors are for the user."""
    run_distance(command, command.protocol, ("fvd", "fvd_inf", "kvd"))
