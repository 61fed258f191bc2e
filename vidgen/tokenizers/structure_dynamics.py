"""Structure and dynamics (VidTwin): what stays over time in one part of tokens, what each frame does in two others."""

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks the loader up in this module
from einops import rearrange, repeat
from torch import Tensor, nn

from vidgen.bottlenecks import build_bottleneck
from vidgen.kernels import AttentionSpec
from vidgen.latents import LatentPart, Latents, LatentSpec, VideoSize
from vidgen.nn.norms import RMSNorm
from vidgen.nn.positions import rotary, sine_features
from vidgen.nn.transformer import CrossAttention, FeedForward
from vidgen.tokenizers.base import check_loss_weights
from vidgen.tokenizers.blockwise import pad
from vidgen.tokenizers.vit import Block, PatchEmbedding, PatchOutput, check_transformer, grid_places, learned_vectors
from vidgen.tokenizers.whole_clip import WholeClipTokenizer

MERGED = 2  # patches a side that share a token


class SpaceTimeTransformer(nn.Module):
    """Pairs of blocks over `b t h w d`, one within frames and one along time, and a norm."""

    def __init__(self, width: int, heads: int, *, layers: int) -> None:
        super().__init__()
        self.in_space = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.in_time = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm_out = RMSNorm(width)
        self.head_channels = width // heads

    def forward(self, x: Tensor) -> Tensor:
        b, t, h, w, _ = x.shape
        frame, line = (1, h, w), (t, 1, 1)
        frame_turns = rotary(grid_places(frame, device=x.device), self.head_channels)
        line_turns = rotary(grid_places(line, device=x.device), self.head_channels)
        for in_space, in_time in zip(self.in_space, self.in_time, strict=True):
            x = in_space(rearrange(x, "b t h w d -> (b t) (h w) d"), AttentionSpec.full(frame), frame_turns)
            x = rearrange(x, "(b t) (h w) d -> (b h w) t d", b=b, h=h)
            x = in_time(x, AttentionSpec.full(line), line_turns)
            x = rearrange(x, "(b h w) t d -> b t h w d", b=b, h=h)
        return self.norm_out(x)


