"""`vidgen train-matcher`: what `python pipelines/train_matcher.py` does, as a command."""

from vidgen.training import MatcherRun as Command
from vidgen.training import train_matcher

__all__ = ["Command", "run"]


def run(command: Command) -> None:
    """Train; errors are for the user."""
    print(f"wrote {train_matcher(command)}")
