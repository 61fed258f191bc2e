"""Masked transformer: sees some tokens, predicts the rest, all at once (MaskGIT, MAGVIT; MAR for reals)."""

import math
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks the loader up in this module
from torch import Tensor, nn

from vidgen.conditioning import Condition, TokenState
from vidgen.generators.base import Generator, token_weights
from vidgen.generators.embedding import SCALE, KnownEmbedding, PlaceEmbedding, TextProjection, TokenEmbedding
from vidgen.generators.heads import build_head
from vidgen.kernels import AttentionSpec
from vidgen.latents import Latents, LatentSpec
from vidgen.nn.norms import RMSNorm
from vidgen.nn.positions import positions, rotary
from vidgen.nn.random import Generators, rand
from vidgen.nn.transformer import TransformerBlock


class MaskedTransformer(Generator, ConfigMixin):
    """Bidirectional transformer over the tokens of any spec.

    Args:
        latent_spec: `LatentSpec.to_json()` of the tokenizer.
        text_width: length of the condition states.
        width, layers, heads: of the transformer; expansion: of its feed-forward.
        token_weight: strength of `token_weights` in the loss.
        smallest_ratio: the mask ratio is cos(π/2 · u), at least this (MaskGIT, section 3.1).
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
        smallest_ratio: float = 0.0,
        control_layers: int = 0,
        has_references: bool = False,
    ) -> None:
        super().__init__()
        self.spec = LatentSpec.from_json(latent_spec)
        self.heads = heads
        self.token_embedding = TokenEmbedding(self.spec, width)
        self.masked = nn.Parameter(torch.randn(width) * SCALE)
        self.place_embedding = PlaceEmbedding(self.spec, width)
        self.known_embedding = KnownEmbedding(self.spec, width)
        self.text_projection = TextProjection(text_width, width)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(width, heads, expansion=expansion) for _ in range(layers)
        )
        self.norm_out = RMSNorm(width)
        self.proj_out = build_head(self.spec, width)
        if control_layers:
            self.add_control(control_layers)
        if has_references:
            self.add_references()

    def forward(
        self,
        tokens: Tensor,
        masked: Tensor,
        coordinates: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        known_tokens: Tensor | None = None,
        token_state: Tensor | None = None,
        control: Tensor | None = None,
    ) -> Tensor:
        """Hidden states `b n d` for `proj_out`.

        Args:
            tokens: ids `b n q` or reals `b n c`; anything where `masked`.
            masked: `b n` bool.
            coordinates: `n 5` of `LatentSpec.coordinates`.
            encoder_hidden_states, encoder_attention_mask: states `b l d` and bool `b l` or `b n l`.
            known_tokens, token_state: encoded condition video `b n c` and its states `b n`.
            control: features `b n d` of the control branch.
        """
        x = torch.where(masked.unsqueeze(-1), self.masked, self.token_embedding(tokens))
        x = x + self.place_embedding(coordinates)
        if known_tokens is not None:
            x = x + self.known_embedding(known_tokens, token_state)
        if control is not None:
            x = x + control
        states, mask = self.text_projection(encoder_hidden_states, encoder_attention_mask)
        turns = rotary(positions(coordinates, self.spec.unit), x.shape[-1] // self.heads)
        everything = AttentionSpec.sequence(x.shape[1])
        for block in self.transformer_blocks:
            x = block(x, states, mask, everything, turns)
        return self.norm_out(x)

    def losses(self, latents: Latents, condition: Condition, *, generators: Generators) -> dict[str, Tensor]:
        target = latents.tokens if latents.ids is None else latents.ids
        masked = self.random_mask(condition, target.shape[:2], generators).to(target.device)
        coordinates = latents.spec.coordinates(latents.size).to(target.device)
        hidden = self(target, masked, coordinates, **self.condition_inputs(condition, coordinates))
        weights = token_weights(latents, self.config.token_weight) * masked
        loss = self.proj_out.loss(hidden, target, generators=generators)
        return {"masked": ((loss * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-6)).mean()}

    def random_mask(self, condition: Condition, shape: torch.Size, generators: Generators) -> Tensor:
        """`b n` bool: of the tokens that are not known, ⌈ratio · count⌉ at random, at least one; ratio cos(π/2 · u)."""
        batch, count = shape
        unknown = torch.ones(batch, count, dtype=torch.bool)
        if condition.token_state is not None:
            unknown = (condition.token_state != TokenState.KNOWN).cpu()
        ratio = torch.cos(math.pi / 2 * rand((batch,), generators)).clamp(min=self.config.smallest_ratio).cpu()
        wanted = (ratio * unknown.sum(dim=1)).ceil().long().clamp(min=1)
        scores = rand((batch, count), generators).cpu().masked_fill(~unknown, 2.0)
        rank = scores.argsort(dim=1).argsort(dim=1)
        return (rank < wanted[:, None]) & unknown
