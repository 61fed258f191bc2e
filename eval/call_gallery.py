"""The pictures of calls in pipelines/README.md: runs the code of two sections and each call of their tables.

    python eval/call_gallery.py [--only "timeline" …]

The picture in a row, docs/images/calls/NAME.png, is what the call in that row gives, nine frames evenly spaced. Seeds
are the first ones tried. The second section's models are not built in: it says how to train them.
"""

import argparse
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gallery import ROOT, strip
from PIL import Image

SECTIONS = ("## Beyond one prompt", "## A drawing or a picture beside the prompt")
SEED = 5
STRIP_FRAMES = 9


class Call(NamedTuple):
    """A row of the table."""

    task: str
    code: str
    picture: Path


def section(title: str) -> str:
    return (ROOT / "pipelines" / "README.md").read_text().split(title)[1].split("\n## ")[0]


def calls(text: str) -> list[Call]:
    """The rows of a section's table."""
    rows = re.findall(r"^\| ([^|]+) \| `(.+)` \| !\[\]\(\.\./(.+)\) \|$", text, re.MULTILINE)
    return [Call(task, code, ROOT / picture) for task, code, picture in rows]


def draw(call: Call, names: dict[str, Any]) -> None:
    """Make the picture of a call."""
    torch.manual_seed(SEED)
    names["seed"].manual_seed(SEED)
    frames = eval(call.code, names).frames[0]  # our own documentation
    call.picture.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(strip(np.stack([np.asarray(frame) for frame in frames]), STRIP_FRAMES)).save(call.picture)


def main() -> None:
    texts = [section(title) for title in SECTIONS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = [call.task for text in texts for call in calls(text)]
    parser.add_argument("--only", nargs="*", choices=tasks, default=tasks, help="rows to draw")
    only = parser.parse_args().only
    names: dict[str, Any] = {}
    for text in texts:
        wanted = [call for call in calls(text) if call.task in only]
        if wanted:
            exec(text.split("```python\n")[1].split("```")[0], names)
        for call in wanted:
            draw(call, names)
            print(call.task, call.picture.relative_to(ROOT), flush=True)


if __name__ == "__main__":
    main()
