"""`vidgen eval compare`: two results side by side, or the condition in which they are not comparable."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass(frozen=True, kw_only=True)
class Command:
    """Compare two results that `vidgen eval …` wrote.

    Refuses results of different protocols or different clips, and says which condition differs. Differences of
    reconstruction scores are paired by clip and come with an interval.

    Example: vidgen eval compare monday.json tuesday.json
    """

    first: Annotated[Positional[Path], arg(metavar="A.json")]
    """A result."""
    second: Annotated[Positional[Path], arg(metavar="B.json")]
    """Another one; differences are B minus A."""
    resamples: int = 2000
    """Draws of the bootstrap behind the intervals."""


def run(command: Command) -> None:
    """Do it; errors are for the user."""
    from vidgen.cli.tables import print_whole
    from vidgen.eval.bootstrap import Bootstrap
    from vidgen.eval.compare import compare, read_result

    settings = Bootstrap(resamples=command.resamples)
    print_whole(compare(read_result(command.first), read_result(command.second), settings=settings))
