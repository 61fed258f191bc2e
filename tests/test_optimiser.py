"""Which weights does Muon train, does it resume bit by bit, and does it share AdamW's schedule?"""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

import vidgen
from vidgen.training.config import OptimiserConfig
from vidgen.training.optimiser import MuonWithAdamW, block_matrices, build_optimiser

MUON = OptimiserConfig(algorithm="muon", learning_rate=1e-2, weight_decay=0.1)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layer(self.norm(x))


class Network(nn.Module):
    _repeated_blocks = ("Block",)

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.blocks, self.head = nn.Linear(4, 8), nn.Sequential(Block(), Block()), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.embedding(x)))


def train(network: nn.Module, optimiser: torch.optim.Optimizer, steps: int) -> list[float]:
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    y = torch.stack([x.sum(dim=1).sin(), x[:, 0] * x[:, 1]], dim=1)
    losses = []
    for _ in range(steps):
        loss = (network(x) - y).square().mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return losses


def test_muon_trains_the_matrices_of_blocks_and_adamw_every_other_weight_once():
    network = Network()
    optimiser = build_optimiser(network, MUON)
    assert isinstance(optimiser, MuonWithAdamW)
    muon = optimiser.parts[0].param_groups[0]["params"]
    assert {id(weight) for weight in muon} == {id(block.layer.weight) for block in network.blocks}  # pyright: ignore
    everything = [id(weight) for group in optimiser.param_groups for weight in group["params"]]
    assert sorted(everything) == sorted(id(weight) for weight in network.parameters())
    decays = {group["weight_decay"] for group in optimiser.param_groups if group["params"][0].ndim == 1}
    assert decays == {0.0}, "vectors do not decay"


def test_frozen_matrices_are_left_alone():
    network = Network()
    network.blocks[0].requires_grad_(False)
    assert len(block_matrices(network)) == 1


@pytest.mark.parametrize("algorithm", ["adamw", "muon"])
def test_the_loss_falls_and_a_rate_of_zero_changes_nothing(algorithm):
    torch.manual_seed(0)
    network = Network()
    optimiser = build_optimiser(network, replace(MUON, algorithm=algorithm))
    losses = train(network, optimiser, 60)
    assert losses[-1] < 0.5 * losses[0]
    before = deepcopy(network.state_dict())
    for group in optimiser.param_groups:
        group["lr"] = 0.0
    train(network, optimiser, 2)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_saved_state_goes_on_bit_by_bit():
    torch.manual_seed(0)
    whole = Network()
    optimiser = build_optimiser(whole, MUON)
    train(whole, optimiser, 5)
    other = deepcopy(whole)
    resumed = build_optimiser(other, replace(MUON, learning_rate=1e-5))
    resumed.load_state_dict(deepcopy(optimiser.state_dict()))
    assert train(whole, optimiser, 5) == train(other, resumed, 5)
    for group in resumed.param_groups:
        group["lr"] = 0.0
    before = deepcopy(other.state_dict())
    train(other, resumed, 1)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items()), "rates reach the parts"


def test_a_network_without_blocks_is_told_to_use_adamw():
    with pytest.raises(ValueError, match="use --algorithm adamw"):
        build_optimiser(nn.Sequential(nn.Linear(2, 2)), MUON)


@pytest.mark.parametrize("name", ["shapes-masked", "shapes-flow", "shapes-ar"])
def test_most_weights_of_the_built_in_generators_are_trained_by_muon(name):
    model = vidgen.load(name).transformer
    share = sum(weight.numel() for weight in block_matrices(model)) / sum(p.numel() for p in model.parameters())
    assert share > 0.5
