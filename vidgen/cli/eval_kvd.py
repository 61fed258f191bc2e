"""`vidgen eval kvd`: kernel video distance between two folders, the one to use for few videos."""

from dataclasses import dataclass

from vidgen.cli.distances import DistanceOptions, run_distance


@dataclass(frozen=True, kw_only=True)
class Command(DistanceOptions):
    """Compare two folders of videos by KVD: a squared maximum mean discrepancy that does not grow with fewer videos.

    JEDi's distance (another kernel, biased, times 100) in the same features stands beside it.

    Example: vidgen eval kvd --real clips/ --fake samples/ --i3d i3d_pretrained_400.pt
    """

    protocol: str = "kvd.i3d"
    """Preset; `vidgen eval list-protocols` names them."""


def run(command: Command) -> None:
    """Do it; errors are for the user."""
    run_distance(command, command.protocol, ("kvd", "jedi"))
