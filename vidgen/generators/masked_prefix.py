"""Masked transformer that hears its condition as tokens in front of the video's (MAGVIT's class and task tokens)."""

from typing import ClassVar

import torch
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks the loader up in this module
from torch import Tensor, nn

from vidgen.generators.masked import MaskedTransformer
from vidgen.generators.patches import Grid
from vidgen.kernels import AttentionSpec
from vidgen.nn.norms import RMSNorm
from vidgen.nn.positions import rotary
from vidgen.nn.transformer import Attention, FeedForward, Rotary


class PlainBlock(nn.Module):
    """Pre-norm block: x + self-attention (or `mixer` in its place), + feed-forward."""

    def __init__(self, width: int, heads: int, *, expansion: float, mixer: type[Attention] = Attention) -> None:
        super().__init__()
        self.norm_attn = RMSNorm(width)
        self.attn = mixer(width, heads)
        self.norm_ff = RMSNorm(width)
        self.ff = FeedForward(width, expansion=expansion)

    def forward(self, hidden_states: Tensor, pattern: AttentionSpec, turns: Rotary) -> Tensor:
        x = hidden_states
        x = x + self.attn(self.norm_attn(x), pattern, turns)
        return x + self.ff(self.norm_ff(x))


class PrefixMaskedTransformer(MaskedTransformer):
    """`MaskedTransformer` without cross-attention: a quarter fewer weights, the size that MAGVIT publishes.

    States that are not there have their place taken by the state for "nothing was said", so a prompt's padding is
    heard; made for classes, which have one state each.
    """

    _no_split_modules: ClassVar[list[str]] = ["PlainBlock"]
    _repeated_blocks: ClassVar[list[str]] = ["PlainBlock"]

    def build_block(self, width: int, heads: int, *, expansion: float) -> nn.Module:
        return PlainBlock(width, heads, expansion=expansion, mixer=self.mixer)

    def trunk(self, x: Tensor, states: Tensor, mask: Tensor, coordinates: Tensor, grid: Grid | None) -> Tensor:
        if mask.ndim != 2:
            raise ValueError("a timeline of prompts needs cross-attention; use MaskedTransformer")
        told = torch.where(mask.unsqueeze(-1), states, self.text_projection.nothing.to(states.dtype))
        prefix = told.shape[1]
        patterns = self.patterns(x.shape[1], grid, prefix=prefix)
        x = torch.cat([told, x], dim=1)
        places = self.places(coordinates, grid)
        places = torch.cat([places.new_zeros(prefix, 3), places])
        turns = rotary(places, x.shape[-1] // self.heads)
        for block, pattern in zip(self.transformer_blocks, patterns, strict=True):
            x = block(x, pattern, turns)
        return x[:, prefix:]
