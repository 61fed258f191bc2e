"""`vidgen eval distance`: distances between two feature files, without reading a video again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from vidgen.cli.distances import show


@dataclass(frozen=True, kw_only=True)
class Command:
    """Compare two files of `vidgen eval features` that were made under the same conditions.

    Example: vidgen eval distance clips.safetensors samples.safetensors --metric fvd,kvd,fvd_inf
    """

    real: Annotated[Positional[Path], arg(metavar="REAL")]
    """Features of the real videos."""
    fake: Annotated[Positional[Path], arg(metavar="FAKE")]
    """Features of the generated videos."""
    metric: str = "fvd,fvd_inf,kvd"
    """Names with commas between: fvd, fid or fd; kvd, kid or kd; fvd_inf; jedi."""
    ddof: Literal[0, 1] = 1
    """Divide the covariance by n - ddof."""
    seed: int = 0
    """Draws the subsets."""
    repeats: int = 20
    """Subsets that the interval is drawn from."""
    allow_small_n: bool = False
    """Accept fewer rows than features."""
    output: Annotated[Path | None, arg(aliases=["-o"], metavar="FILE")] = None
    """Where to write the result as JSON."""


def run(command: Command) -> None:
    """Do it; errors are for the user."""
    from vidgen.eval.distance import measure_distance
    from vidgen.eval.features import FeatureSet

    report = measure_distance(
        FeatureSet.load(command.real),
        FeatureSet.load(command.fake),
        metrics=tuple(name.strip() for name in command.metric.split(",")),
        ddof=command.ddof,
        allow_small_n=command.allow_small_n,
        seed=command.seed,
        repeats=command.repeats,
    )
    show(report, command.output)
