"""Diffusion transformer over tokens: noisy tokens in, velocity or noise out (DiT, SD3, Latte, STIV, ViD-GPT…)."""

from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks the loader up in this module
from einops import rearrange
from torch import Tensor, nn

from vidgen.conditioning import Condition, TokenState
from vidgen.generators.base import Generator, made_weights, weighted_mean
from vidgen.generators.embedding import KnownEmbedding, PlaceEmbedding, TextProjection
from vidgen.generators.layouts import FrameCausal, Full, layout_named
from vidgen.generators.patches import Grid, Patches, token_extents
from vidgen.latents import Latents, LatentSpec
from vidgen.nn.frame_cache import FrameCache
from vidgen.nn.joint_transformer import JointBlock, SingleStreamBlock, joint_mask
from vidgen.nn.positions import level_features, positions, rotary
from vidgen.nn.random import Generators, randn
from vidgen.nn.reduced_attention import ReducedAttention, ReductionRun
from vidgen.nn.transformer import ModulatedBlock, OwnModulationBlock
from vidgen.schedulers.objectives import LEVELS, objective_named

TEXT_PATHS = ("cross", "joint", "modulation")
JUDGED_LEVELS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # of noise in `plausibility`; above them errors say little of the tokens


class DiffusionTransformer(Generator, ConfigMixin, CacheMixin):
    """What is noise in noisy tokens, for any spec; reals even where the tokenizer is discrete.

    Args:
        latent_spec: `LatentSpec.to_json()` of the tokenizer.
        text_width: length of the condition states.
        width, layers, heads: of the transformer; expansion: of its feed-forward.
        patch: tokens along (t, h, w) that the transformer takes as one; other than (1, 1, 1) needs a grid spec.
        token_weight: strength of `token_weights` in the loss.
        level_mean, level_std: of the logit-normal noise levels (SD3, arXiv 2403.03206, section 3.1).
        attention, attention_options: name in `LAYOUTS` and arguments of that class.
        text_path: how text or class states act: "cross" (cross-attention), "joint" (two streams in one attention,
            MM-DiT) or "modulation" (adaLN, Latte's class labels; also part of "joint").
        single_layers: blocks behind the `layers` in which text and tokens are one stream (Flux); "joint" text alone.
        sandwich_norm: what attention and feed-forward give is normalised too, not only what they take (STIV).
        shared_modulation: one map of the noise level for all blocks (adaLN-single) or one in each (adaLN-zero).
        objective: "flow", or DDPM's "epsilon" or "v_prediction"; noise_schedule: arguments of diffusers'
            `DDPMScheduler` for those two; shift_base_tokens: of `FlowObjective`.
        level_frames: latent frames that share a noise level in training (Diffusion Forcing, arXiv 2407.01392);
            0 = the whole clip.
        text_dropped: share of the training samples without text, `None` = not recorded.
        control_layers, has_references: what `add_control` and `add_references` have added.
    """

    _supports_gradient_checkpointing = False
    _no_split_modules: ClassVar[list[str]] = ["ModulatedBlock", "OwnModulationBlock", "JointBlock", "SingleStreamBlock"]
    _repeated_blocks: ClassVar[list[str]] = _no_split_modules

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
        attention: str = "full",
        attention_options: dict[str, Any] | None = None,
        text_path: str = "cross",
        single_layers: int = 0,
        sandwich_norm: bool = False,
        shared_modulation: bool = True,
        objective: str = "flow",
        noise_schedule: dict[str, Any] | None = None,
        shift_base_tokens: int = 0,
        level_frames: int = 0,
        text_dropped: float | None = None,
        control_layers: int = 0,
        has_references: bool = False,
    ) -> None:
        super().__init__()
        self.spec = LatentSpec.from_json(latent_spec)
        self.heads, self.patches = heads, Patches((patch[0], patch[1], patch[2]))
        self.layout = layout_named(attention, attention_options)
        for option, needed in (
            (f"patch {self.patches.size}", not self.patches.is_trivial),
            (f"attention {attention!r}", self.layout.needs_grid),
            (f"level_frames {level_frames}", level_frames > 0),
        ):
            if needed and not self.spec.is_grid:
                raise ValueError(f"{option} needs tokens on one thw grid; this spec has {self.spec.parts}")
        if text_path not in TEXT_PATHS:
            raise ValueError(f"text_path must be one of {', '.join(TEXT_PATHS)}, got {text_path!r}")
        if text_path == "joint" and attention != "full":
            raise ValueError(f"joint text streams need attention 'full', got {attention!r}; use text_path 'cross'")
        if text_path == "joint" and sandwich_norm:
            raise ValueError("sandwich_norm belongs to blocks of one stream; use text_path 'cross' or 'modulation'")
        if text_path != "joint" and single_layers:
            raise ValueError(f"single_layers follow joint text streams; use text_path 'joint', got {text_path!r}")
        self.text_path, self.shared_modulation, self.level_frames = text_path, shared_modulation, level_frames
        self.training_objective = objective_named(
            objective,
            mean=level_mean,
            std=level_std,
            shift_base_tokens=shift_base_tokens,
            schedule=noise_schedule,
        )
        folded = self.spec.channels * patch[0] * patch[1] * patch[2]
        self.proj_in = nn.Linear(folded, width)
        self.place_embedding = PlaceEmbedding(self.spec, width)
        self.known_embedding = KnownEmbedding(self.spec, width)
        self.text_projection = TextProjection(text_width, width)
        self.level_embedding = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        maps = []
        if shared_modulation and text_path != "joint":
            self.to_modulation = nn.Linear(width, 6 * width)
            maps = [self.to_modulation]
        if text_path == "joint":
            blocks: list[nn.Module] = [JointBlock(width, heads, expansion=expansion) for _ in range(layers)]
            blocks += [SingleStreamBlock(width, heads, expansion=expansion) for _ in range(single_layers)]
        else:
            kind = ModulatedBlock if shared_modulation else OwnModulationBlock
            options: dict[str, Any] = {"expansion": expansion, "mixer": self.layout.mixer, "sandwich": sandwich_norm}
            blocks = [kind(width, heads, **options, cross=text_path == "cross") for _ in range(layers)]
        self.transformer_blocks = nn.ModuleList(blocks)
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation_out = nn.Linear(width, 2 * width)
        self.proj_out = nn.Linear(width, folded)
        for layer in (*maps, self.modulation_out, self.proj_out):  # adaLN-zero: blocks start as nothing
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
        grid: Grid | None = None,
        cache: FrameCache | None = None,
        control: Tensor | None = None,
        reduction: ReductionRun | None = None,
    ) -> Tensor:
        """The objective's target for each token, by default the velocity ε - x: `b n c`.

        Args:
            hidden_states: noisy tokens `b n c`; KNOWN tokens are replaced by `known_tokens` at noise level 0.
            timestep: `b` or `b n`, noise level σ · 1000.
            coordinates: `n 5` of `LatentSpec.coordinates`.
            encoder_hidden_states, encoder_attention_mask: states `b l d`, and which of them which tokens see: bool
                `b l` or `b n l`, or a bias on the attention to them in the same shapes.
            known_tokens, token_state: encoded condition video `b n c` and its states `b n`.
            grid: (t, h, w) of the tokens, needed by patches and by all layouts but full attention.
            cache: clean frames before these tokens, which are then the frames that follow; needs frame-causal
                attention.
            control: features `b n d` of the control branch.
            reduction: leaves tokens out of full attention, at the step at which it stands.
        """
        if grid is None and (self.layout.needs_grid or not self.patches.is_trivial):
            raise ValueError("this transformer needs the (t, h, w) of its tokens: give grid, as condition_inputs does")
        level = timestep / LEVELS
        x, patches = hidden_states, self.patches
        if known_tokens is not None and token_state is not None:
            known = token_state == int(TokenState.KNOWN)
            x = torch.where(known.unsqueeze(-1), known_tokens.to(x.dtype), x)
            level = torch.where(known, 0.0, level if level.ndim == 2 else level[:, None])
        level = level[:, None] if level.ndim == 1 else level
        features = level_features(level, self.config.width).to(x.dtype)

        x = self.proj_in(patches.fold(x, grid))
        coordinates = patches.coordinates(coordinates, grid)
        x = x + self.place_embedding(coordinates)
        if known_tokens is not None:
            x = x + patches.mean(self.known_embedding(known_tokens, token_state), grid)
        if control is not None:
            x = x + patches.mean(control, grid)
        states, mask = self.text_projection(encoder_hidden_states, encoder_attention_mask)
        if mask.ndim == 3:
            folded_mask = patches.mean(mask.to(x.dtype), grid)
            mask = folded_mask if mask.is_floating_point() else folded_mask > 0
        told = self.level_embedding(features)
        told = told if told.shape[1] == 1 else patches.mean(told, grid)
        of_level = nn.functional.silu(told.mean(dim=1, keepdim=True))
        if self.text_path != "cross":
            told = told + pooled(states, mask)
        told = nn.functional.silu(told)

        turns = rotary(positions(coordinates, patches.unit(self.spec.unit)), x.shape[-1] // self.heads)
        reduced = self.reduced(grid, reduction)
        if self.text_path == "joint":
            together = joint_mask(mask, x.shape[1])
            for block, fewer in zip(self.transformer_blocks, reduced, strict=True):
                x, states = block(x, states, together, told, of_level, turns, fewer)
        else:
            modulation = told
            if self.shared_modulation:
                modulation = rearrange(self.to_modulation(told), "b n (six d) -> b n six d", six=6)
            whole = self.patterns(x.shape[1], grid, cache)
            patterns = [pattern if fewer is None else fewer for pattern, fewer in zip(whole, reduced, strict=True)]
            memories = [None] * len(patterns) if cache is None else cache.layers
            for block, pattern, memory in zip(self.transformer_blocks, patterns, memories, strict=True):
                x = block(x, states, mask, modulation, pattern, turns, memory)
        shift, scale = self.modulation_out(told).chunk(2, dim=-1)
        x = self.proj_out(self.norm_out(x) * (1 + scale) + shift)
        return patches.unfold(x, grid)

    def losses(self, latents: Latents, condition: Condition, *, generators: Generators) -> dict[str, Tensor]:
        self.check_spec(latents.spec)
        noise = randn(latents.tokens.shape, generators, like=latents.tokens.float())
        error = self.errors(latents, condition, noise, self.random_timesteps(latents, generators))
        loss = weighted_mean(error, made_weights(latents, condition, self.config.token_weight)).mean()
        return {self.config.objective: loss}

    def plausibility(self, latents: Latents, condition: Condition, *, generators: Generators) -> Tensor:
        """Minus the error at noise levels of `JUDGED_LEVELS`, weighted as in training (arXiv 2303.16203)."""
        self.check_spec(latents.spec)
        weights = made_weights(latents, condition, self.config.token_weight)
        total = torch.zeros(len(latents), device=latents.tokens.device)
        for level in JUDGED_LEVELS:
            noise = randn(latents.tokens.shape, generators, like=latents.tokens.float())
            timestep = torch.full((len(latents), 1), level * LEVELS, device=noise.device)
            self._reset_stateful_cache()  # a step cache would take this for one more step of a sampling
            with self.cache_context("plausibility"):
                total -= weighted_mean(self.errors(latents, condition, noise, timestep), weights)
        self._reset_stateful_cache()
        return total / len(JUDGED_LEVELS)

    def errors(self, latents: Latents, condition: Condition, noise: Tensor, timestep: Tensor) -> Tensor:
        """`b n`: squared error of what the network says of tokens under noise at a timestep, `b 1` or `b n`."""
        clean = latents.tokens.float()
        noisy = self.training_objective.noisy(clean, noise, timestep)
        coordinates = latents.spec.coordinates(latents.size).to(clean.device)
        inputs = self.condition_inputs(condition, coordinates)
        said = self(noisy.to(self.dtype), timestep.squeeze(1), coordinates, **inputs)
        return (said.float() - self.training_objective.target(clean, noise, timestep)).square().mean(dim=-1)

    def random_timesteps(self, latents: Latents, generators: Generators) -> Tensor:
        """`b 1`, or `b n` with one level for each `level_frames` latent frames."""
        like, tokens = latents.tokens.float(), latents.tokens.shape[1]
        if not self.level_frames:
            draws = randn((len(latents), 1), generators, like=like)
            return self.training_objective.timesteps(draws, tokens=tokens)
        frames = self.spec.grid(latents.size)[0]
        draws = randn((len(latents), -(-frames // self.level_frames)), generators, like=like)
        frame_of_token = torch.arange(tokens, device=like.device) // (tokens // frames)
        return self.training_objective.timesteps(draws[:, frame_of_token // self.level_frames], tokens=tokens)

    def condition_inputs(self, condition: Condition, coordinates: Tensor) -> dict[str, Any]:
        grid = token_extents(coordinates) if self.spec.is_grid else None
        return {**super().condition_inputs(condition, coordinates), "grid": grid}

    # attention

    def patterns(self, patches: int, grid: Grid | None, cache: FrameCache | None) -> list[Any]:
        """What the mixer of each layer is told, for so many patches in all."""
        layers = len(self.transformer_blocks)
        grid = (patches, 1, 1) if grid is None or not self.layout.needs_grid else self.patches.grid(grid)
        if cache is None:
            return [self.layout.pattern(grid, layer, layers) for layer in range(layers)]
        if not isinstance(self.layout, FrameCausal):
            raise ValueError("a cache of clean frames needs attention 'frame-causal': other layouts see later frames")
        return [self.layout.next_frames(grid, cache.frames)] * layers

    def reduced(self, grid: Grid | None, reduction: ReductionRun | None) -> list[ReducedAttention | None]:
        """What each block's attention is told instead of its pattern, where it leaves tokens out."""
        if reduction is None:
            return [None] * len(self.transformer_blocks)
        if not isinstance(self.layout, Full) or grid is None:
            raise ValueError(
                "token reduction needs attention 'full' over tokens on one thw grid; this transformer has attention "
                f"{self.config.attention!r} over {self.spec.parts}"
            )
        grid = self.patches.grid(grid)
        return [reduction.in_block(block, grid) for block in range(len(self.transformer_blocks))]

    def empty_cache(self, size: tuple[int, int, int]) -> FrameCache:
        """For a video of that size (frames, height, width) that is made chunk by chunk."""
        if not isinstance(self.layout, FrameCausal):
            raise ValueError("chunks need a transformer with attention 'frame-causal': other layouts see later frames")
        frames, height, width = self.spec.grid(size)
        _, height, width = self.patches.grid((frames, height, width))
        layers, layout = len(self.transformer_blocks), self.layout
        return FrameCache(layers, height * width, past_frames=layout.past_frames, sink_frames=layout.sink_frames)


def pooled(states: Tensor, mask: Tensor) -> Tensor:
    """The mean of the states that are seen: `b l d`, `b l` or `b n l` -> `b 1 d` or `b n d`."""
    if not mask.is_floating_point():
        mask = torch.zeros_like(mask, dtype=states.dtype).masked_fill(~mask, -torch.inf)
    weights = mask.to(states.dtype).softmax(dim=-1)
    return (weights[:, None] if weights.ndim == 2 else weights) @ states


for _block in (ModulatedBlock, OwnModulationBlock):  # diffusers' step caches ask what a block returns
    TransformerBlockRegistry.register(_block, TransformerBlockMetadata(return_hidden_states_index=0))
for _block in (JointBlock, SingleStreamBlock):
    TransformerBlockRegistry.register(
        _block, TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=1)
    )
