"""`vidgen kernels explain`: every pattern can be asked about, its map is right, and useless options are refused."""

from itertools import takewhile
from pathlib import Path

import pytest
import torch
from PIL import Image

from vidgen.cli import main
from vidgen.cli.kernels_explain import MIXED, SHADES, Command, Pattern, build, text_map
from vidgen.kernels import AttentionSpec

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = {
    "swin3d": {"window": (2, 4, 4), "shifted": True},
    "swapped_window": {"window": (2, 4, 4)},
    "neighborhood": {"window": (3, 3, 3), "causal": True},
    "dilated_neighborhood": {"window": (1, 3, 3), "dilation": (1, 2, 2)},
    "sliding_tile": {"window": (4, 12, 12), "tile": (4, 4, 4)},
    "frame_causal": {"group": 2},
    "frame_causal_window": {"past_frames": 2, "sink_frames": 1},
}


@pytest.mark.parametrize("pattern", Pattern.__args__)
def test_every_pattern_is_built_by_its_constructor(pattern: str) -> None:
    spec = build(Command(pattern=pattern, grid=(4, 16, 16), **OPTIONS.get(pattern, {})))
    assert isinstance(spec, AttentionSpec) and spec.grid == (4, 16, 16)


def test_it_prints_backend_reasons_cost_and_map_and_writes_the_picture(tmp_path, capsys) -> None:
    words = "kernels explain frame_causal --grid 8 16 16 --heads 12 --head-dim 128 --prefix 5 -o"
    assert main([*words.split(), str(tmp_path / "map.png")]) == 0
    said = capsys.readouterr().out
    for part in ("2053 queries", "GFLOP forward", "backend triton", "  flex: ", "17 x 17 blocks of 128", SHADES[2] * 8):
        assert part in said
    picture = Image.open(tmp_path / "map.png")
    assert picture.size[0] == picture.size[1] >= 512
    assert len(picture.getcolors()) == 3


def test_the_example_in_the_documentation_is_what_the_command_prints(capsys) -> None:
    lines = (ROOT / "docs" / "kernels.md").read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("    $ vidgen kernels explain "))
    block = list(takewhile(lambda line: line.startswith("    "), lines[first:]))
    assert main(block[0].removeprefix("    $ vidgen ").split()) == 0
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert [line.removeprefix("    ") for line in block[1:]] == printed


def test_heads_of_keys_that_queries_share_are_told_to_the_backends(capsys) -> None:
    words = "kernels explain full --grid 2 8 8 --heads 8 --device cpu"
    assert main([*words.split(), "--kv-heads", "2"]) == 0
    assert "matmul: " in capsys.readouterr().out
    assert main([*words.split(), "--kv-heads", "3"]) == 2
    assert "a divisor of q's 8; got 3 and 3, use 2" in capsys.readouterr().err


def test_a_mark_for_several_blocks_tells_those_with_a_mask_from_whole_ones_beside_skipped_ones() -> None:
    seen = torch.zeros(96, 96, dtype=torch.uint8)
    seen[:48] = 2
    seen[50] = 2
    seen[52] = 1
    lines = text_map(seen, 2)
    assert len(lines) == 48 and lines[0] == SHADES[2] * 96 and lines[47] == ""
    assert lines[25] == MIXED * 96 and lines[26] == SHADES[1] * 96


def test_blocks_none_of_which_has_a_mask_are_not_drawn_as_if_they_had(capsys) -> None:
    words = "kernels explain sliding_tile --grid 30 48 80 --window 18 24 24 --tile 6 8 8 --heads 24 --head-dim 128"
    assert main(words.split()) == 0
    _, _, drawn = capsys.readouterr().out.partition(" full, 0 with a mask")
    *marks, legend = drawn.splitlines()
    assert SHADES[1] not in "".join(marks) and MIXED in "".join(marks)
    assert f"{MIXED} some seen whole and some skipped" in legend


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("neighborhood", "neighborhood needs --window"),
        ("frame_causal --window 3 3 3", "--window does nothing for frame_causal; it takes --prefix, --group"),
        ("neighborhood --window 9 3 3", "use at most 4"),
        ("full -o map.jpg", "name the file map.png, not map.jpg"),
    ],
)
def test_mistakes_end_in_one_line(words: str, message: str, capsys) -> None:
    assert main(["kernels", "explain", *words.split(), "--grid", "4", "16", "16"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
