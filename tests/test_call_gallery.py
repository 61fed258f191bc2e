"""Does pipelines/README.md show calls that run, each with its picture?"""

import re
from typing import Any

import pytest

SECTIONS = ("## Beyond one prompt", "## A drawing or a picture beside the prompt")


def section(repository, title: str) -> str:
    return (repository / "pipelines" / "README.md").read_text().split(title)[1].split("\n## ")[0]


def calls(text: str) -> list[tuple[str, str]]:
    """The calls of a section's table and their pictures."""
    return re.findall(r"^\| [^|]+ \| `(.+)` \| !\[\]\(\.\./(.+)\) \|$", text, re.MULTILINE)


@pytest.mark.parametrize("title", SECTIONS)
def test_every_call_has_a_picture(repository, title):
    text = section(repository, title)
    assert len(calls(text)) == text.count("| ![](") > 0
    for call, picture in calls(text):
        compile(call, "README.md", "eval")
        assert (repository / picture).stat().st_size > 1000


@pytest.mark.slow
def test_the_calls_of_built_in_models_run_as_they_are_written(repository):
    text = section(repository, SECTIONS[0])
    names: dict[str, Any] = {}
    exec(compile(text.split("```python\n")[1].split("```")[0], "README.md", "exec"), names)
    for call, _ in calls(text):
        assert len(eval(call, names).frames[0]) == (65 if "num_frames=65" in call else 17)
