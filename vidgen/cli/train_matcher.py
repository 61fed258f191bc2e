"""`vidgen train-matcher`: what `python pipelines/train_matcher.py` does, as a command."""

from vidgen.training.config import MatcherRun as Command

__all__ = ["Command", "run"]


def run(command: Command) -> None:
    """Train; errors are for the user."""
    from vidgen.training import train_matcher

    print(f"wrote {train_matcher(command)}")
