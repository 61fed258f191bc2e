"""Masked transformer that encodes each visible token once and decodes masked ones from them (ENAT, arXiv 2411.06959).

Most layers work on visible tokens alone; a few decode the masked ones. Between the steps of the sampler only tokens
that have just become visible are encoded: they attend to the kept keys and values of those that were there before.
Training splits the visible tokens of each sample in two such generations, so that reuse is what the network has seen.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks the loader up in this module
from einops import rearrange
from torch import Tensor, nn

from vidgen.generators.masked import MaskedTransformer
from vidgen.kernels import masked_attention
from vidgen.nn.norms import RMSNorm
from vidgen.nn.positions import positions, rotary, rotate
from vidgen.nn.random import Generators, rand
from vidgen.nn.transformer import CrossAttention, FeedForward, Rotary


@dataclass
class EncodedTokens:
    """What is kept of visible tokens between steps; the network fills it in.

    Args:
        encoded: `b n` bool, the tokens that have been encoded; `None` before the first step.
        features: `b n d`, what the decoder reads.
        keys, values: of each layer, `b h n d`.
    """

    encoded: Tensor | None = None
    features: Tensor = field(default_factory=lambda: torch.empty(0))
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


class SparseBlock(nn.Module):
    """Pre-norm block over a few of the tokens, which attend to any others by their keys and values."""

    def __init__(self, width: int, heads: int, *, expansion: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attn = RMSNorm(width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(width, 2 * width, bias=False)
        self.norm_q = RMSNorm(width // heads)
        self.norm_k = RMSNorm(width // heads)
        self.to_out = nn.Linear(width, width)
        self.norm_cross = RMSNorm(width)
        self.cross_attn = CrossAttention(width, heads)
        self.norm_ff = RMSNorm(width)
        self.ff = FeedForward(width, expansion=expansion)

    def keys_and_values(self, x: Tensor, turns: Rotary) -> tuple[Tensor, Tensor]:
        """`b m d` and cosines, sines `b 1 m d` (or `m d`) -> `b h m d`, twice."""
        k, v = rearrange(self.to_kv(self.norm_attn(x)), "b m (two h d) -> two b h m d", two=2, h=self.heads)
        return rotate(self.norm_k(k), *turns).to(v.dtype), v

    def forward(
        self,
        x: Tensor,
        turns: Rotary,
        keys: Tensor,
        values: Tensor,
        visible: Tensor | None,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
    ) -> Tensor:
        """`b m d` with keys and values `b h n d`, of which it sees the `visible`, `b 1 m n` (`None` = all)."""
        q = rearrange(self.to_q(self.norm_attn(x)), "b m (h d) -> b h m d", h=self.heads)
        q = rotate(self.norm_q(q), *turns).to(values.dtype)
        attended = masked_attention(q, keys, values, visible)
        x = x + self.to_out(rearrange(attended, "b h m d -> b m (h d)"))
        x = x + self.cross_attn(self.norm_cross(x), encoder_hidden_states, encoder_attention_mask)
        return x + self.ff(self.norm_ff(x))


class EfficientMaskedTransformer(MaskedTransformer):
    """`MaskedTransformer` whose `layers` encode visible tokens and whose `decoder_layers` predict masked ones.

    Args:
        decoder_layers: layers over the masked tokens.
        latent_spec … self_critic_weight, head_type …: those of `MaskedTransformer`, but for `windows`,
            `spectral_attention` and `action_channels`.
    """

    # what the parent's constructor would register, and this one does not take
    ignore_for_config: ClassVar[list[str]] = ["windows", "spectral_attention", "action_channels"]
    _no_split_modules: ClassVar[list[str]] = ["SparseBlock"]
    _repeated_blocks: ClassVar[list[str]] = ["SparseBlock"]

    @register_to_config
    def __init__(
        self,
        latent_spec: dict[str, Any],
        text_width: int = 192,
        width: int = 256,
        layers: int = 6,
        heads: int = 8,
        expansion: float = 4.0,
        token_weight: float = 0.5,
        smallest_ratio: float = 0.0,
        time_order_share: float = 0.0,
        tasks: int = 0,
        refine_weight: float = 1.0,
        reconstruction_weight: float = 0.0,
        self_critic_weight: float = 0.0,
        decoder_layers: int = 2,
        head_type: str = "auto",
        head_options: dict[str, Any] | None = None,
        text_dropped: float | None = None,
        control_layers: int = 0,
        has_references: bool = False,
    ) -> None:
        super().__init__(
            latent_spec,
            text_width=text_width,
            width=width,
            layers=layers,
            heads=heads,
            expansion=expansion,
            token_weight=token_weight,
            smallest_ratio=smallest_ratio,
            time_order_share=time_order_share,
            tasks=tasks,
            refine_weight=refine_weight,
            reconstruction_weight=reconstruction_weight,
            self_critic_weight=self_critic_weight,
            head_type=head_type,
            head_options=head_options,
            text_dropped=text_dropped,
            control_layers=control_layers,
            has_references=has_references,
        )
        self.norm_encoded = RMSNorm(width)
        self.decoder_blocks = nn.ModuleList(
            self.build_block(width, heads, expansion=expansion) for _ in range(decoder_layers)
        )

    def build_block(self, width: int, heads: int, *, expansion: float) -> nn.Module:
        return SparseBlock(width, heads, expansion=expansion)

    def forward(
        self,
        tokens: Tensor,
        masked: Tensor,
        coordinates: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        known_tokens: Tensor | None = None,
        token_state: Tensor | None = None,
        task: Tensor | None = None,
        control: Tensor | None = None,
        earlier: Tensor | None = None,
        memory: EncodedTokens | None = None,
    ) -> Tensor:
        """As `MaskedTransformer.forward`, `b n d`.

        Args:
            earlier: `b n` bool, visible tokens that are encoded before the others and without them.
            memory: of the same video and condition at earlier steps; what has been encoded is not encoded again.
        """
        x = torch.where(masked.unsqueeze(-1), self.masked, self.token_embedding(tokens))
        x = self.situated(x, coordinates, known_tokens, token_state, control)
        states, mask = self.told(encoder_hidden_states, encoder_attention_mask, task)
        turns = rotary(positions(coordinates, self.spec.unit), x.shape[-1] // self.heads)
        memory = EncodedTokens() if memory is None else memory
        if memory.encoded is None:
            self.begin(memory, x)
        memory.encoded = memory.encoded & ~masked  # pyright: ignore[reportOptionalOperand]  begun just above
        if earlier is not None:
            self.encode(x, earlier & ~masked, states, mask, turns, memory)
        self.encode(x, ~masked & ~memory.encoded, states, mask, turns, memory)
        return self.norm_out(self.decode(x, masked, states, mask, turns, memory))

    def begin(self, memory: EncodedTokens, x: Tensor) -> None:
        """Room for all tokens, none of which is encoded."""
        batch, count, width = x.shape
        room = x.new_zeros(batch, self.heads, count, width // self.heads)
        memory.encoded = torch.zeros(batch, count, dtype=torch.bool, device=x.device)
        memory.features = torch.zeros_like(x)
        memory.keys, memory.values = ([room] * len(self.transformer_blocks) for _ in range(2))

    def encode(
        self, x: Tensor, new: Tensor, states: Tensor, mask: Tensor, turns: Rotary, memory: EncodedTokens
    ) -> None:
        """Encode the `new` tokens (`b n` bool) under sight of each other and of all that have been encoded."""
        assert memory.encoded is not None
        few = Few(new)
        memory.encoded = memory.encoded | new
        if few.places.shape[1] == 0:
            return
        x, turns, mask = few.take(x), few.turns(turns), few.rows(mask)
        visible = (memory.encoded[:, None] | ~few.real[:, :, None]).unsqueeze(
            1
        )  # what only fills up a row must see something
        for layer, block in enumerate(self.transformer_blocks):
            assert isinstance(block, SparseBlock)
            keys, values = block.keys_and_values(x, turns)
            memory.keys[layer] = few.put(memory.keys[layer].to(keys.dtype), keys)
            memory.values[layer] = few.put(memory.values[layer].to(values.dtype), values)
            x = block(x, turns, memory.keys[layer], memory.values[layer], visible, states, mask)
        memory.features = few.put(memory.features, self.norm_encoded(x))

    def decode(
        self, x: Tensor, masked: Tensor, states: Tensor, mask: Tensor, turns: Rotary, memory: EncodedTokens
    ) -> Tensor:
        """Features of visible tokens in their places, and in the others those that the decoder makes."""
        few = Few(masked)
        everything = memory.features.to(x.dtype)
        if few.places.shape[1] == 0:
            return everything
        x, own_turns, mask = few.take(x), few.turns(turns), few.rows(mask)
        for block in self.decoder_blocks:
            assert isinstance(block, SparseBlock)
            everything = few.put(everything, x)
            keys, values = block.keys_and_values(everything, turns)
            x = block(x, own_turns, keys, values, None, states, mask)
        return few.put(everything, x)

    def training_inputs(self, masked: Tensor, generators: Generators) -> dict[str, Tensor]:
        """A random part of the visible tokens is the earlier generation, so that reuse between steps is learned."""
        draws = rand((masked.shape[0], masked.shape[1] + 1), generators).to(masked.device)
        return {"earlier": ~masked & (draws[:, 1:] < draws[:, :1])}

    def empty_memories(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"memory": EncodedTokens()}, {"memory": EncodedTokens()}


class Few:
    """Some tokens of each sample, taken out and put back; samples with fewer fill up with other tokens.

    Attributes:
        places: `b m`, where the tokens lie.
        real: `b m` bool, False where a place only fills up.
    """

    def __init__(self, chosen: Tensor) -> None:
        most = int(chosen.sum(dim=1).max())
        self.places = chosen.long().argsort(dim=1, descending=True, stable=True)[:, :most]
        self.real = chosen.gather(1, self.places)

    def take(self, x: Tensor) -> Tensor:
        """`b n d -> b m d`."""
        return x.gather(1, self.places[..., None].expand(-1, -1, x.shape[-1]))

    def put(self, x: Tensor, tokens: Tensor) -> Tensor:
        """`b … n d` with `b … m d` in their places; those that fill up change nothing."""
        between = x.ndim - 3
        shape = (len(x), *[1] * between, -1, 1)
        places = self.places.view(shape).expand(tokens.shape)
        kept = torch.where(self.real.view(shape), tokens.to(x.dtype), x.gather(-2, places))
        return x.scatter(-2, places, kept)

    def turns(self, turns: Rotary) -> Rotary:
        """Cosines and sines `n d -> b 1 m d`."""
        return turns[0][self.places].unsqueeze(1), turns[1][self.places].unsqueeze(1)

    def rows(self, mask: Tensor) -> Tensor:
        """Rows of a mask `b n l` that differs between tokens; `b l` is everyone's."""
        return mask if mask.ndim == 2 else self.take(mask)
