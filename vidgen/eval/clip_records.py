"""Results clip by clip on disk, written as they come: a crash loses nothing, and another run takes up what is there."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from vidgen.eval.ranks import rank

SCHEMA = "vidgen.eval.clips/1"


class ClipRecords:
    """One line of JSON a clip, in one file a process.

    Args:
        folder: where the files lie.
        name: what is being scored, for the file's name.
        identity: all that decides the results; results of another identity are never taken up.
    """

    def __init__(self, folder: Path, name: str, *, identity: dict[str, Any]) -> None:
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.folder, self.identity = folder, identity
        self.stem = f"{re.sub(r'[^A-Za-z0-9.-]+', '_', name).strip('_')}.{digest[:12]}"
        self.path = folder / f"{self.stem}.rank{rank()}.jsonl"

    def read(self) -> dict[tuple[str, str], dict[str, Any]]:
        """What all processes have written, by clip name and content."""
        found = {}
        for path in sorted(self.folder.glob(f"{self.stem}.rank*.jsonl")):
            for record in _lines(path)[1:]:
                found[record["clip"], record["sha256"]] = record
        return found

    def open(self) -> None:
        """Make the file ready to go on; the half line that a crash left is cut off."""
        self.folder.mkdir(parents=True, exist_ok=True)
        header = {"schema": SCHEMA, "identity": self.identity}
        kept = _lines(self.path) if self.path.exists() else []
        if not kept:
            self.path.write_text(json.dumps(header) + "\n", encoding="utf-8")
        elif not self.path.read_text(encoding="utf-8").endswith("\n"):
            self.path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def append(self, record: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")


def _lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a file."""
    text = path.read_text(encoding="utf-8")
    lines = text.split("\n")[:-1]  # what follows the last line break was never finished
    try:
        return [json.loads(line) for line in lines]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to score its clips again") from error
