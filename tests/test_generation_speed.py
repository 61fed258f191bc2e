"""Does the table of generation speeds set a public decoder up like ours, and compare those that do the same work?"""

import importlib.util
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

GPT = """
from dataclasses import dataclass
from torch import nn

@dataclass
class ModelArgs:
    dim: int
    n_layer: int
    n_head: int
    model_type: str
    caption_dim: int
    cls_token_num: int
    vocab_size: int
    block_size: int

class Transformer(nn.Linear):
    def __init__(self, config):
        super().__init__(2, 3)
        self.config = config
"""
GENERATE = """
def generate(model, cond, max_new_tokens, cfg_scale):
    return model.config, tuple(cond.shape), max_new_tokens, cfg_scale
"""


@pytest.fixture(scope="module")
def speed(repository: Path) -> Any:
    """The recipe as a module."""
    described = importlib.util.spec_from_file_location("generation_speed", repository / "eval" / "generation_speed.py")
    assert described is not None and described.loader is not None
    module = importlib.util.module_from_spec(described)
    sys.modules["generation_speed"] = module
    described.loader.exec_module(module)
    return module


def test_a_folder_that_is_no_checkout_of_llamagen_is_refused(speed, tmp_path):
    with pytest.raises(
        ValueError, match=r"holds no autoregressive/models/gpt\.py; give the folder that git clone made"
    ):
        speed.Settings(output=tmp_path / "speed.csv", llamagen=tmp_path)


def test_the_public_decoder_has_the_shape_of_ours(speed, tmp_path, monkeypatch):
    models = tmp_path / "autoregressive" / "models"
    models.mkdir(parents=True)
    (models / "gpt.py").write_text(GPT)
    (models / "generate.py").write_text(GENERATE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    settings = speed.Settings(output=tmp_path / "speed.csv", llamagen=tmp_path, width=64, layers=2, heads=2, side=2)
    network, call = speed.decoder("llamagen", 5.0, settings)
    ours, _ = speed.decoder("vidgen", 5.0, settings)
    config, condition, tokens, guidance = call()
    assert not network.training
    assert (config.dim, config.n_layer, config.n_head) == (64, 2, 2)
    assert (tokens, guidance, config.block_size) == (16, 5.0, 16)
    assert config.vocab_size == sum(ours.proj_out.digits.sizes) == 8192
    states = ours.empty_caches(1, tokens, states=speed.CAPTION - 1).groups.shape[1] - tokens
    assert condition == (1, config.cls_token_num, config.caption_dim) == (1, states, ours.config.text_width)


def test_ratios_compare_those_that_do_the_same_work(speed):
    rows = [
        {"name": "vidgen", "work": "decode", "seconds": 3.0},
        {"name": "llamagen", "work": "decode", "seconds": 4.0},
        {"name": "masked-12", "work": "sample", "seconds": 9.0},
    ]
    ours, theirs, masked = speed.with_ratios(rows)
    assert (ours["peer"], ours["times_seconds_of_peer"]) == ("llamagen", 0.75)
    assert theirs["times_seconds_of_peer"] is None
    assert ours["times_faster_than_slowest"] == 1.33
    assert masked["peer"] is None and masked["times_seconds_of_peer"] is None


def test_rows_with_a_peer_are_measured_in_turns_and_the_fastest_counts(speed, tmp_path, monkeypatch, capsys):
    times = iter([5.0, 3.0, 4.0, 6.0])
    monkeypatch.setattr(speed, "measure", lambda name, work, _: {"name": name, "work": work, "seconds": next(times)})
    monkeypatch.setattr(speed, "ProcessPoolExecutor", lambda **_: InThisProcess())
    settings = speed.Settings(output=tmp_path / "speed.csv")
    rows = speed.measured([("vidgen-interleaved", "forward"), ("latte", "forward")], 2, settings)
    printed = [line.split(",")[0] for line in capsys.readouterr().out.splitlines()]
    assert printed == ["name vidgen-interleaved", "name latte"] * 2
    assert [(row["name"], row["seconds"]) for row in rows] == [("vidgen-interleaved", 4.0), ("latte", 3.0)]


def test_ours_and_the_public_networks_have_one_structure(speed, tmp_path):
    settings = speed.Settings(output=tmp_path / "speed.csv", side=4)
    weights = {}
    for name in speed.NETWORKS:
        network, call = speed.diffusion_network(name, settings)
        call().square().mean().backward()
        weights[name] = sum(weight.numel() for weight in network.parameters())
    for name in ("vidgen-interleaved", "vidgen-joint"):
        assert 0.95 < weights[name] / weights[speed.PEERS[name]] < 1.05


def test_what_takes_long_is_measured_once(speed, tmp_path, monkeypatch):
    clock = iter(range(0, 1000, 30))
    monkeypatch.setattr(speed.time, "process_time", lambda: next(clock))
    calls = []
    assert speed.seconds(lambda: calls.append(1), speed.Settings(output=tmp_path / "speed.csv")) == 30
    assert len(calls) == 1


class InThisProcess:
    """Stands in for a pool of processes."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def submit(self, function, *arguments):
        done = Future()
        done.set_result(function(*arguments))
        return done
