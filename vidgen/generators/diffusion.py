"""Flow-matching diffusion transformer over tokens: noise in, velocity out (DiT, SD3, STIV's frame replacement)."""

from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks the loader up in this module
from einops import rearrange
from torch import Tensor, nn

from vidgen.conditioning import Condition, TokenState
from vidgen.generators.base import Generator, token_weights
from vidgen.generators.embedding import KnownEmbedding, PlaceEmbedding, TextProjection
from vidgen.kernels import AttentionSpec
from vidgen.latents import Latents, LatentSpec
from vidgen.nn.positions import level_features, positions, rotary
from vidgen.nn.random import Generators, randn
from vidgen.nn.transformer import ModulatedBlock

LEVELS = 1000.0  # diffusers counts noise levels in thousandths


class DiffusionTransformer(Generator, ConfigMixin):
    """Velocity of the flow from noise to tokens, for any spec; reals even where the tokenizer is discrete.

    Args:
        latent_spec: `LatentSpec.to_json()` of the tokenizer.
        text_width: length of the condition states.
        width, layers, heads: of the transformer; expansion: of its feed-forward.
        patch: tokens along (t, h, w) that the transformer takes as one; other than (1, 1, 1) needs a grid spec.
        token_weight: strength of `token_weights` in the loss.
        level_mean, level_std: of the logit-normal noise levels (SD3, arXiv 2403.03206, section 3.1).
        control_layers, has_references: what `add_control` and `add_references` have added.
    """

    _supports_gradient_checkpointing = False
    _no_split_modules: ClassVar[list[str]] = ["ModulatedBlock"]
    _repeated_blocks: ClassVar[list[str]] = ["ModulatedBlock"]

    @register_to_config
    def __init__(
        self,
        latent_spec: dict[str, Any],
        text_width: int = 192,
        width: int = 256,
        layers: int = 6,
        heads: int = 8,
        expansion: float = 4.0,
        patch: tuple[int, int, int] = (1, 1, 1),
        token_weight: float = 0.0,
        level_mean: float = 0.0,
        level_std: float = 1.0,
        control_layers: int = 0,
        has_references: bool = False,
    ) -> None:
        super().__init__()
        self.spec = LatentSpec.from_json(latent_spec)
        self.heads, self.patch = heads, (patch[0], patch[1], patch[2])
        if self.patch != (1, 1, 1) and not self.spec.is_grid:
            raise ValueError(f"patch {self.patch} needs tokens on one thw grid; this spec has {self.spec.parts}")
        folded = self.spec.channels * patch[0] * patch[1] * patch[2]
        self.proj_in = nn.Linear(folded, width)
        self.place_embedding = PlaceEmbedding(self.spec, width)
        self.known_embedding = KnownEmbedding(self.spec, width)
        self.text_projection = TextProjection(text_width, width)
        self.level_embedding = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.to_modulation = nn.Linear(width, 6 * width)
        self.transformer_blocks = nn.ModuleList(
            ModulatedBlock(width, heads, expansion=expansion) for _ in range(layers)
        )
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation_out = nn.Linear(width, 2 * width)
        self.proj_out = nn.Linear(width, folded)
        for layer in (self.to_modulation, self.modulation_out, self.proj_out):  # adaLN-zero: blocks start as nothing
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        if control_layers:
            self.add_control(control_layers)
        if has_references:
            self.add_references()

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        coordinates: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        known_tokens: Tensor | None = None,
        token_state: Tensor | None = None,
        control: Tensor | None = None,
    ) -> Tensor:
        """Velocity ε - x of each token, `b n c`.

        Args:
            hidden_states: noisy tokens `b n c`; KNOWN tokens are replaced by `known_tokens` at noise level 0.
            timestep: `b` or `b n`, noise level σ · 1000.
            coordinates: `n 5` of `LatentSpec.coordinates`.
            encoder_hidden_states, encoder_attention_mask: states `b l d` and bool `b l` or `b n l`.
            known_tokens, token_state: encoded condition video `b n c` and its states `b n`.
            control: features `b n d` of the control branch.
        """
        level = timestep / LEVELS
        x = hidden_states
        if known_tokens is not None and token_state is not None:
            known = token_state == TokenState.KNOWN
            x = torch.where(known.unsqueeze(-1), known_tokens.to(x.dtype), x)
            level = torch.where(known, 0.0, level if level.ndim == 2 else level[:, None])
        level = level[:, None] if level.ndim == 1 else level
        grid = self.token_grid(coordinates)
        features = level_features(level, self.config.width).to(x.dtype)

        x = self.proj_in(self.fold(x, grid)) + self.place_embedding(self.folded_coordinates(coordinates, grid))
        if known_tokens is not None:
            x = x + self.fold(self.known_embedding(known_tokens, token_state), grid, mean=True)
        if control is not None:
            x = x + self.fold(control, grid, mean=True)
        states, mask = self.text_projection(encoder_hidden_states, encoder_attention_mask)
        if mask.ndim == 3:
            mask = self.fold(mask.to(x.dtype), grid, mean=True) > 0
        told = self.level_embedding(features)
        told = told if told.shape[1] == 1 else self.fold(told, grid, mean=True)
        modulation = rearrange(self.to_modulation(nn.functional.silu(told)), "b n (six d) -> b n six d", six=6)

        places = positions(self.folded_coordinates(coordinates, grid), self.folded_unit)
        turns = rotary(places, x.shape[-1] // self.heads)
        everything = AttentionSpec.sequence(x.shape[1])
        for block in self.transformer_blocks:
            x = block(x, states, mask, modulation, everything, turns)
        shift, scale = self.modulation_out(nn.functional.silu(told)).chunk(2, dim=-1)
        x = self.proj_out(self.norm_out(x) * (1 + scale) + shift)
        return self.unfold(x, grid)

    def losses(self, latents: Latents, condition: Condition, *, generators: Generators) -> dict[str, Tensor]:
        clean = latents.tokens.float()
        noise = randn(clean.shape, generators, like=clean)
        logits = self.config.level_mean + self.config.level_std * randn((len(latents),), generators, like=clean)
        level = torch.sigmoid(logits)
        noisy = (1 - level[:, None, None]) * clean + level[:, None, None] * noise
        coordinates = latents.spec.coordinates(latents.size).to(clean.device)
        velocity = self(noisy, level * LEVELS, coordinates, **self.condition_inputs(condition, coordinates))
        weights = token_weights(latents, self.config.token_weight) if self.config.token_weight else 1.0
        if condition.token_state is not None:
            weights = weights * (condition.token_state != TokenState.KNOWN)
        error = (velocity.float() - (noise - clean)).square().mean(dim=-1) * weights
        return {"flow": error.mean()}

    # tokens to patches of tokens and back

    @property
    def folded_unit(self) -> tuple[int, int, int]:
        unit = self.spec.unit
        return unit[0] * self.patch[0], unit[1] * self.patch[1], unit[2] * self.patch[2]

    def token_grid(self, coordinates: Tensor) -> tuple[int, int, int] | None:
        """Extents of the token grid, read off the coordinates; `None` where tokens are not folded."""
        if self.patch == (1, 1, 1):
            return None
        extents = [int(coordinates[:, axis].unique().numel()) for axis in (2, 3, 4)]
        return extents[0], extents[1], extents[2]

    def fold(self, x: Tensor, grid: tuple[int, int, int] | None, *, mean: bool = False) -> Tensor:
        """`b n c -> b n' (c · patch)`, or the mean over each patch's tokens; a ragged border is padded with zeros."""
        if grid is None:
            return x
        t, h, w = grid
        x = rearrange(x, "b (t h w) c -> b c t h w", t=t, h=h, w=w)
        missing = [-extent % step for extent, step in zip(grid, self.patch, strict=True)]
        x = nn.functional.pad(x, (0, missing[2], 0, missing[1], 0, missing[0]))
        p, q, r = self.patch
        x = rearrange(x, "b c (t p) (h q) (w r) -> b (t h w) (p q r) c", p=p, q=q, r=r)
        if not mean:
            return x.flatten(2)
        tokens_in_patch = self.fold(x.new_ones(1, t * h * w, 1), grid).sum(dim=2, keepdim=True)
        return x.sum(dim=2) / tokens_in_patch

    def unfold(self, x: Tensor, grid: tuple[int, int, int] | None) -> Tensor:
        if grid is None:
            return x
        p, q, r = self.patch
        t, h, w = (-(-extent // step) for extent, step in zip(grid, self.patch, strict=True))
        x = rearrange(x, "b (t h w) (p q r c) -> b c (t p) (h q) (w r)", t=t, h=h, w=w, p=p, q=q, r=r)
        x = x[:, :, : grid[0], : grid[1], : grid[2]]
        return rearrange(x, "b c t h w -> b (t h w) c")

    def folded_coordinates(self, coordinates: Tensor, grid: tuple[int, int, int] | None) -> Tensor:
        """Coordinates of the first token of each patch."""
        if grid is None:
            return coordinates
        rows = coordinates.view(*grid, 5)[:: self.patch[0], :: self.patch[1], :: self.patch[2]]
        return rows.reshape(-1, 5)
