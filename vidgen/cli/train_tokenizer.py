"""`vidgen train-tokenizer`: what `python tokenizers/train.py` does, as a command."""

from vidgen.training import TokenizerRun as Command
from vidgen.training import train_tokenizer

__all__ = ["Command", "run"]


def run(command: Command) -> None:
    """Train; errors are for the user."""
    print(f"wrote {train_tokenizer(command)}")
