"""Reads the arguments of a command, and says in one line what is wrong with those that cannot be read."""

import contextlib
import difflib
import io
import itertools
import re
from collections.abc import Sequence
from typing import Any

UNRECOGNISED = "Unrecognized options:"  # as tyro says it


def parsed(words: str, command: type, rest: Sequence[str]) -> Any:
    """`rest`, the arguments of `vidgen` after `words`, as a `command`.

    Raises:
        ValueError: the arguments cannot be read; names every fault, and what was probably meant.
        SystemExit: with 0, after --help.
    """
    import tyro

    prog, config = f"vidgen {words}", (tyro.conf.FlagCreatePairsOff,)
    complaint, explanation = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(command, prog=prog, args=rest, config=config)
    except SystemExit as left:
        if left.code == 0:
            raise
    missing, stray, said = _complaint(complaint.getvalue())
    if said.startswith(UNRECOGNISED):
        stray = tyro.cli(command, prog=prog, args=rest, config=config, return_unknown_args=True)[1]
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(explanation):
        tyro.cli(command, prog=prog, args=["--help"], config=config)
    faults = mistakes(rest, *_explained(explanation.getvalue()), missing=missing, stray=stray)
    said = "; ".join(faults) or said.removeprefix(f"Error parsing {command.__name__}: ")
    raise ValueError(f"{said}; see `{prog} --help`")


def mistakes(
    rest: Sequence[str], options: Sequence[str], places: Sequence[str], *, missing: Sequence[str], stray: Sequence[str]
) -> list[str]:
    """What is wrong with the arguments `rest`, a clause for each fault; none where only a value is.

    Args:
        options: those that the command has.
        places: what it calls its arguments without an option in front, such as PROMPT.
        missing: arguments that have to be given and were not.
        stray: words that belong nowhere; those after an unknown option are taken for its values.
    """
    faults = []
    for option in dict.fromkeys(word.split("=")[0] for word in rest if re.match("--[a-z]", word)):
        if option.replace("_", "-") not in options:
            place, near = option.strip("-").upper(), nearest_options(option, options)
            advice = f"; nearest: {', '.join(near)}" if near else ""
            advice = f"; {place} stands by itself, without one" if place in places else advice
            faults.append(f"there is no option {option}{advice}")
    if missing:
        faults.append(f"missing: {', '.join(missing)}")
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), stray))
    if words:
        advice = f"; put {places[0]} in quotes if it has several words" if places else ""
        faults.append(f"no option takes {', '.join(map(repr, words))}{advice}")
    elif stray and not faults:
        faults.append(f"there is no option {stray[0]}")
    return faults


def nearest_options(option: str, options: Sequence[str]) -> list[str]:
    """At most three of `options` that `option` may stand for: spelled alike, of the same words, or shortened to it."""
    wanted = option.strip("-").replace("_", "-")
    names = {known: known.rpartition(".")[2].strip("-") for known in options}
    alike = difflib.get_close_matches(wanted, names.values(), n=3, cutoff=0.7)
    words = set(wanted.split("-"))

    def likeness(known: str) -> tuple[bool, bool, float]:
        name, parts = names[known], names[known].split("-")
        is_short_for_it = name.startswith(wanted) or "".join(part[0] for part in parts if part) == wanted
        return is_short_for_it, name in alike, len(words & set(parts)) / len(words | set(parts))

    near = [known for known in sorted(options, key=lambda known: ("." in known, known)) if any(likeness(known))]
    return sorted(near, key=likeness, reverse=True)[:3]


def _explained(help_text: str) -> tuple[list[str], list[str]]:
    """The options that a help text explains, and the arguments that stand without one."""
    labels = re.findall(r"(?:^| {2})(-{1,2}[a-z].*?)(?= {2}|$)", help_text.replace("│", " "), re.MULTILINE)
    options = [option for label in labels for option in re.findall(r"(?<!\S)-{1,2}[a-z][\w.-]*", label)]
    usage = help_text.partition("\n\n")[0]
    return list(dict.fromkeys(options)), re.findall(r"(?<= )[A-Z_]+(?=\s|$)", usage)


def _complaint(box: str) -> tuple[list[str], list[str], str]:
    """What tyro said in its box: arguments that are missing, words that belong nowhere, and the rest in one line."""
    missing: list[str] = []
    stray: list[str] = []
    words: list[str] = []
    names, margin = None, 0
    for line in box.replace("│", " ").splitlines()[1:]:
        text, indent = line.strip(), len(line) - len(line.lstrip())
        if text.startswith("For full helptext"):
            break
        if text.startswith("Missing from "):
            names, margin = missing, indent
        elif text == UNRECOGNISED:
            names = stray
        elif names is not None:
            names += [text] if indent == margin + 4 else []  # further in it is explained
        elif text.strip("─-╰╯"):
            words += text.split()
        elif words:
            break
    long = [next((form for form in name.split(", ") if form.startswith("--")), name) for name in missing]
    return long, stray, " ".join(words)
