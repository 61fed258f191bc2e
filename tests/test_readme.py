"""Everything that the README says to type works."""

import re
import shlex
from pathlib import Path

import pytest

from vidgen.cli import main

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
# Training lines run as they stand but for these: the small twin, two steps, one clip to measure on.
SHORT_TRAINING = ["--tiny", "--steps", "2", "--batch-size", "2", "--validation-clips", "0"]


def blocks(language: str) -> list[str]:
    """Contents of the fenced blocks of a language; "" for blocks that name none."""
    return [
        text for name, text in re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL) if name == language
    ]


def command_lines() -> list[list[str]]:
    """The `vidgen` lines of the README as arguments."""
    lines = [line for block in blocks("") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("vidgen ")]


def test_the_first_screen_holds_the_two_commands():
    first_screen = README.splitlines()[:20]
    assert any(line.startswith("make demo") for line in first_screen)
    assert any(line.startswith("make test") for line in first_screen)


def test_the_environment_is_entered_before_the_first_command_that_lives_in_it():
    lines = README.splitlines()
    entered = next(number for number, line in enumerate(lines) if line.startswith("source .venv/bin/activate"))
    assert entered < next(number for number, line in enumerate(lines) if line.startswith(("vidgen ", "```python")))


def test_every_file_that_the_readme_links_to_exists(repository):
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (repository / link).exists()] == []


def test_the_python_blocks_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "outputs" / "circle.mp4").stat().st_size > 0


@pytest.mark.slow
def test_the_command_lines_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words in command_lines():
        short = SHORT_TRAINING if words[0].startswith("train-") else []
        short = [*short, "--others", "1"] if words[0] == "train-matcher" else short  # captions of a batch of two
        assert main(words + short) == 0, (words, capsys.readouterr().err)
    assert (tmp_path / "outputs" / "mine.mp4").stat().st_size > 0
