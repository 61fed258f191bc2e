"""Does pipelines/README.md show calls that run, each with its picture?"""

from typing import Any

import pytest
from recipe_module import recipe_module


@pytest.fixture
def gallery() -> Any:
    """The script that makes the pictures."""
    return recipe_module("eval/call_gallery.py")


@pytest.mark.parametrize("number", [0, 1])
def test_every_call_has_a_picture(gallery, number):
    text = gallery.section(gallery.SECTIONS[number])
    calls = gallery.calls(text)
    assert len(calls) == text.count("| ![](") > 0
    for call in calls:
        compile(call.code, "README.md", "eval")
        assert call.picture.stat().st_size > 1000


@pytest.mark.slow
def test_the_calls_of_built_in_models_run_as_they_are_written(gallery):
    text = gallery.section(gallery.SECTIONS[0])
    names: dict[str, Any] = {}
    exec(compile(text.split("```python\n")[1].split("```")[0], "README.md", "exec"), names)
    for call in gallery.calls(text):
        assert len(eval(call.code, names).frames[0]) == (65 if "num_frames=65" in call.code else 17)
