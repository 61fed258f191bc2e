"""Transformer blocks of the generators: self-attention over a 3D pattern, cross-attention to text, feed-forward."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers.models.attention import AttentionModuleMixin
from einops import rearrange
from torch import Tensor, nn

from vidgen.kernels import (
    AttentionSpec,
    attention3d,
    gated_residual,
    gated_silu,
    masked_attention,
    modulate,
    qkv_norm_rope,
)
from vidgen.nn.norms import RMSNorm, RotaryRMSNorm

Rotary = tuple[Tensor, Tensor]


class Attends(Protocol):
    """Attention that is no fixed pattern of a grid (`ReducedAttention`, `TeacherForced`)."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


class Remembers(Protocol):
    """What self-attention needs of a cache: it takes new keys and values, and gives those to attend to."""

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass
class KeyValueCache:
    """Keys and values of one attention layer, in memory that is allocated once.

    Args:
        keys, values: `b h n d` for all n positions of the sequence.
        filled: positions that are valid so far.
    """

    keys: Tensor
    values: Tensor
    filled: int = 0

    @classmethod
    def empty(cls, batch: int, heads: int, length: int, head_channels: int, *, like: Tensor) -> "KeyValueCache":
        shape = (batch, heads, length, head_channels)
        return cls(like.new_zeros(shape), like.new_zeros(shape))

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the next positions and give back all so far."""
        end = self.filled + keys.shape[2]
        self.keys[:, :, self.filled : end] = keys
        self.values[:, :, self.filled : end] = values
        self.filled = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class Attention(nn.Module, AttentionModuleMixin):
    """Self-attention with RMS-normalised queries and keys (QK-norm) and rotary positions."""

    is_cross_attention = False  # diffusers' attention caches ask for it
    _supports_qkv_fusion = False  # the projections are one already

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.norm_q = RotaryRMSNorm(width // heads)
        self.norm_k = RotaryRMSNorm(width // heads)
        self.to_out = nn.Linear(width, width)

    def forward(
        self, x: Tensor, pattern: AttentionSpec | Attends, turns: Rotary, cache: Remembers | None = None
    ) -> Tensor:
        q, k, v = self.project(x, turns)
        if cache is not None:
            k, v = cache.append(k, v)
        of_grid = isinstance(pattern, AttentionSpec)
        attended = attention3d(q, k, v, pattern) if of_grid else pattern.attend(q, k, v)
        return self.to_out(rearrange(attended, "b h n d -> b n (h d)"))

    def project(self, x: Tensor, turns: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `b h n d`, queries and keys normalised and turned to their places."""
        return qkv_norm_rope(
            self.to_qkv(x),
            weight_q=self.norm_q.weight,
            weight_k=self.norm_k.weight,
            cosines=turns[0],
            sines=turns[1],
            heads=self.heads,
        )


