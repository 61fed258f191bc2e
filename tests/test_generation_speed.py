"""Does the table of generation speeds set a public decoder up like ours, and compare those that do the same work?"""

import sys
from typing import Any

import pytest
import torch
from recipe_module import recipe_module

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
def speed() -> Any:
    """The recipe as a module."""
    return recipe_module("eval/generation_speed.py")


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


def test_ratios_compare_those_that_do_the_same_work(speed, tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "in_fresh_process", lambda work, *arguments: work(*arguments))
    monkeypatch.setattr(speed, "ratios", lambda name, work, settings: [0.5, 0.7, 0.75, 0.9, 4.0])
    rows = [
        {"name": "vidgen", "work": "decode", "seconds": 3.0},
        {"name": "llamagen", "work": "decode", "seconds": 4.0},
        {"name": "masked-12", "work": "sample", "seconds": 9.0},
    ]
    ours, theirs, masked = speed.against_peers(rows, speed.Settings(output=tmp_path / "speed.csv"))
    assert (ours["peer"], ours["turns"], ours["times_seconds_of_peer"]) == ("llamagen", 5, 0.75)
    assert (ours["ratio_from"], ours["ratio_to"]) == (0.5, 4.0)
    assert theirs["times_seconds_of_peer"] is None
    assert ours["times_faster_than_slowest"] == 1.33
    assert masked["peer"] is None and masked["times_seconds_of_peer"] is None


def test_ours_and_the_peer_run_in_turns_and_begin_in_turns(speed, tmp_path, monkeypatch):
    ran: list[str] = []
    monkeypatch.setattr(speed, "network_and_call", lambda name, *_: (None, lambda: ran.append(name)))
    monkeypatch.setattr(speed, "once", lambda call, _: (call(), {"vidgen-joint": 3.0, "cogvideox": 4.0}[ran[-1]])[1])
    found = speed.ratios("vidgen-joint", "forward", speed.Settings(output=tmp_path / "speed.csv", turns=3))
    assert found == [0.75] * 3
    ours, theirs = "vidgen-joint", "cogvideox"
    assert ran[2:] == [ours, theirs, theirs, ours, ours, theirs]


def test_the_interval_of_a_median_holds_it_in_95_percent(speed):
    assert speed.median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
    assert speed.median_interval(list(range(10))) == (1, 8)  # binomial: 98 %, and 89 % from 2 to 7
    draws = torch.randn(2000, 30, generator=torch.Generator().manual_seed(0)).tolist()
    held = sum(low <= 0 <= high for low, high in map(speed.median_interval, draws))
    assert 0.94 < held / 2000 < 0.98


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
    assert speed.timed(lambda: calls.append(1), speed.Settings(output=tmp_path / "speed.csv")) == [30]
    assert len(calls) == 1
