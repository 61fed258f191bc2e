"""`vidgen train-generator`: what `python pipelines/train.py` does, as a command."""

from vidgen.training.config import GeneratorRun as Command

__all__ = ["Command", "run"]


def run(command: Command) -> None:
    """Train; errors are for the user."""
    from vidgen.training import train_generator

    print(f"wrote {train_generator(command)}")
