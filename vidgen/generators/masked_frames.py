"""Masked transformer that makes one frame after the other, each in any order (MAGI, arXiv 2501.12389).

Training shows every frame twice, whole and masked: the masked tokens of all frames are predicted at once, from what is
left of their own frame and from the whole frames before it ("complete teacher forcing"), which is what the sampler
meets. Where all tokens see each other, such a sampler can be taught one frame of a clip alone (`time_order_share`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks the loader up in this module
from torch import Tensor
from torch.nn import functional as F

from vidgen.conditioning import Condition
from vidgen.generators.masked import MaskedTransformer, masked_share
from vidgen.generators.patches import Grid
from vidgen.kernels import AttentionSpec, masked_attention
from vidgen.nn.positions import positions, rotary
from vidgen.nn.random import Generators, rand
from vidgen.nn.transformer import KeyValueCache


@dataclass(frozen=True)
class TeacherForced:
    """Attention over the tokens of a video and, behind them, the same tokens masked.

    Args:
        frames: `n`, the frame of each token. A whole token sees the whole ones of its frame and of those before; a
            masked copy sees the whole ones of the frames before, and the copies of its own frame.
    """

    frames: Tensor

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`b h 2n d`, three times -> `b h 2n d`."""
        query, key = self.frames[:, None], self.frames[None]
        of_whole = torch.cat([key <= query, torch.zeros_like(key == query)], dim=1)
        of_masked = torch.cat([key < query, key == query], dim=1)
        return masked_attention(q, k, v, torch.cat([of_whole, of_masked]))


@dataclass
class WholeFrames:
    """Keys and values of the first frames, which are whole in all samples, between the steps of a sampler.

    Args:
        frames: how many are kept.
        caches: of each layer; the network fills them in.
    """

    frames: int = 0
    caches: list[KeyValueCache] = field(default_factory=list)

    def begin(self, x: Tensor, layers: int, heads: int) -> list[KeyValueCache]:
        """The caches, with room for all tokens `b n d`."""
        if not self.caches:
            batch, count, width = x.shape
            self.caches = [KeyValueCache.empty(batch, heads, count, width // heads, like=x) for _ in range(layers)]
        return self.caches

    def keep(self, masked: Tensor, grid: Grid) -> None:
        """Of the keys and values that have come those of the frames before the first with `masked` (`b n`) tokens, or
        before the last one where nothing is masked any more."""
        begun = masked.any(dim=0).unflatten(0, (grid[0], -1)).any(dim=1)
        self.frames = min(int((begun.cumsum(dim=0) == 0).sum()), grid[0] - 1)
        for cache in self.caches:
            cache.filled = self.frames * grid[1] * grid[2]


class FrameMaskedTransformer(MaskedTransformer):
    """`MaskedTransformer` whose tokens see their own frame and those before; sampled with `choice_order="frame"`.

    What is known of later frames is not seen, so it continues a video and fills gaps of its frames, and does not
    interpolate.

    Args:
        latent_spec … action_channels, head_type …: those of `MaskedTransformer`, but for `smallest_ratio`,
            `time_order_share`, `windows`, `spectral_attention` and `self_critic_weight`.

    Raises:
        ValueError: the tokens lie on no thw grid.
    """

    # what the parent's constructor would register, and this one does not take
    ignore_for_config: ClassVar[list[str]] = [
        "smallest_ratio",
        "time_order_share",
        "windows",
        "spectral_attention",
        "self_critic_weight",
    ]

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
        tasks: int = 0,
        refine_weight: float = 1.0,
        reconstruction_weight: float = 0.0,
        action_channels: int = 0,
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
            tasks=tasks,
            refine_weight=refine_weight,
            reconstruction_weight=reconstruction_weight,
            action_channels=action_channels,
            head_type=head_type,
            head_options=head_options,
            text_dropped=text_dropped,
            control_layers=control_layers,
            has_references=has_references,
        )
        if not self.spec.is_grid:
            raise ValueError(
                f"frame after frame needs tokens on one thw grid, got {self.spec.parts}; use MaskedTransformer"
            )

    @property
    def needs_grid(self) -> bool:
        return True

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
        grid: Grid | None = None,
        teacher_forced: bool = False,
        memory: WholeFrames | None = None,
    ) -> Tensor:
        """As `MaskedTransformer.forward`, `b n d`.

        Args:
            teacher_forced: `tokens` are those of a whole video, and each frame's masked ones are predicted from the
                whole frames before it.
            memory: of the same video and condition at earlier steps; frames that it keeps come back as zeros.
        """
        situation = (coordinates, known_tokens, token_state, control)
        whole = self.token_embedding(tokens)
        x = self.situated(torch.where(masked.unsqueeze(-1), self.masked, whole), *situation)
        states, mask = self.told(encoder_hidden_states, encoder_attention_mask, task)
        if teacher_forced:
            x = torch.cat([self.situated(whole, *situation), x], dim=1)
            mask = mask if mask.ndim == 2 else mask.repeat(1, 2, 1)
            hidden = self.blocks(x, states, mask, coordinates.repeat(2, 1), TeacherForced(coordinates[:, 2]))
            return self.norm_out(hidden[:, len(coordinates) :])
        if grid is None:
            raise ValueError("frame after frame needs the (t, h, w) of the tokens: give grid, as condition_inputs does")
        pattern = AttentionSpec.frame_causal(grid)
        if memory is None:
            return self.norm_out(self.blocks(x, states, mask, coordinates, pattern))
        frames, kept = grid[0] - memory.frames, memory.frames * grid[1] * grid[2]
        pattern = pattern.decode(frames, offset=memory.frames)
        mask = mask if mask.ndim == 2 else mask[:, kept:]
        caches = memory.begin(x, len(self.transformer_blocks), self.heads)
        hidden = self.blocks(x[:, kept:], states, mask, coordinates[kept:], pattern, caches)
        memory.keep(masked, grid)
        return F.pad(self.norm_out(hidden), (0, 0, kept, 0))

    def blocks(
        self,
        x: Tensor,
        states: Tensor,
        mask: Tensor,
        coordinates: Tensor,
        pattern: AttentionSpec | TeacherForced,
        caches: Sequence[KeyValueCache | None] | None = None,
    ) -> Tensor:
        """The layers: embedded tokens `b n d` at coordinates `n 5` -> `b n d`."""
        turns = rotary(positions(coordinates, self.spec.unit), x.shape[-1] // self.heads)
        caches = [None] * len(self.transformer_blocks) if caches is None else caches
        for block, cache in zip(self.transformer_blocks, caches, strict=True):
            x = block(x, states, mask, pattern, turns, cache)
        return x

    def empty_memories(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"memory": WholeFrames()}, {"memory": WholeFrames()}

    def predicted(self, tokens: Tensor, masked: Tensor, coordinates: Tensor, **inputs: Any) -> Tensor:
        return self(tokens, masked, coordinates, **inputs, teacher_forced=True)

    def random_mask(
        self, condition: Condition, times: Tensor, batch: int, generators: Generators
    ) -> tuple[Tensor, Tensor]:
        """As the parent's; of each frame a share of its own is masked, evenly drawn: a sampler meets all alike."""
        frames = len(times.unique())
        ratio, scores = rand((batch, frames), generators).cpu(), rand((batch, len(times)), generators).cpu()
        unknown, scores = (each.reshape(batch * frames, -1) for each in (condition.unknown(len(times)).cpu(), scores))
        masked = masked_share(unknown, ratio.flatten(), scores).view(batch, -1)
        return masked, masked
