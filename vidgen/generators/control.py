"""What steers a trained generator beside text: a control video (depth, edges, sketch) and reference images."""

import math

import torch
from torch import Tensor, nn

from vidgen.generators.embedding import SCALE
from vidgen.latents import LatentSpec
from vidgen.nn.llama import LlamaBlock
from vidgen.nn.positions import positions, rotary, sine_features


class ControlBranch(nn.Module):
    """Tokens of a control video to features that are added to the generator's, zero at first (ControlNet's way in,
    arXiv 2302.05543, section 3.1): a generator with a new branch is exactly the one without.

    The branch sees the whole control video, also beside an autoregressive generator, and runs once for a whole
    sampling, whatever the number of steps.

    Args:
        layers: blocks over the control tokens.
    """

    def __init__(self, spec: LatentSpec, width: int, heads: int, *, layers: int) -> None:
        super().__init__()
        self.unit, self.head_channels = spec.unit, width // heads
        self.from_tokens = nn.Linear(spec.channels, width)
        nn.init.normal_(self.from_tokens.weight, std=SCALE / math.sqrt(spec.channels))
        self.blocks = nn.ModuleList(LlamaBlock(width, heads) for _ in range(layers))
        self.to_features = nn.Linear(width, width)
        nn.init.zeros_(self.to_features.weight)
        nn.init.zeros_(self.to_features.bias)

    def forward(self, tokens: Tensor, coordinates: Tensor) -> Tensor:
        """`b n c`, `n 5 -> b n d`."""
        x = self.from_tokens(tokens)
        turns = rotary(positions(coordinates, self.unit), self.head_channels)
        for block in self.blocks:
            x = block(x, None, turns)
        return self.to_features(x)


class ReferenceEmbedding(nn.Module):
    """Tokens of reference images to condition states: the generator attends to them as to words."""

    def __init__(self, spec: LatentSpec, text_width: int) -> None:
        super().__init__()
        self.unit, self.text_width = spec.unit, text_width
        self.project = nn.Linear(spec.channels, text_width)
        self.marker = nn.Parameter(torch.randn(text_width) * SCALE)

    def forward(self, tokens: Tensor, coordinates: Tensor) -> Tensor:
        """Tokens `r n c` of r images, places `n 5` of each -> `(r n) d`; image i stands at time i."""
        places = positions(coordinates, self.unit).repeat(len(tokens), 1)
        places[:, 0] = torch.arange(len(tokens), device=places.device).repeat_interleave(len(coordinates))
        features = sine_features(places, self.text_width // 2 * 2)
        features = nn.functional.pad(features, (0, self.text_width % 2))
        return self.project(tokens).flatten(0, 1) + self.marker + features.to(self.marker.dtype)
