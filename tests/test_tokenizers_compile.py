"""Does `torch.compile` make one graph of a tokenizer's encoder and one of its decoder, as training runs them?"""

import pytest
import torch
from tiny_models import clip
from torch import Tensor

from vidgen.tokenizers.blockwise import BlockwiseTokenizer
from vidgen.tokenizers.presets import TOKENIZER_PRESETS


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["base-kl", "omnitokenizer-kl", "bsq-vit"])
def test_encoder_and_decoder_are_one_graph_each(preset: str):
    torch._dynamo.reset()
    torch.manual_seed(0)
    tokenizer = TOKENIZER_PRESETS[preset].tiny().build()
    assert isinstance(tokenizer, BlockwiseTokenizer)

    def features(video: Tensor) -> Tensor:
        return tokenizer.features(video, None)

    def pixels(vectors: Tensor) -> Tensor:
        return tokenizer.pixels(vectors, None)

    video = clip(frames=5)
    _, _, t, h, w = features(video).shape
    vectors = torch.randn(1, tokenizer.bottleneck.channels, t, h, w)
    for network, given in ((features, video), (pixels, vectors)):
        compiled = torch.compile(network, fullgraph=True, backend="eager", dynamic=False)
        results = []
        for run in (network, compiled):
            tokenizer.zero_grad()
            output = run(given)
            output.square().mean().backward()
            grads = [weight.grad.clone() for weight in tokenizer.parameters() if weight.grad is not None]
            results.append((output.detach(), grads))
        (plain, plain_grads), (one_graph, graph_grads) = results
        torch.testing.assert_close(one_graph, plain, rtol=1e-5, atol=1e-5)
        assert len(plain_grads) == len(graph_grads) > 0
        torch.testing.assert_close(graph_grads, plain_grads, rtol=1e-4, atol=1e-5)
