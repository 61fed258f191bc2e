"""Does `torch.compile` make one graph of whole networks, forward and backward, in which nothing looks at the data?"""

from typing import Any

import pytest
import torch
from test_generators import told
from tiny_models import SIZE, SPECS, random_latents, shake

from vidgen.conditioning import Condition, TokenState
from vidgen.generators import (
    AutoregressiveTransformer,
    DiffusionTransformer,
    FrameMaskedTransformer,
    LlamaTransformer,
    MaskedTransformer,
    PrefixMaskedTransformer,
)
from vidgen.latents import Latents

NETWORKS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "masked": (MaskedTransformer, "grid of ids", {"tasks": 3}),
    "masked windows": (MaskedTransformer, "grid of ids", {"windows": [(1, 0, 0), (0, 1, 2)]}),
    "masked prefix": (PrefixMaskedTransformer, "grid of ids", {}),
    "masked spectral": (MaskedTransformer, "grid of ids", {"spectral_attention": True}),
    "masked frames": (FrameMaskedTransformer, "grid of ids", {}),
    "masked planes": (MaskedTransformer, "three planes", {}),
    "flow": (DiffusionTransformer, "grid of reals", {}),
    "flow patches": (DiffusionTransformer, "grid of reals", {"patch": (1, 2, 2)}),
    "flow windows": (DiffusionTransformer, "grid of reals", {"attention": "windows"}),
    "flow factorised": (DiffusionTransformer, "grid of reals", {"attention": "sequential", "sandwich_norm": True}),
    "flow frame-causal": (DiffusionTransformer, "grid of reals", {"attention": "frame-causal"}),
    "flow joint": (DiffusionTransformer, "grid of reals", {"text_path": "joint", "single_layers": 1}),
    "flow queries": (DiffusionTransformer, "queries of reals", {}),
    "autoregressive": (AutoregressiveTransformer, "grid of ids", {}),
    "llama": (LlamaTransformer, "grid of ids", {}),
    "llama frames": (LlamaTransformer, "grid of ids", {"group": "frame"}),
}


def call(network: Any, latents: Latents) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of `forward` for a clip whose first tokens are known, under two states of text."""
    state = torch.full(latents.tokens.shape[:2], int(TokenState.UNKNOWN))
    state[:, :2] = TokenState.KNOWN
    text = Condition(torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)), torch.ones(2, 3).bool())
    condition = told(latents, state, text)
    coordinates = latents.spec.coordinates(latents.size)
    if isinstance(network, MaskedTransformer):
        tokens = latents.tokens if latents.ids is None else latents.ids
        return (tokens, state == TokenState.UNKNOWN, coordinates), network.condition_inputs(condition, coordinates)
    if isinstance(network, DiffusionTransformer):
        inputs = network.condition_inputs(condition, coordinates)
        return (latents.tokens, torch.full((2,), 400.0), coordinates), inputs
    order = network.order(coordinates)
    assert latents.ids is not None
    return (latents.ids[:, order.tokens][:, order.fed],), network.sequence_inputs(condition, coordinates, order)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_whole_network_is_one_graph(name):
    torch._dynamo.reset()
    kind, tokens, config = NETWORKS[name]
    spec = SPECS[tokens]
    torch.manual_seed(0)
    network = kind(spec.to_json(), text_width=8, width=24, layers=2, heads=2, **config)
    shake(network)
    latents = random_latents(spec, batch=2)
    arguments, inputs = call(network, latents)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True, dynamic=False)
    results = []
    for run in (network, compiled):
        network.zero_grad()
        hidden = run(*arguments, **inputs)
        hidden.square().mean().backward()
        grads = [weight.grad.clone() for weight in network.parameters() if weight.grad is not None]
        results.append((hidden.detach(), grads))
    (plain, plain_grads), (one_graph, graph_grads) = results
    assert (one_graph - plain).abs().max() <= 1e-4
    assert len(plain_grads) == len(graph_grads)
    assert all((one - other).abs().max() <= 1e-3 for one, other in zip(plain_grads, graph_grads, strict=True))
    assert latents.size == SIZE
