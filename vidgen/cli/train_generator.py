"""`vidgen train-generator`: what `python pipelines/train.py` does, as a command."""

from vidgen.training import GeneratorRun as Command
from vidgen.training import train_generator

__all__ = ["Command", "run"]


def run(command: Command) -> None:
    """Train; errors are for the user."""
    print(f"wrote {train_generator(command)}")
