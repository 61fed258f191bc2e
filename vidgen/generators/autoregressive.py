"""Autoregressive transformer: one token after the other, with a cache of keys and values (LlamaGen class)."""

from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks the loader up in this module
from torch import Tensor, nn

from vidgen.generators.embedding import SCALE, KnownEmbedding, PlaceEmbedding, TextProjection, TokenEmbedding
from vidgen.generators.head_choice import chosen_head
from vidgen.generators.sequence import AutoregressiveGenerator
from vidgen.kernels import AttentionSpec
from vidgen.latents import LatentSpec
from vidgen.nn.norms import RMSNorm
from vidgen.nn.positions import positions, rotary
from vidgen.nn.transformer import KeyValueCache, TransformerBlock


class AutoregressiveTransformer(AutoregressiveGenerator, ConfigMixin):
    """Causal transformer over the tokens of any spec, in the order of the spec.

    Each position holds the token before it and is told the place of the token that it predicts.

    Args:
        latent_spec: `LatentSpec.to_json()` of the tokenizer.
        text_width: length of the condition states.
        width, layers, heads: of the transformer; expansion: of its feed-forward.
        token_weight: strength of `token_weights` in the loss.
        head_type, head_options: what draws tokens from hidden states, as in `LlamaTransformer`.
        text_dropped: share of the training samples without text, `None` = not recorded.
        control_layers, has_references: what `add_control` and `add_references` have added.
    """

    _supports_gradient_checkpointing = False
    _no_split_modules: ClassVar[list[str]] = ["TransformerBlock"]
    _repeated_blocks: ClassVar[list[str]] = ["TransformerBlock"]

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
        head_type: str = "auto",
        head_options: dict[str, Any] | None = None,
        text_dropped: float | None = None,
        control_layers: int = 0,
        has_references: bool = False,
    ) -> None:
        super().__init__()
        self.spec = LatentSpec.from_json(latent_spec)
        self.heads = heads
        self.token_embedding = TokenEmbedding(self.spec, width)
        self.start = nn.Parameter(torch.randn(width) * SCALE)
        self.place_embedding = PlaceEmbedding(self.spec, width)
        self.known_embedding = KnownEmbedding(self.spec, width)
        self.text_projection = TextProjection(text_width, width)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(width, heads, expansion=expansion) for _ in range(layers)
        )
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
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        known_tokens: Tensor | None = None,
        token_state: Tensor | None = None,
        control: Tensor | None = None,
        caches: list[KeyValueCache] | None = None,
    ) -> Tensor:
        """Hidden states `b m d` for `proj_out`, at m consecutive positions.

        Args:
            previous: ids `b m q` or reals `b m c` of the tokens before each position; at the start of the sequence
                one fewer (`None` for m = 1), because nothing comes before the first position.
            coordinates: `m 5`, places of the tokens to predict.
            encoder_hidden_states, encoder_attention_mask: states `b l d` and bool `b l` or `b m l`.
            known_tokens, token_state: encoded condition video `b m c` and its states `b m`, at the same positions.
            control: features `b m d` of the control branch at the same positions.
            caches: one for each block, holding all positions before these; `None` = the positions start the sequence.
        """
        batch, count = encoder_hidden_states.shape[0], coordinates.shape[0]
        x = self.start.expand(batch, 1, -1)[:, : 1 if previous is None or previous.shape[1] < count else 0]
        if previous is not None:
            x = torch.cat([x.to(self.dtype), self.token_embedding(previous)], dim=1)
        x = self.situated(x, coordinates, known_tokens, token_state, control)
        states, mask = self.text_projection(encoder_hidden_states, encoder_attention_mask)
        turns = rotary(positions(coordinates, self.spec.unit), x.shape[-1] // self.heads)
        before = 0 if caches is None else caches[0].filled
        pattern = AttentionSpec.sequence(before + count, causal=True)
        pattern = pattern.decode(count, offset=before) if before else pattern
        for index, block in enumerate(self.transformer_blocks):
            x = block(x, states, mask, pattern, turns, None if caches is None else caches[index])
        return self.norm_out(x)

    def empty_caches(self, batch: int, length: int, *, states: int = 0) -> list[KeyValueCache]:
        """Caches for sequences of `length` tokens, one for each block."""
        like, channels = self.start, self.config.width // self.heads
        return [KeyValueCache.empty(batch, self.heads, length, channels, like=like) for _ in self.transformer_blocks]
