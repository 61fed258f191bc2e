"""`vidgen train-tokenizer`: what `python tokenizers/train.py` does, as a command."""

from vidgen.training.config import TokenizerRun as Command

__all__ = ["Command", "run"]


def run(command: Command) -> None:
    """Train; errors are for the user."""
    from vidgen.training import train_tokenizer

    print(f"wrote {train_tokenizer(command)}")
