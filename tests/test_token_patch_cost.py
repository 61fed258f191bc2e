"""Does the table of what fewer tokens save compare what it says?"""

import csv
import sys

import pytest
from recipe_module import recipe_module


@pytest.mark.slow
def test_each_network_is_measured_with_320_tokens_and_with_80(monkeypatch, tmp_path):
    cost = recipe_module("eval/token_patch_cost.py")
    tokens = [preset.tokenizer_preset.build().spec.num_tokens((17, 64, 64)) for preset in cost.variants().values()]
    assert tokens == [320, 80, 80] * 2
    monkeypatch.setattr(sys, "argv", ["x", "--batch-size", "1", "--rounds", "1", "-o", str(tmp_path / "cost.csv")])
    cost.main()
    rows = list(csv.DictReader((tmp_path / "cost.csv").read_text().splitlines()))
    assert [row["network"] for row in rows] == list(cost.variants())
    assert all(float(row["cpu_seconds"]) > 0 for row in rows)
