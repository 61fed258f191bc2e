"""Blocks over text and video tokens that attend to all of both: in two streams (MM-DiT, SD3), or in one (Flux)."""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vidgen.kernels import gated_residual, masked_attention, modulate
from vidgen.nn.norms import RMSNorm
from vidgen.nn.reduced_attention import ReducedAttention
from vidgen.nn.transformer import Attention, FeedForward, Rotary


class JointAttention(Attention):
    """Self-attention of the video tokens and the text states together, each with weights of their own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.text_to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.text_norm_q = RMSNorm(width // heads)
        self.text_norm_k = RMSNorm(width // heads)
        self.text_to_out = nn.Linear(width, width)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Tensor, states: Tensor, mask: Tensor, turns: Rotary, reduction: ReducedAttention | None = None
    ) -> tuple[Tensor, Tensor]:
        """Tokens `b n d`, states `b l d`, mask as `joint_mask` makes it -> the same two shapes."""
        q, k, v = self.project(x, turns)
        text_q, text_k, text_v = rearrange(
            self.text_to_qkv(states), "b l (three h d) -> three b h l d", three=3, h=self.heads
        )
        q = torch.cat([self.text_norm_q(text_q).to(v.dtype), q.to(v.dtype)], dim=2)
        k = torch.cat([self.text_norm_k(text_k).to(v.dtype), k.to(v.dtype)], dim=2)
        v = torch.cat([text_v, v], dim=2)
        mask = mask.to(v.dtype) if mask.is_floating_point() else mask
        attend = masked_attention if reduction is None else reduction.attend
        both = rearrange(attend(q, k, v, mask), "b h n d -> b n (h d)")
        text, video = both.split([states.shape[1], x.shape[1]], dim=1)
        return self.to_out(video), self.text_to_out(text)


class JointBlock(nn.Module):
    """Joint attention, then a feed-forward for each stream; both modulated by the noise level (MM-DiT, SD3, arXiv
    2403.03206).
    """

    def __init__(self, width: int, heads: int, *, expansion: float = 4.0) -> None:
        super().__init__()
        self.attn = JointAttention(width, heads)
        self.ff = FeedForward(width, expansion=expansion)
        self.text_ff = FeedForward(width, expansion=expansion)
        self.to_modulation = nn.Linear(width, 6 * width)
        self.text_to_modulation = nn.Linear(width, 6 * width)
        for layer in (self.to_modulation, self.text_to_modulation):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        modulation: Tensor,
        text_modulation: Tensor,
        turns: Rotary,
        reduction: ReducedAttention | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Both streams. `modulation` is the embedded noise level with the pooled states, `b n d` or `b 1 d`;
        `text_modulation` (`b 1 d`) has the level alone, or one scene's text would reach another scene's through it.
        `encoder_attention_mask` is `joint_mask`'s.
        """
        x, text = hidden_states, encoder_hidden_states
        own = self.to_modulation(modulation).chunk(6, dim=-1)
        texts = self.text_to_modulation(text_modulation).chunk(6, dim=-1)
        video_mixed, text_mixed = self.attn(
            modulate(x, own[0], own[1]), modulate(text, texts[0], texts[1]), encoder_attention_mask, turns, reduction
        )
        x = gated_residual(x, video_mixed, own[2])
        text = gated_residual(text, text_mixed, texts[2])
        x = gated_residual(x, self.ff(modulate(x, own[3], own[4])), own[5])
        return x, gated_residual(text, self.text_ff(modulate(text, texts[3], texts[4])), texts[5])


class SingleStreamAttention(Attention):
    """Self-attention of text states and video tokens with the same weights; the text has no place to be turned to."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, both: Tensor, mask: Tensor, turns: Rotary, reduction: ReducedAttention | None = None
    ) -> Tensor:
        """`b l+n d`, states first, mask as `joint_mask` makes it, rotation of the n tokens -> the same shape."""
        states = both.shape[1] - turns[0].shape[0]
        turns = F.pad(turns[0], (0, 0, states, 0), value=1.0), F.pad(turns[1], (0, 0, states, 0))
        q, k, v = self.project(both, turns)
        q, k = q.to(v.dtype), k.to(v.dtype)
        mask = mask.to(v.dtype) if mask.is_floating_point() else mask
        attend = masked_attention if reduction is None else reduction.attend
        return self.to_out(rearrange(attend(q, k, v, mask), "b h n d -> b n (h d)"))


class SingleStreamBlock(nn.Module):
    """Attention and feed-forward side by side, one set of weights for text and tokens (the later blocks of Flux and of
    HunyuanVideo, arXiv 2412.03603; side by side as in ViT-22B, arXiv 2302.05442).

    Takes and gives what `JointBlock` does.
    """

    def __init__(self, width: int, heads: int, *, expansion: float = 4.0) -> None:
        super().__init__()
        self.attn = SingleStreamAttention(width, heads)
        self.ff = FeedForward(width, expansion=expansion)
        self.to_modulation = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.to_modulation.weight)
        nn.init.zeros_(self.to_modulation.bias)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        modulation: Tensor,
        text_modulation: Tensor,
        turns: Rotary,
        reduction: ReducedAttention | None = None,
    ) -> tuple[Tensor, Tensor]:
        x, text = hidden_states, encoder_hidden_states
        shift, scale, gate = self.to_modulation(modulation).chunk(3, dim=-1)
        text_shift, text_scale, text_gate = self.to_modulation(text_modulation).chunk(3, dim=-1)
        both = torch.cat([modulate(text, text_shift, text_scale), modulate(x, shift, scale)], dim=1)
        mixed = self.attn(both, encoder_attention_mask, turns, reduction) + self.ff(both)
        text_mixed, video_mixed = mixed.split([text.shape[1], x.shape[1]], dim=1)
        return gated_residual(x, video_mixed, gate), gated_residual(text, text_mixed, text_gate)


def joint_mask(mask: Tensor, tokens: int) -> Tensor:
    """Who sees whom among states and tokens, from which tokens see which states: bool or bias `b l` or `b n l`.

    Where that differs between tokens (a timeline, regions), a state sees the tokens that see it, and the states that
    some token sees together with it: what one scene's text says does not reach another scene through its text.
    """
    if mask.ndim == 2:
        return F.pad(mask, (0, tokens), value=not mask.is_floating_point())[:, None, None]
    seen = mask > float("-inf") if mask.is_floating_point() else mask
    among_states = torch.einsum("b n i, b n j -> b i j", seen.float(), seen.float()) > 0
    # a state that nobody sees still needs something to look at
    among_states = among_states | torch.eye(mask.shape[2], dtype=torch.bool, device=mask.device)
    of_states = torch.cat([among_states, seen.transpose(1, 2)], dim=2)
    if mask.is_floating_point():
        of_states = torch.zeros_like(of_states, dtype=mask.dtype).masked_fill(~of_states, float("-inf"))
    of_tokens = F.pad(mask, (0, tokens), value=not mask.is_floating_point())
    return torch.cat([of_states, of_tokens], dim=1)[:, None]
