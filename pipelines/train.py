"""Train a generator: `python pipelines/train.py PRESET --tokenizer NAME_OR_DIR --output-dir DIR`."""

import sys

import tyro

from vidgen.training import GeneratorRun


def main() -> int:
    """Read the command line, train, say where the pipeline is; 2 after a mistake that the user can mend."""
    try:
        run = tyro.cli(GeneratorRun, description=__doc__)
        from vidgen.training import train_generator  # not before help is given: it takes seconds

        folder = train_generator(run)
    except ValueError as error:
        print(f"pipelines/train.py: {error}", file=sys.stderr)
        return 2
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
