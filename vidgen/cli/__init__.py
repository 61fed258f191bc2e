"""The `vidgen` command: find the sub-command, import its file alone, and end every user mistake in one line."""

import difflib
import importlib
import importlib.metadata
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from vidgen.cli.arguments import parsed


class Entry(NamedTuple):
    """A sub-command: the words that call it, the file that defines its `Command` and `run`, and what it does."""

    words: str
    module: str
    summary: str


ENTRIES = (
    Entry("generate", "vidgen.cli.generate", "make a video from a prompt"),
    Entry("reconstruct", "vidgen.cli.reconstruct", "send a clip through a tokenizer and back"),
    Entry("tokenize", "vidgen.cli.tokenize", "write the tokens of every clip in a folder"),
    Entry("detokenize", "vidgen.cli.detokenize", "make videos of such tokens again"),
    Entry("eval recon", "vidgen.cli.eval_recon", "score tokenizers on clips: quality, size, speed"),
    Entry("eval rd", "vidgen.cli.eval_rd", "quality over bits: tokenizers beside x264, x265, AV1 and VP9"),
    Entry("eval generation", "vidgen.cli.eval_generation", "score generators: prompts obeyed, motion, variety"),
    Entry("eval fvd", "vidgen.cli.eval_fvd", "compare two folders of videos by FVD, under a published protocol"),
    Entry("eval fid", "vidgen.cli.eval_fid", "compare the frames of two folders by FID"),
    Entry("eval kvd", "vidgen.cli.eval_kvd", "compare two small folders of videos by KVD"),
    Entry("eval features", "vidgen.cli.eval_features", "keep the features of a folder of videos"),
    Entry("eval distance", "vidgen.cli.eval_distance", "compare two feature files"),
    Entry("eval compare", "vidgen.cli.eval_compare", "two results side by side, if their conditions are equal"),
    Entry("eval doctor", "vidgen.cli.eval_doctor", "which weights, codecs, devices and packages are here"),
    Entry("eval list-protocols", "vidgen.cli.eval_list_protocols", "the named conditions behind every score"),
    Entry("train-tokenizer", "vidgen.cli.train_tokenizer", "train a tokenizer on your clips or on the shapes world"),
    Entry("train-generator", "vidgen.cli.train_generator", "train a generator on the tokens of a tokenizer"),
    Entry("train-matcher", "vidgen.cli.train_matcher", "train a network that helps a pipeline choose"),
    Entry("kernels explain", "vidgen.cli.kernels_explain", "which attention backend a pattern gets, why, at what cost"),
    Entry("models", "vidgen.cli.models", "list the built-in models, or the presets to train from"),
)
USAGE = "usage: vidgen COMMAND …"
FOOTER = "`vidgen COMMAND --help` explains a command; with --debug an error shows where it came from."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `vidgen` with `arguments` (default: those of the process) and return the exit code.

    Returns:
        0 when all went well, 2 after a mistake that the user can mend, 130 when interrupted, 141 when whoever read the
        output stopped (`| head`). Anything else is an error of vidgen's own and leaves a traceback.
    """
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()  # here, where a closed pipe can still be caught
    except BrokenPipeError:
        # What is left in the buffer goes nowhere, or Python would complain of the pipe once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _run(arguments: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [word for word in given if word != "--debug"]
    warnings.showwarning = _show_warning_in_one_line
    try:
        if not given or given[0] in ("-h", "--help", "help"):
            print(overview())
            return 0
        if given[0] in ("-V", "--version", "version"):
            print(f"vidgen {importlib.metadata.version('vidgen')}")
            return 0
        entry, rest = find(given)
        module = importlib.import_module(entry.module)
        module.run(parsed(entry.words, module.Command, rest))
        return 0
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        if debug:
            raise
        print(f"vidgen: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if debug:
            raise
        print("vidgen: interrupted", file=sys.stderr)
        return 130


def overview() -> str:
    """What `vidgen --help` prints."""
    width = max(len(entry.words) for entry in ENTRIES)
    lines = [f"  {entry.words:<{width}}  {entry.summary}" for entry in ENTRIES]
    return "\n".join([USAGE, "", "Tokenize, generate and score videos.", "", *lines, "", FOOTER])


def find(given: Sequence[str]) -> tuple[Entry, list[str]]:
    """The entry that the first words of `given` name, and the arguments after it; ValueError when there is none."""
    for entry in ENTRIES:
        words = entry.words.split()
        if list(given[: len(words)]) == words:
            return entry, list(given[len(words) :])
    names = [entry.words for entry in ENTRIES]
    continued = [name for name in names if name.startswith(f"{given[0]} ")]
    if continued:
        raise ValueError(f"`vidgen {given[0]}` needs one more word: {', '.join(continued)}")
    nearest = difflib.get_close_matches(given[0], names, n=3, cutoff=0.5)
    raise ValueError(
        f"there is no command {given[0]!r}; {'nearest' if nearest else 'there are'}: {', '.join(nearest or names)}"
    )


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks; system errors name the file first."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fspath(error.filename)}: {error.strerror.lower()}"
    return " ".join(str(error).split()) or type(error).__name__


def _show_warning_in_one_line(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"vidgen: warning: {one_line(message)}", file=sys.stderr)