class CrossAttention(nn.Module, AttentionModuleMixin):
    """Attention from tokens to condition states."""

    is_cross_attention = True
    _supports_qkv_fusion = False

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(width, 2 * width, bias=False)
        self.norm_q = RMSNorm(width // heads)
        self.norm_k = RMSNorm(width // heads)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """`b n d`, `b l d`, `b l` or `b n l` -> `b n d`.

        The mask is boolean (which tokens see which states) or a bias that is added to the scores.
        """
        q = rearrange(self.to_q(x), "b n (h d) -> b h n d", h=self.heads)
        k, v = rearrange(self.to_kv(states), "b l (two h d) -> two b h l d", two=2, h=self.heads)
        q, k = self.norm_q(q).to(v.dtype), self.norm_k(k).to(v.dtype)
        mask = mask.to(v.dtype) if mask.is_floating_point() else mask
        mask = mask[:, None, None] if mask.ndim == 2 else mask[:, None]
        attended = masked_attention(q, k, v, mask)
        return self.to_out(rearrange(attended, "b h n d -> b n (h d)"))


class FeedForward(nn.Module):
    """Gated feed-forward (SwiGLU, Shazeer 2020)."""

    def __init__(self, width: int, *, expansion: float) -> None:
        super().__init__()
        hidden = int(width * expansion * 2 / 3) // 8 * 8
        self.to_hidden = nn.Linear(width, 2 * hidden)
        self.to_out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.to_out(gated_silu(self.to_hidden(x)))


class Block(nn.Module):
    """Pre-norm block: x + self-attention over a 3D pattern, + feed-forward."""

    def __init__(self, width: int, heads: int, *, expansion: float = 4.0) -> None:
        super().__init__()
        self.norm_attn = RMSNorm(width)
        self.attn = Attention(width, heads)
        self.norm_ff = RMSNorm(width)
        self.ff = FeedForward(width, expansion=expansion)

    def forward(self, x: Tensor, pattern: AttentionSpec, turns: Rotary) -> Tensor:
        """`b n d -> b n d`; `turns` are `rotary` of the places of the tokens."""
        x = x + self.attn(self.norm_attn(x), pattern, turns)
        return x + self.ff(self.norm_ff(x))


class TransformerBlock(nn.Module):
    """Pre-norm block: x + self-attention (or `mixer` in its place), + cross-attention, + feed-forward."""

    def __init__(self, width: int, heads: int, *, expansion: float = 4.0, mixer: type[Attention] = Attention) -> None:
        super().__init__()
        self.norm_attn = RMSNorm(width)
        self.attn = mixer(width, heads)
        self.norm_cross = RMSNorm(width)
        self.cross_attn = CrossAttention(width, heads)
        self.norm_ff = RMSNorm(width)
        self.ff = FeedForward(width, expansion=expansion)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        pattern: AttentionSpec,
        turns: Rotary,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        x = hidden_states
        x = x + self.attn(self.norm_attn(x), pattern, turns, cache)
        x = x + self.cross_attn(self.norm_cross(x), encoder_hidden_states, encoder_attention_mask)
        return x + self.ff(self.norm_ff(x))


class ModulatedBlock(nn.Module):
    """The block with scale, shift and gate from the noise level (adaLN-single, PixArt-α, arXiv 2310.00426).

    The modulation of all blocks is one map of the noise level, to which each block adds its own table.

    Args:
        mixer: class of the layer in the place of self-attention (`vidgen.nn.mixers`).
        cross: whether tokens attend to the condition's states.
        sandwich: the mixer's and the feed-forward's output is normalised as well (STIV, arXiv 2412.07730).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        expansion: float = 4.0,
        mixer: Callable[[int, int], nn.Module] = Attention,
        cross: bool = True,
        sandwich: bool = False,
    ) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.zeros(6, width))
        self.attn = mixer(width, heads)
        if cross:
            self.norm_cross = RMSNorm(width)
            self.cross_attn = CrossAttention(width, heads)
        self.cross = cross
        self.ff = FeedForward(width, expansion=expansion)
        self.norm_mixed = RMSNorm(width) if sandwich else nn.Identity()
        self.norm_fed = RMSNorm(width) if sandwich else nn.Identity()

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        modulation: Tensor,
        pattern: Any,
        turns: Rotary,
        cache: Remembers | None = None,
    ) -> Tensor:
        """`modulation`: `b n 6 d`, or `b 1 6 d` where all tokens have the same noise level; `pattern`: the mixer's."""
        x = hidden_states
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (modulation + self.modulation).unbind(dim=2)
        mixed = self.attn(modulate(x, shift_1, scale_1), pattern, turns, cache)
        x = gated_residual(x, self.norm_mixed(mixed), gate_1)
        if self.cross:
            x = x + self.cross_attn(self.norm_cross(x), encoder_hidden_states, encoder_attention_mask)
        return gated_residual(x, self.norm_fed(self.ff(modulate(x, shift_2, scale_2))), gate_2)


class OwnModulationBlock(ModulatedBlock):
    """`ModulatedBlock` with a map of the noise level of its own (adaLN-zero, DiT, arXiv 2212.09748)."""

    def __init__(self, width: int, heads: int, **options: Any) -> None:
        super().__init__(width, heads, **options)
        self.to_modulation = nn.Linear(width, 6 * width, bias=False)  # the table of the parent is its bias
        nn.init.zeros_(self.to_modulation.weight)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        modulation: Tensor,
        pattern: Any,
        turns: Rotary,
        cache: Remembers | None = None,
    ) -> Tensor:
        """As the parent's, but `modulation` is the embedded noise level, `b n d` or `b 1 d`."""
        own = rearrange(self.to_modulation(modulation), "b n (six d) -> b n six d", six=6)
        states, mask = encoder_hidden_states, encoder_attention_mask
        return super().forward(hidden_states, states, mask, own, pattern, turns, cache)