class QueryLayer(nn.Module):
    """Queries look at states and think: x + cross-attention, + feed-forward (one layer of a Q-Former)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_cross = RMSNorm(width)
        self.cross_attn = CrossAttention(width, heads)
        self.norm_ff = RMSNorm(width)
        self.ff = FeedForward(width, expansion=4.0)

    def forward(self, queries: Tensor, states: Tensor) -> Tensor:
        """`b n d`, `b m d -> b n d`."""
        everything = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        queries = queries + self.cross_attn(self.norm_cross(queries), states, everything)
        return queries + self.ff(self.norm_ff(queries))


class StructureDynamicsTokenizer(WholeClipTokenizer, ConfigMixin):
    """VidTwin (arXiv 2412.17726, section 3): two latents that `swap` can exchange between videos.

    Structure: at every place a few queries look along time, then 2 × 2 places share their tokens. Dynamics: each frame,
    2 × 2 places together, averaged along its rows and along its columns. Decoding spreads both over (t, h, w), adds
    them and runs a transformer. The structure queries see every frame, so nothing streams, and a longer clip has more
    dynamics but not more structure.

    Args:
        bottleneck_type: a name in `vidgen.bottlenecks.BOTTLENECKS`.
        bottleneck_options, dynamics_options: keyword arguments of the bottleneck of the structure and of the dynamics.
        patch: pixels a side of a patch; a token stands for twice as many.
        queries: structure tokens at each place.
        width, heads: of the transformers.
        layers: pairs of blocks (space, time) of the encoder and of the decoder.
        query_layers: of the Q-Former and of its inverse.
        squared_weight: of the squared error beside the absolute one in training.
    """

    token_parts = (
        *("to_patches", "encoder", "structure_query", "gather", "to_structure"),
        *("to_dynamics", "to_rows", "to_columns", "bottlenecks"),
    )

    @register_to_config
    def __init__(
        self,
        bottleneck_type: str = "kl",
        bottleneck_options: dict[str, Any] | None = None,
        dynamics_options: dict[str, Any] | None = None,
        patch: int = 16,
        queries: int = 16,
        width: int = 768,
        heads: int = 12,
        layers: int = 8,
        query_layers: int = 2,
        squared_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_transformer(width=width, heads=heads, layers=min(layers, query_layers))
        if min(patch, queries) < 1:
            raise ValueError(f"patch and queries must be at least 1, got {patch} and {queries}")
        structure = build_bottleneck(bottleneck_type, bottleneck_options or {})
        dynamics = build_bottleneck(bottleneck_type, dynamics_options or {})
        bottlenecks = {"structure": structure, "dynamics": dynamics}
        self.register_parts(bottlenecks, ("structure", "dynamics", "dynamics"))
        check_loss_weights(squared_weight=squared_weight)
        self.queries, self.token, self.squared_weight = queries, MERGED * patch, squared_weight
        self.to_patches = PatchEmbedding((1, patch, patch), width, lone_first=False)
        self.encoder = SpaceTimeTransformer(width, heads, layers=layers)
        self.structure_query = learned_vectors(queries, width)
        self.gather = nn.ModuleList(QueryLayer(width, heads) for _ in range(query_layers))
        self.to_structure = nn.Linear(MERGED * MERGED * width, structure.in_channels)
        self.to_dynamics = nn.Linear(MERGED * MERGED * width, width)
        self.to_rows = nn.Linear(width, dynamics.in_channels)
        self.to_columns = nn.Linear(width, dynamics.in_channels)

        self.from_structure = nn.Linear(structure.channels, MERGED * MERGED * width)
        self.structure_name = learned_vectors(queries, width)
        self.frame_query = nn.Parameter(torch.zeros(width))
        self.spread = nn.ModuleList(QueryLayer(width, heads) for _ in range(query_layers))
        self.from_rows = nn.Linear(dynamics.channels, MERGED * width)
        self.from_columns = nn.Linear(dynamics.channels, MERGED * width)
        self.decoder = SpaceTimeTransformer(width, heads, layers=layers)
        self.to_pixels = PatchOutput(width, (1, patch, patch), lone_first=False)

    @property
    def spec(self) -> LatentSpec:
        structure, dynamics, side = self.bottleneck_at(0), self.bottleneck_at(1), self.token
        return LatentSpec(
            (
                LatentPart(
                    "structure", "hw", (side, side), structure.channels, structure.codebooks, count=self.queries
                ),
                LatentPart("dynamics_rows", "th", (1, side), dynamics.channels, dynamics.codebooks),
                LatentPart("dynamics_columns", "tw", (1, side), dynamics.channels, dynamics.codebooks),
            ),
            causal=False,
            streamable=False,
        )

    def features(self, video: Tensor) -> list[Tensor]:
        video = pad(video, (0, -video.shape[3] % self.token, -video.shape[4] % self.token))
        x = self.encoder(self.to_patches(video))
        merged = rearrange(x, "b t (h p) (w q) d -> b t h w (p q d)", p=MERGED, q=MERGED)
        dynamics = self.to_dynamics(merged)
        rows = rearrange(self.to_rows(dynamics.mean(dim=3)), "b t h c -> b (t h) c")
        columns = rearrange(self.to_columns(dynamics.mean(dim=2)), "b t w c -> b (t w) c")
        return [self._structure(x), rows, columns]

    def _structure(self, x: Tensor) -> Tensor:
        """`b t h w d -> b (n h' w') c`: queries gather each place along time, then 2 × 2 places merge."""
        b, t, h, w, d = x.shape
        times = sine_features(grid_places((t, 1, 1), device=x.device), d).to(x.dtype)
        states = rearrange(x, "b t h w d -> (b h w) t d") + times
        queries = self.structure_query.to(x.dtype).expand(len(states), -1, -1)
        for layer in self.gather:
            queries = layer(queries, states)
        pattern = "(b h p w q) n d -> b (n h w) (p q d)"
        return self.to_structure(rearrange(queries, pattern, b=b, h=h // MERGED, w=w // MERGED, p=MERGED, q=MERGED))

    def pixels(self, vectors: list[Tensor], size: VideoSize) -> Tensor:
        structure, rows, columns = vectors
        (h, w), t = self.spec.grid(size, 0), size[0]
        x = self._spread(self.from_structure(structure), grid=(t, h, w))
        rows = rearrange(self.from_rows(rows), "b (t h) (p d) -> b t (h p) 1 d", t=t, p=MERGED)
        columns = rearrange(self.from_columns(columns), "b (t w) (q d) -> b t 1 (w q) d", t=t, q=MERGED)
        video = self.to_pixels(self.decoder(x + rows + columns))
        return video[:, :, :, : size[1], : size[2]]

    def _spread(self, structure: Tensor, *, grid: VideoSize) -> Tensor:
        """`b (n h w) (p q d) -> b t (h p) (w q) d`: a query for each frame looks at the tokens of its place."""
        t, h, w = grid
        b, d = len(structure), self.frame_query.shape[0]
        pattern = "b (n h w) (p q d) -> (b h p w q) n d"
        states = rearrange(structure, pattern, n=self.queries, h=h, w=w, p=MERGED, q=MERGED)
        states = states + self.structure_name.to(states.dtype)
        times = sine_features(grid_places((t, 1, 1), device=states.device), d).to(states.dtype)
        frames = repeat(self.frame_query + times, "t d -> n t d", n=len(states))
        for layer in self.spread:
            frames = layer(frames, states)
        return rearrange(frames, "(b h w) t d -> b t h w d", b=b, h=h * MERGED)

    @property
    def last_layer(self) -> Tensor:
        return self.to_pixels.others.weight


def swap(*, structure_of: Latents, dynamics_of: Latents) -> Latents:
    """The structure of one batch of videos with the dynamics of another (VidTwin, section 4.3)."""
    if structure_of.spec != dynamics_of.spec or structure_of.size != dynamics_of.size:
        raise ValueError(
            "structure and dynamics can be swapped between videos of one size and one tokenizer, got sizes "
            f"{structure_of.size} and {dynamics_of.size}"
        )
    if structure_of.spec.parts[0].name != "structure":
        raise ValueError(f"these latents have no structure, but {[part.name for part in structure_of.spec.parts]}")
    count = structure_of.spec.slices(structure_of.size)[0].stop
    tokens = torch.cat([structure_of.tokens[:, :count], dynamics_of.tokens[:, count:]], dim=1)
    ids = None
    if structure_of.ids is not None and dynamics_of.ids is not None:
        ids = torch.cat([structure_of.ids[:, :count], dynamics_of.ids[:, count:]], dim=1)
    return Latents(tokens, ids, structure_of.size, structure_of.spec)
