"""Masked transformer: sees some tokens, predicts the rest, all at once (MaskGIT, MAGVIT; MAR for reals)."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks the loader up in this module
from torch import Tensor, nn
from torch.nn import functional as F

from vidgen.conditioning import NO_TASK, Condition, TokenState
from vidgen.generators.base import Generator, seen, token_weights, weighted_mean, with_states
from vidgen.generators.control import ActionEmbedding
from vidgen.generators.embedding import SCALE, KnownEmbedding, PlaceEmbedding, TextProjection, TokenEmbedding
from vidgen.generators.head_choice import chosen_head
from vidgen.generators.patches import Grid, token_extents
from vidgen.kernels import AttentionSpec
from vidgen.latents import Latents, LatentSpec
from vidgen.nn.norms import RMSNorm
from vidgen.nn.positions import positions, rotary
from vidgen.nn.random import Generators, rand
from vidgen.nn.spectral import SpectralAttention, frequency_places
from vidgen.nn.transformer import Attention, TransformerBlock
from vidgen.schedulers.sampling import SamplingRule

JUDGED_RATIOS = (0.25, 0.5, 0.75, 0.9)  # of masks in `plausibility`; with all tokens masked it says little


class MaskedTransformer(Generator, ConfigMixin):
    """Bidirectional transformer over the tokens of any spec.

    Args:
        latent_spec: `LatentSpec.to_json()` of the tokenizer.
        text_width: length of the condition states.
        width, layers, heads: of the transformer; expansion: of its feed-forward.
        token_weight: strength of `token_weights` in the loss.
        smallest_ratio: the mask ratio is cos(π/2 · u), at least this (MaskGIT, section 3.1).
        time_order_share: of the training samples, whose masked tokens are the last ones in time and whose loss asks for
            the next frame alone: what a sampler with `choice_order="time"` meets.
        tasks: how many tasks the network is told apart by a state of their own; 0 = it does not hear `Condition.task`.
        refine_weight: of masked tokens some of whose pixels are known (COMMIT's refine loss, MAGVIT, equation 5).
        reconstruction_weight: of tokens that the network sees and gives back (COMMIT's reconstruction loss).
        windows: (frames, rows, columns) of tokens that attend to each other, one for each layer in turn, 0 = the whole
            axis; () = all tokens. MaskViT (arXiv 2206.11894) takes turns between single frames and tall windows.
        spectral_attention: self-attention is between the frequencies of each frame (`SpectralAttention`, MotionAura,
            arXiv 2410.07659), and windows are windows of frequencies.
        self_critic_weight: above 0, a head learns to tell the network's own drawings from true tokens (Phenaki,
            arXiv 2210.02399; Token-Critic, arXiv 2209.04439), and the sampler masks what it doubts.
        action_channels: numbers in an action, one of which leads to each frame (MaskViT); 0 = it takes none.
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
        smallest_ratio: float = 0.0,
        time_order_share: float = 0.0,
        tasks: int = 0,
        refine_weight: float = 1.0,
        reconstruction_weight: float = 0.0,
        windows: Sequence[Sequence[int]] = (),
        spectral_attention: bool = False,
        self_critic_weight: float = 0.0,
        action_channels: int = 0,
        head_type: str = "auto",
        head_options: dict[str, Any] | None = None,
        text_dropped: float | None = None,
        control_layers: int = 0,
        has_references: bool = False,
    ) -> None:
        super().__init__()
        self.spec = LatentSpec.from_json(latent_spec)
        if windows and not self.spec.is_grid:
            raise ValueError(f"windows need tokens on one thw grid, got {self.spec.parts}; leave windows empty")
        if spectral_attention and not self.spec.is_grid:
            raise ValueError(
                f"spectral_attention needs tokens on one thw grid, got {self.spec.parts}; leave it out for such tokens"
            )
        self.heads = heads
        self.windows = [tuple(window) for window in windows]
        self.spectral_attention = spectral_attention
        self.mixer = SpectralAttention if spectral_attention else Attention
        self.token_embedding = TokenEmbedding(self.spec, width)
        self.masked = nn.Parameter(torch.randn(width) * SCALE)
        self.place_embedding = PlaceEmbedding(self.spec, width)
        self.known_embedding = KnownEmbedding(self.spec, width)
        self.text_projection = TextProjection(text_width, width)
        self.task_embedding = TaskEmbedding(tasks, width) if tasks else None
        self.transformer_blocks = nn.ModuleList(
            self.build_block(width, heads, expansion=expansion) for _ in range(layers)
        )
        self.norm_out = RMSNorm(width)
        self.proj_out = chosen_head(self.spec, width, head_type, head_options)
        self.to_realness = nn.Linear(width, 1) if self_critic_weight > 0 else None
        self.action_embedding = ActionEmbedding(self.spec, action_channels, text_width) if action_channels else None
        if control_layers:
            self.add_control(control_layers)
        if has_references:
            self.add_references()

    def build_block(self, width: int, heads: int, *, expansion: float) -> nn.Module:
        return TransformerBlock(width, heads, expansion=expansion, mixer=self.mixer)

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
    ) -> Tensor:
        """Hidden states `b n d` for `proj_out`.

        Args:
            tokens: ids `b n q` or reals `b n c`; anything where `masked`.
            masked: `b n` bool.
            coordinates: `n 5` of `LatentSpec.coordinates`.
            encoder_hidden_states, encoder_attention_mask: states `b l d` and bool `b l` or `b n l`.
            known_tokens, token_state: encoded condition video `b n c` and its states `b n`.
            task: `b` long, which task each sample is.
            control: features `b n d` of the control branch.
            grid: (t, h, w) of the tokens, for a network with windows or spectral attention.
        """
        x = torch.where(masked.unsqueeze(-1), self.masked, self.token_embedding(tokens))
        x = self.situated(x, coordinates, known_tokens, token_state, control)
        states, mask = self.told(encoder_hidden_states, encoder_attention_mask, task)
        return self.norm_out(self.trunk(x, states, mask, coordinates, grid))

    def told(self, states: Tensor, mask: Tensor, task: Tensor | None) -> tuple[Tensor, Tensor]:
        """The condition states with those for "nothing was said" and the task in front, and who sees them."""
        states, mask = self.text_projection(states, mask)
        return (states, mask) if self.task_embedding is None else self.task_embedding(task, states, mask)

    def trunk(self, x: Tensor, states: Tensor, mask: Tensor, coordinates: Tensor, grid: Grid | None) -> Tensor:
        """The layers: embedded tokens `b n d`, condition states and who sees them -> `b n d`."""
        patterns = self.patterns(x.shape[1], grid)
        turns = rotary(self.places(coordinates, grid), x.shape[-1] // self.heads)
        for block, pattern in zip(self.transformer_blocks, patterns, strict=True):
            x = block(x, states, mask, pattern, turns)
        return x

    def places(self, coordinates: Tensor, grid: Grid | None) -> Tensor:
        """`n 3`: where self-attention finds the tokens, or the frequencies in their place."""
        places = positions(coordinates, self.spec.unit)
        return places if grid is None or not self.spectral_attention else frequency_places(places, grid)

    @property
    def needs_grid(self) -> bool:
        """Whether the network has to know the (t, h, w) of its tokens."""
        return bool(self.windows) or self.spectral_attention

    def patterns(self, tokens: int, grid: Grid | None, *, prefix: int = 0) -> list[AttentionSpec]:
        """Which tokens see each other in each layer, behind a prefix that sees and is seen by all."""
        layers = range(len(self.transformer_blocks))
        if not self.needs_grid:
            return [AttentionSpec.sequence(tokens, prefix=prefix) for _ in layers]
        if grid is None:
            raise ValueError(
                "windows and spectral attention need the (t, h, w) of the tokens: give grid, as condition_inputs does"
            )
        frames, rows, columns = grid
        windows = self.windows or [(0, 0, 0)]
        patterns = []
        for layer in layers:
            t, y, x = windows[layer % len(windows)]
            window = (t or frames, y or rows, x or columns)
            patterns.append(AttentionSpec.swin3d((frames, rows, columns), window, prefix=prefix))
        return patterns

    def realness(self, tokens: Tensor, coordinates: Tensor, **condition: Tensor | None) -> Tensor:
        """`b n`: logit that each token of a complete video is true and not drawn by this network."""
        if self.to_realness is None:
            raise ValueError("this network has no critic; train one with self_critic_weight above 0")
        nothing_masked = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return self.to_realness(self(tokens, nothing_masked, coordinates, **condition)).squeeze(-1)  # pyright: ignore

    def condition_inputs(self, condition: Condition, coordinates: Tensor) -> dict[str, Any]:
        inputs = {**super().condition_inputs(condition, coordinates), "task": condition.task}
        return {**inputs, "grid": token_extents(coordinates)} if self.needs_grid else inputs

    def with_actions(self, condition: Condition, actions: Tensor) -> Condition:
        """The condition with the action that leads to each frame, `b t a`, as more states (MaskViT)."""
        if self.action_embedding is None:
            raise ValueError("this network takes no actions; build it with action_channels and train it on them")
        return with_states(condition, *self.action_embedding(actions.to(condition.states)))

    def losses(self, latents: Latents, condition: Condition, *, generators: Generators) -> dict[str, Tensor]:
        """COMMIT's three terms (MAGVIT, equation 5), each a share of one weighted mean over the tokens of a sample:
        `masked` tokens of which nothing is known, `refined` ones that are partly known, `reconstructed` ones that are
        seen; and `critic`, the self-critic's. Known tokens are seen as the condition has them and have no part in it.
        """
        self.check_spec(latents.spec)
        target = latents.tokens if latents.ids is None else latents.ids
        coordinates = latents.spec.coordinates(latents.size)
        masked, asked = self.random_mask(condition, coordinates[:, 2], len(target), generators)
        masked, asked, coordinates = (tensor.to(target.device) for tensor in (masked, asked, coordinates))
        tokens, inputs = seen(target, condition), self.condition_inputs(condition, coordinates)
        hidden = self.predicted(tokens, masked, coordinates, **inputs, **self.training_inputs(masked, generators))
        loss = self.proj_out.loss(hidden, target, generators=generators)

        state = torch.zeros_like(masked, dtype=torch.long) if condition.token_state is None else condition.token_state
        kinds = {"masked": (asked & (state == TokenState.UNKNOWN)).float()}
        if condition.token_state is not None:
            kinds["refined"] = self.config.refine_weight * (asked & (state == TokenState.PARTIAL)).float()
        if self.config.reconstruction_weight > 0:
            visible = ~masked & (state != TokenState.KNOWN)
            kinds["reconstructed"] = self.config.reconstruction_weight * visible.float()
        weights = token_weights(latents, self.config.token_weight)
        total = (weights * torch.stack(list(kinds.values())).sum(dim=0)).sum(dim=1).clamp(min=1e-6)
        terms = {name: ((loss * weights * kind).sum(dim=1) / total).mean() for name, kind in kinds.items()}
        if self.to_realness is not None:
            drawn = self.draw(hidden.detach(), coordinates, generators)
            completed = torch.where(masked.unsqueeze(-1), drawn.to(tokens.dtype), tokens)
            doubt = F.binary_cross_entropy_with_logits(
                self.realness(completed, coordinates, **inputs), (~masked).float(), reduction="none"
            )
            judged = (state != TokenState.KNOWN).float()
            share = (doubt * judged).sum(dim=1) / judged.sum(dim=1).clamp(min=1)
            terms["critic"] = self.config.self_critic_weight * share.mean()
        return terms

    def plausibility(self, latents: Latents, condition: Condition, *, generators: Generators) -> Tensor:
        """Minus the loss of tokens that masks of `JUDGED_RATIOS` hide, given the others; a weighted mean."""
        self.check_spec(latents.spec)
        target = latents.tokens if latents.ids is None else latents.ids
        coordinates = latents.spec.coordinates(latents.size).to(target.device)
        tokens, inputs = seen(target, condition), self.condition_inputs(condition, coordinates)
        weights = token_weights(latents, self.config.token_weight)
        unknown = condition.unknown(target.shape[1]).cpu()
        total = torch.zeros(len(target), device=target.device)
        for ratio in JUDGED_RATIOS:
            masked = masked_share(unknown, torch.tensor(ratio), rand(unknown.shape, generators)).to(target.device)
            loss = self.proj_out.loss(
                self.predicted(tokens, masked, coordinates, **inputs), target, generators=generators
            )
            total -= weighted_mean(loss, weights * masked)
        return total / len(JUDGED_RATIOS)

    def predicted(self, tokens: Tensor, masked: Tensor, coordinates: Tensor, **inputs: Any) -> Tensor:
        """Hidden states `b n d` in training and judging, where `tokens` are those of a whole video."""
        return self(tokens, masked, coordinates, **inputs)

    def training_inputs(self, masked: Tensor, generators: Generators) -> dict[str, Tensor]:
        """What `forward` is told in training alone."""
        return {}

    def empty_memories(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What `forward` is told of its earlier steps, with the condition and without it."""
        return {}, {}

    @torch.no_grad()
    def draw(self, hidden: Tensor, coordinates: Tensor, generators: Generators) -> Tensor:
        """Tokens drawn from the network's own prediction, all at once."""
        rule, limits = SamplingRule(), self.limits(coordinates)
        return self.proj_out.sample(hidden, None, 1.0, generators=generators, rule=rule, limits=limits)[0]

    def random_mask(
        self, condition: Condition, times: Tensor, batch: int, generators: Generators
    ) -> tuple[Tensor, Tensor]:
        """`b n` bool, for tokens of these times (`n`): which are masked, and for which of these the loss asks.

        Of the tokens that are not known ⌈ratio · count⌉ are masked, at least one: at random with the ratio
        cos(π/2 · u), and the loss asks for all of them; or, for `time_order_share` of the samples, the last in time
        with ratio u, and it asks for those of the earliest time, which a sampler in the order of time draws next.
        """
        share = rand((batch,), generators).cpu()
        ratio = torch.cos(math.pi / 2 * share).clamp(min=self.config.smallest_ratio)
        scores = rand((batch, len(times)), generators).cpu()
        if self.config.time_order_share > 0:
            in_time = rand((batch,), generators).cpu() < self.config.time_order_share
            ratio = torch.where(in_time, share, ratio)
            scores = torch.where(in_time[:, None], scores - times, scores)
        masked = masked_share(condition.unknown(len(times)).cpu(), ratio, scores)
        if self.config.time_order_share == 0:
            return masked, masked
        earliest = torch.where(masked, times, times.max()).amin(dim=1, keepdim=True)
        return masked, masked & (~in_time[:, None] | (times == earliest))


def masked_share(unknown: Tensor, ratio: Tensor, scores: Tensor) -> Tensor:
    """`b n` bool: of the unknown tokens the ⌈ratio · count⌉ of lowest score, at least one; ratio is `b` or for all."""
    wanted = (ratio * unknown.sum(dim=1)).ceil().long().clamp(min=1)
    rank = scores.masked_fill(~unknown, 2.0).argsort(dim=1).argsort(dim=1)
    return (rank < wanted[:, None]) & unknown


class TaskEmbedding(nn.Module):
    """One more condition state that all tokens see: which task it is, or that none was named."""

    def __init__(self, tasks: int, width: int) -> None:
        super().__init__()
        self.states = nn.Embedding(tasks + 1, width)
        nn.init.normal_(self.states.weight, std=SCALE)

    def forward(self, task: Tensor | None, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`b` long or `None`, `b l d`, bool `b l` or `b n l` -> states and mask with the task in front."""
        if task is None:
            task = torch.full((len(states),), NO_TASK, device=states.device)
        told = self.states(task - NO_TASK).unsqueeze(1).to(states.dtype)
        always = torch.ones(*mask.shape[:-1], 1, dtype=torch.bool, device=mask.device)
        return torch.cat([told, states], dim=1), torch.cat([always, mask], dim=-1)
