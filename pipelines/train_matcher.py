"""Train a judge of videos for pipelines: `python pipelines/train_matcher.py PRESET --output-dir DIR`."""

import sys

import tyro

from vidgen.training import MatcherRun


def main() -> int:
    """Read the command line, train, say where the matcher is; 2 after a mistake that the user can mend."""
    try:
        run = tyro.cli(MatcherRun, description=__doc__)
        from vidgen.training import train_matcher  # not before help is given: it takes seconds

        folder = train_matcher(run)
    except ValueError as error:
        print(f"pipelines/train_matcher.py: {error}", file=sys.stderr)
        return 2
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
