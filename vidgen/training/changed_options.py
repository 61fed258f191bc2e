"""Options of a preset that a run changes: `--set NAME=VALUE`, without a preset of its own for every try."""

import difflib
import inspect
import json
import re
from collections.abc import Iterable
from typing import Any

_WORD = re.compile(r"[A-Za-z][\w-]*")
_OF_PARTS = ("latent_spec", "text_width")  # the tokenizer and the text encoder say these


def changed_options(model: type, settings: Iterable[str]) -> dict[str, Any]:
    """What `NAME=VALUE` settings say, as constructor arguments of `model`.

    A value is JSON (`10`, `[64, 128]`, `{"channels": 8}`, `true`) or a plain word (`kl`).

    Raises:
        ValueError: a setting has another form, names no argument of the model or one of its parts decides.
    """
    known = [name for name in inspect.signature(model).parameters if name not in _OF_PARTS]
    options = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--set takes NAME=VALUE, such as layers=10; got {setting!r}")
        if name not in known:
            nearest = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known)
            raise ValueError(f"--set {setting}: {model.__name__} has no option {name!r}; nearest: {nearest}")
        options[name] = _read(value, setting)
    return options


def _read(value: str, setting: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        if _WORD.fullmatch(value) and value not in ("True", "False", "None"):
            return value
        raise ValueError(f"--set {setting}: a value is JSON (10, [4, 8, 8], true, null) or a plain word") from None
