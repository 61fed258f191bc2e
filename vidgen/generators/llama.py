"""Llama-style autoregressive transformer: the prompt in front of the tokens, one or many tokens at once (LlamaGen)."""

from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks the loader up in this module
from torch import Tensor, nn

from vidgen.conditioning import Condition
from vidgen.generators.embedding import SCALE, KnownEmbedding, PlaceEmbedding, TextProjection, TokenEmbedding
from vidgen.generators.head_choice import chosen_head
from vidgen.generators.sequence import AutoregressiveGenerator
from vidgen.generators.token_order import TokenOrder, check_group, token_order
from vidgen.latents import LatentSpec
from vidgen.nn.llama import NEVER, LlamaBlock, StaticCache, line_rotary, visible
from vidgen.nn.norms import RMSNorm
from vidgen.nn.positions import positions, rotary
from vidgen.nn.transformer import Rotary


class LlamaTransformer(AutoregressiveGenerator, ConfigMixin):
    """Llama blocks (no cross-attention, no biases) over condition states, then tokens of any spec.

    Each position holds a token before it and is told the place of the token that it predicts. A position sees the
    condition states, all groups before its own, and its own group.

    Args:
        latent_spec: `LatentSpec.to_json()` of the tokenizer.
        text_width: length of the condition states.
        width, layers, heads: of the transformer.
        group: tokens made at once, see `token_order`.
        rotary_axes: 3 = rotary positions in time, height and width; 1 = along the sequence.
        head_type: "auto" = ids all at once, or a flow for reals; "depth" = the ids of a token one after the other;
            "mixture" = a mixture of Gaussians for reals.
        head_options: keyword arguments of that head.
        token_weight: strength of `token_weights` in the loss.
        text_dropped: share of the training samples without text, `None` = not recorded.
        control_layers, has_references: what `add_control` and `add_references` have added.
    """

    _supports_gradient_checkpointing = False
    _no_split_modules: ClassVar[list[str]] = ["LlamaBlock"]
    _repeated_blocks: ClassVar[list[str]] = ["LlamaBlock"]

    @register_to_config
    def __init__(
        self,
        latent_spec: dict[str, Any],
        text_width: int = 192,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        group: int | str = 1,
        rotary_axes: int = 3,
        head_type: str = "auto",
        head_options: dict[str, Any] | None = None,
        token_weight: float = 0.0,
        text_dropped: float | None = None,
        control_layers: int = 0,
        has_references: bool = False,
    ) -> None:
        super().__init__()
        check_group(group)
        if rotary_axes not in (1, 3):
            raise ValueError(
                f"rotary_axes must be 1 (along the sequence) or 3 (time, height, width), got {rotary_axes}"
            )
        self.spec = LatentSpec.from_json(latent_spec)
        self.heads, self.group, self.rotary_axes = heads, group, rotary_axes
        self.token_embedding = TokenEmbedding(self.spec, width)
        self.start = nn.Parameter(torch.randn(width) * SCALE)
        self.place_embedding = PlaceEmbedding(self.spec, width)
        self.known_embedding = KnownEmbedding(self.spec, width)
        self.text_projection = TextProjection(text_width, width)
        self.transformer_blocks = nn.ModuleList(LlamaBlock(width, heads) for _ in range(layers))
        self.norm_out = RMSNorm(width)
        self.proj_out = chosen_head(self.spec, width, head_type, head_options)
        if control_layers:
            self.add_control(control_layers)
        if has_references:
            self.add_references()

    def forward(
        self,
        previous: Tensor | None,
        coordinates: Tensor,
        groups: Tensor,
        ordinals: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        known_tokens: Tensor | None = None,
        token_state: Tensor | None = None,
        control: Tensor | None = None,
        caches: StaticCache | None = None,
    ) -> Tensor:
        """Hidden states `b m d` for `proj_out`, at m consecutive positions.

        Args:
            previous: ids `b k q` or reals `b k c` of the tokens that are fed at these positions (`TokenOrder.fed`);
                k < m (`None` for k = 0) at the start of the sequence, and there alone.
            coordinates: `m 5`, places of the tokens to predict.
            groups: `m` long, the group of each position.
            ordinals: `m` long, the number of the token to predict in the order of the spec, over all its parts.
            encoder_hidden_states, encoder_attention_mask: states `b l d` and bool `b l`; read at the start only.
            known_tokens, token_state: encoded condition video `b m c` and its states `b m`, at the same positions.
            control: features `b m d` of the control branch at the same positions.
            caches: hold all positions before these; `None` = the positions start the sequence.
        """
        batch, count = encoder_hidden_states.shape[0], coordinates.shape[0]
        missing = count - (0 if previous is None else previous.shape[1])
        parts = [] if previous is None else [self.token_embedding(previous)]
        if missing > 0:  # the start alone: finding out the dtype takes longer than a small block
            parts = [self.start.expand(batch, missing, -1).to(self.dtype), *parts]
        x = self.situated(torch.cat(parts, dim=1), coordinates, known_tokens, token_state, control)
        groups, turns = groups.expand(batch, -1), self.turns(coordinates, ordinals)
        if missing > 0:
            states, said = self.prefix(encoder_hidden_states, encoder_attention_mask)
            x = torch.cat([states, x], dim=1)
            groups = torch.cat([torch.where(said, -1, NEVER), groups], dim=1)
            before = self.prefix_turns(states)
            turns = torch.cat([before[0], turns[0]]), torch.cat([before[1], turns[1]])
        places, mask = (None, visible(groups, groups)) if caches is None else caches.admit(groups)
        for layer, block in enumerate(self.transformer_blocks):
            x = block(x, mask, turns, caches, layer, places)
        return self.norm_out(x[:, -count:])

    def prefix(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Condition states in the transformer's width and which of them were said, `b l+1 d` and `b l+1`."""
        if mask.ndim == 3:
            raise ValueError(
                "this transformer reads the prompt once, in front of all tokens, so that a timeline of prompts cannot "
                "change it on the way; use an AutoregressiveTransformer, or pipe.extend, whose windows read it anew"
            )
        return self.text_projection(states, mask)

    def turns(self, coordinates: Tensor, ordinals: Tensor) -> Rotary:
        channels = self.config.width // self.heads
        if self.rotary_axes == 1:
            return line_rotary(ordinals, channels)
        return rotary(positions(coordinates, self.spec.unit), channels)

    def prefix_turns(self, states: Tensor) -> Rotary:
        """Condition states lie before the start of time: -1, -2, …, wherever the batch's longest prompt ends."""
        ordinals = -1 - torch.arange(states.shape[1], device=states.device)
        channels = self.config.width // self.heads
        if self.rotary_axes == 1:
            return line_rotary(ordinals, channels)
        return rotary(torch.stack([ordinals, torch.zeros_like(ordinals), torch.zeros_like(ordinals)], dim=1), channels)

    def order(self, coordinates: Tensor) -> TokenOrder:
        return token_order(coordinates, self.group)

    def sequence_inputs(self, condition: Condition, coordinates: Tensor, order: TokenOrder) -> dict[str, Any]:
        inputs = super().sequence_inputs(condition, coordinates, order)
        return {**inputs, "groups": order.groups, "ordinals": order.tokens}

    def empty_caches(self, batch: int, length: int, *, states: int = 0) -> StaticCache:
        return StaticCache.empty(
            len(self.transformer_blocks),
            batch=batch,
            heads=self.heads,
            length=length + states + 1,  # one more state says "nothing was said"
            head_channels=self.config.width // self.heads,
            like=self.start,
        )
