"""Train a tokenizer: `python tokenizers/train.py PRESET --output-dir DIR`."""

import sys

import tyro

from vidgen.training import TokenizerRun


def main() -> int:
    """Read the command line, train, say where the tokenizer is; 2 after a mistake that the user can mend."""
    try:
        run = tyro.cli(TokenizerRun, description=__doc__)
        from vidgen.training import train_tokenizer  # not before help is given: it takes seconds

        folder = train_tokenizer(run)
    except ValueError as error:
        print(f"tokenizers/train.py: {error}", file=sys.stderr)
        return 2
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
