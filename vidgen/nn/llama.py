"""Llama blocks: self-attention under an explicit mask, and a cache of keys and values whose shapes never change."""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from vidgen.kernels import AttentionSpec, attention3d, gated_silu, masked_attention
from vidgen.nn.norms import RMSNorm
from vidgen.nn.positions import rotate
from vidgen.nn.transformer import Rotary

NEVER = torch.iinfo(torch.long).max  # the group of a position that nothing sees


@dataclass
class StaticCache:
    """Keys and values of all layers in memory of fixed size.

    What a query sees is a mask over all places, filled or not: decoding runs with the same shapes at every step, and
    `torch.compile` makes one graph of it. Eager on a CPU, where shapes cost nothing and memory traffic is the cost, the
    mask ends with the last place that is filled, and attention reads no further.

    Args:
        keys, values: `layers b h n d`.
        groups: `b n` long, the group of each position; a query sees the groups up to its own. `NEVER` = not filled.
        filled: how many positions are filled, a tensor without axes.
    """

    keys: Tensor
    values: Tensor
    groups: Tensor
    filled: Tensor

    @classmethod
    def empty(
        cls, layers: int, *, batch: int, heads: int, length: int, head_channels: int, like: Tensor
    ) -> "StaticCache":
        shape = (layers, batch, heads, length, head_channels)
        groups = torch.full((batch, length), NEVER, device=like.device)
        return cls(like.new_zeros(shape), like.new_zeros(shape), groups, torch.zeros((), dtype=torch.long).to(groups))

    def admit(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        """Take in positions of groups `b m`: their places `m` and which of the first n places they see, `b 1 m n`."""
        places = self.filled + torch.arange(groups.shape[1], device=groups.device)
        self.groups.index_copy_(1, places, groups)
        self.filled += groups.shape[1]
        fixed_shapes = torch.compiler.is_compiling() or groups.device.type != "cpu"
        return places, visible(groups, self.groups if fixed_shapes else self.groups[:, : int(self.filled)])

    def append(self, layer: int, places: Tensor, keys: Tensor, values: Tensor, *, count: int) -> tuple[Tensor, Tensor]:
        """Store keys and values `b h m d` of one layer and give back the first `count` places."""
        self.keys[layer].index_copy_(2, places, keys.to(self.keys.dtype))
        self.values[layer].index_copy_(2, places, values.to(self.values.dtype))
        return self.keys[layer, :, :, :count], self.values[layer, :, :, :count]


def visible(queries: Tensor, keys: Tensor) -> Tensor:
    """Groups `b m` and `b n` to a mask `b 1 m n`: a query sees the groups up to its own."""
    return (keys[:, None] <= queries[:, :, None]).unsqueeze(1)


def line_rotary(ordinals: Tensor, head_channels: int, *, base: float = 10_000.0) -> Rotary:
    """Cosines and sines `n head_channels/2` for `rotate` of places on a line (RoFormer, arXiv 2104.09864)."""
    frequencies = base ** -(torch.arange(0, head_channels, 2, device=ordinals.device) / head_channels)
    angle = ordinals[:, None] * frequencies
    return angle.cos(), angle.sin()


class LlamaAttention(nn.Module):
    """Self-attention without biases, with rotary positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        turns: Rotary,
        cache: StaticCache | None = None,
        layer: int = 0,
        places: Tensor | None = None,
    ) -> Tensor:
        qkv = rearrange(self.to_qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        (q, k), v = rotate(qkv[:2], *turns), qkv[2]
        if cache is not None and places is not None and mask is not None:
            k, v = cache.append(layer, places, k, v, count=mask.shape[-1])
        if mask is None:
            attended = attention3d(q, k, v, AttentionSpec.sequence(k.shape[2]))
        else:
            attended = masked_attention(q, k, v, mask)
        return self.to_out(rearrange(attended, "b h n d -> b n (h d)"))


class LlamaFeedForward(nn.Module):
    """SwiGLU without biases; its hidden width is 8/3 of the width, rounded up to a multiple (LLaMA)."""

    def __init__(self, width: int, *, multiple: int = 256) -> None:
        super().__init__()
        hidden = -(-int(8 * width / 3) // multiple) * multiple
        self.to_hidden = nn.Linear(width, 2 * hidden, bias=False)
        self.to_out = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.to_out(gated_silu(self.to_hidden(x)))


class LlamaBlock(nn.Module):
    """Pre-norm block: x + self-attention, + feed-forward (LLaMA, arXiv 2302.13971)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_attn = RMSNorm(width)
        self.attn = LlamaAttention(width, heads)
        self.norm_ff = RMSNorm(width)
        self.ff = LlamaFeedForward(width)

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None,
        turns: Rotary,
        cache: StaticCache | None = None,
        layer: int = 0,
        places: Tensor | None = None,
    ) -> Tensor:
        """`b m d` under a mask `b 1 m n` (`None` = all see all).

        With a cache also the layer's number and the places `m` of the positions.
        """
        x = hidden_states
        x = x + self.attn(self.norm_attn(x), mask, turns, cache, layer, places)
        return x + self.ff(self.norm_ff(x))
