"""Holistic tokens (LARP, One-D-Piece): learned queries gather a clip in a fixed number of tokens without a place."""

from dataclasses import replace
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks the loader up in this module
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vidgen.bottlenecks import build_bottleneck
from vidgen.kernels import AttentionSpec
from vidgen.latents import LatentPart, Latents, LatentSpec, VideoSize
from vidgen.nn.norms import RMSNorm
from vidgen.nn.positions import rotary, sine_features
from vidgen.nn.random import Generators, rand
from vidgen.tokenizers.base import Critic, check_latents, check_loss_weights, check_video, reconstruction_losses
from vidgen.tokenizers.blockwise import pad
from vidgen.tokenizers.vit import (
    Block,
    PatchEmbedding,
    PatchOutput,
    check_stride,
    check_transformer,
    grid_places,
)
from vidgen.tokenizers.whole_clip import WholeClipTokenizer

LARGEST_PRIOR = 2**16  # codes; the prior scores all of them at every token


class JointTransformer(nn.Module):
    """Blocks in which patches and tokens see each other, and a norm; or, causal, patches each other alone, and each
    token the patches and the tokens before it.

    Patches have a rotary place; tokens without one stand where the grid begins.
    """

    def __init__(self, width: int, heads: int, *, layers: int, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm_out = RMSNorm(width)
        self.head_channels = width // heads

    def forward(self, patches: Tensor, tokens: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """`b n d`, `b m d` and the places of the patches `n 3` -> `b n d`, `b m d`."""
        x = torch.cat([patches, tokens], dim=1)
        turns = rotary(F.pad(places, (0, 0, 0, tokens.shape[1])), self.head_channels)
        pattern = AttentionSpec.sequence(x.shape[1])
        if self.causal:
            pattern = AttentionSpec.sequence(tokens.shape[1], causal=True, prefix=patches.shape[1])
        for block in self.blocks:
            x = block(x, pattern, turns)
        x = self.norm_out(x)
        return x[:, : patches.shape[1]], x[:, patches.shape[1] :]


class TokenPrior(nn.Module):
    """Small causal transformer over the tokens, trained along to make their order predictable (LARP, section 3.3).

    It guesses the vector of the next token, and a code is as likely as it is similar to the guess.
    """

    def __init__(self, channels: int, width: int, heads: int, *, layers: int) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(width))
        self.from_vectors = nn.Linear(channels, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm_out = RMSNorm(width)
        self.to_guess = nn.Linear(width, channels)
        self.head_channels = width // heads

    def forward(self, vectors: Tensor) -> Tensor:
        """`b n c -> b n c`: the guess for each token from those before it."""
        count = vectors.shape[1]
        start = self.start.expand(len(vectors), 1, -1)
        x = torch.cat([start, self.from_vectors(vectors[:, :-1]).to(start.dtype)], dim=1)
        turns = rotary(grid_places((count, 1, 1), device=x.device), self.head_channels)
        pattern = AttentionSpec.sequence(count, causal=True)
        for block in self.blocks:
            x = block(x, pattern, turns)
        return self.to_guess(self.norm_out(x))

    def loss(self, vectors: Tensor, ids: Tensor, codes: Tensor) -> Tensor:
        """Mean nats a token of ids `b n`, given the vectors `b n c` and all codes `k c`."""
        logits = self(vectors).float() @ codes.float().T
        return F.cross_entropy(rearrange(logits, "b n k -> (b n) k"), rearrange(ids, "b n -> (b n)"))


class HolisticTokenizer(WholeClipTokenizer, ConfigMixin):
    """Patches and learned queries through one transformer, the queries kept as tokens; and back with patch queries.

    LARP (arXiv 2410.21264, section 3). The number of tokens is that of the queries whatever the length and size of the
    clip: longer clips share the same bits. Positions of patches beyond `train_size` are interpolated into its range.
    Every token sees the whole clip, so nothing streams.

    With `tail_drop` any prefix of the tokens decodes (One-D-Piece, arXiv 2501.10064; "Principal Components",
    arXiv 2503.08685): `prefix(latents, count)` gives such latents.

    Args:
        bottleneck_type: a name in `vidgen.bottlenecks.BOTTLENECKS`.
        bottleneck_options: keyword arguments of that bottleneck.
        queries: number of tokens.
        stride: frames, rows and columns of pixels of a patch.
        train_size: (frames, height, width) of the training clips.
        width, heads, layers: of the encoder and of the decoder.
        tail_drop: train with a random prefix of the tokens in each sample.
        prior_weight: of the prior's loss; 0 = no prior. The prior needs one id a token. The paper's 0.06 goes with its
            perceptual and adversarial terms: against pixel errors alone it made all tokens alike, which is easiest to
            predict.
        prior_width, prior_heads, prior_layers: of the prior.
        squared_weight: of the squared error beside the absolute one in training.
        causal_queries: the encoder's queries never see later ones, so that a token adds to those before it ("Principal
            Components", section 3.2).
    """

    token_parts = ("to_patches", "query", "encoder", "to_features", "bottlenecks")

    @register_to_config
    def __init__(
        self,
        bottleneck_type: str = "stochastic-vq",
        bottleneck_options: dict[str, Any] | None = None,
        queries: int = 1024,
        stride: tuple[int, int, int] = (4, 8, 8),
        train_size: tuple[int, int, int] = (16, 128, 128),
        width: int = 768,
        heads: int = 12,
        layers: int = 12,
        tail_drop: bool = False,
        prior_weight: float = 0.01,
        prior_width: int = 384,
        prior_heads: int = 6,
        prior_layers: int = 12,
        squared_weight: float = 1.0,
        causal_queries: bool = False,
    ) -> None:
        super().__init__()
        self.stride = check_stride(stride)
        check_transformer(width=width, heads=heads, layers=layers)
        if queries < 1 or len(train_size) != 3 or min(train_size) < 1 or prior_weight < 0:
            raise ValueError(
                "expected at least 1 query, a train_size of three positive numbers and a prior_weight of at least 0, "
                f"got {queries} queries, train_size {tuple(train_size)} and prior_weight {prior_weight}"
            )
        bottleneck = build_bottleneck(bottleneck_type, bottleneck_options or {})
        self.register_parts({"query": bottleneck}, ("query",))
        check_loss_weights(squared_weight=squared_weight)
        self.queries, self.tail_drop, self.squared_weight = queries, tail_drop, squared_weight
        self.train_grid = [max(1, extent // step) for extent, step in zip(train_size, self.stride, strict=True)]
        self.to_patches = PatchEmbedding(self.stride, width, lone_first=False)
        # Quiet, and patches have rotary places alone: what queries start from must not drown what they gather, or all
        # clips begin with the same codes and quantizers stay there.
        self.query = nn.Parameter(0.02 * torch.randn(queries, width))
        self.encoder = JointTransformer(width, heads, layers=layers, causal=causal_queries)
        self.to_features = nn.Linear(width, bottleneck.in_channels)
        self.from_vectors = nn.Linear(bottleneck.channels, width)
        self.patch_query = nn.Parameter(torch.zeros(width))
        self.decoder = JointTransformer(width, heads, layers=layers)
        self.to_pixels = PatchOutput(width, self.stride, lone_first=False)
        if tail_drop:
            self.absent = nn.Parameter(torch.zeros(bottleneck.channels))
        self.prior_weight = prior_weight
        if prior_weight > 0:
            if len(bottleneck.codebooks) != 1 or bottleneck.codebooks[0] > LARGEST_PRIOR:
                raise ValueError(
                    f"the prior needs one id a token out of at most {LARGEST_PRIOR} codes, but bottleneck "
                    f"{bottleneck_type!r} has codebooks {bottleneck.codebooks}; use another one or prior_weight=0"
                )
            check_transformer(width=prior_width, heads=prior_heads, layers=prior_layers)
            self.prior = TokenPrior(bottleneck.channels, prior_width, prior_heads, layers=prior_layers)

    @property
    def spec(self) -> LatentSpec:
        bottleneck = self.bottleneck_at(0)
        part = LatentPart("query", "", (), bottleneck.channels, bottleneck.codebooks, count=self.queries)
        return LatentSpec((part,), causal=False, streamable=False)

    def features(self, video: Tensor) -> list[Tensor]:
        t, h, w = self.stride
        patches = self.to_patches(pad(video, (-video.shape[2] % t, -video.shape[3] % h, -video.shape[4] % w)))
        places = self._places(patches.shape[1:4], device=video.device)
        patches = rearrange(patches, "b t h w d -> b (t h w) d")
        query = self.query.expand(len(video), -1, -1)
        return [self.to_features(self.encoder(patches, query.to(patches.dtype), places)[1])]

    def pixels(self, vectors: list[Tensor], size: VideoSize) -> Tensor:
        t, h, w = (-(-extent // step) for extent, step in zip(size, self.stride, strict=True))
        tokens = self.from_vectors(vectors[0])
        ordinals = grid_places((tokens.shape[1], 1, 1), device=tokens.device)
        tokens = tokens + sine_features(ordinals, tokens.shape[2]).to(tokens.dtype)
        places = self._places((t, h, w), device=tokens.device)
        patches = self.patch_query + sine_features(places, tokens.shape[2]).to(tokens.dtype)
        patches, _ = self.decoder(patches.expand(len(tokens), -1, -1), tokens, places)
        video = self.to_pixels(rearrange(patches, "b (t h w) d -> b t h w d", t=t, h=h, w=w))
        return video[:, :, : size[0], : size[1], : size[2]]

    def _places(self, grid: VideoSize | torch.Size, *, device: torch.device) -> Tensor:
        """`n 3` places of patches, squeezed into the range of training where the grid is larger."""
        places = grid_places((grid[0], grid[1], grid[2]), device=device)
        larger = [max(1.0, extent / trained) for extent, trained in zip(grid, self.train_grid, strict=True)]
        return places / torch.tensor(larger, device=device)

    @property
    def last_layer(self) -> Tensor:
        return self.to_pixels.others.weight

    # prefixes

    def vectors(self, latents: Latents) -> list[Tensor]:
        check_latents(latents, self.spec)
        if latents.length is None:
            return super().vectors(latents)
        if not self.tail_drop:
            raise ValueError("only a tokenizer with tail_drop=True decodes a prefix; decode all tokens (length None)")
        vectors = super().vectors(replace(latents, length=None))
        return [self._without_tail(vectors[0], latents.length)]

    def _without_tail(self, vectors: Tensor, length: Tensor) -> Tensor:
        """`b n c` with one learned vector in place of every token from `length` (`b`) on."""
        present = torch.arange(vectors.shape[1], device=vectors.device)[None] < length.to(vectors.device)[:, None]
        return torch.where(present[..., None], vectors, self.absent.to(vectors.dtype))

    # training

    def training_losses(
        self, video: Tensor, *, generators: Generators, critic: Critic | None = None
    ) -> dict[str, Tensor]:
        check_video(video)
        tokens = self.bottlenecked(self.features(video), sample=True, generators=generators)
        vectors = tokens.vectors[0]
        if self.tail_drop:
            kept = 1 + (rand((len(video),), generators) * self.queries).long()
            vectors = self._without_tail(vectors, kept)
        reconstruction = self.pixels([vectors], (video.shape[2], video.shape[3], video.shape[4]))
        losses = reconstruction_losses(
            video, reconstruction, squared_weight=self.squared_weight, critic=critic, last_layer=self.last_layer
        )
        losses |= tokens.losses
        if self.prior_weight > 0:
            losses["prior"] = self.prior_weight * self._prior_loss(tokens.vectors[0], tokens.ids[0])
        return losses

    def _prior_loss(self, vectors: Tensor, ids: Tensor) -> Tensor:
        bottleneck = self.bottleneck_at(0)
        every_id = torch.arange(bottleneck.codebooks[0], device=ids.device)
        codes = bottleneck.lookup(rearrange(every_id, "k -> 1 k 1"))[0].detach()  # or they would all become alike
        return self.prior.loss(vectors, ids.squeeze(-1), codes)


def prefix(latents: Latents, count: int) -> Latents:
    """The same latents of which only the first `count` tokens are to be decoded."""
    if not 1 <= count <= latents.tokens.shape[1]:
        raise ValueError(f"expected a prefix of 1 to {latents.tokens.shape[1]} tokens, got {count}")
    return replace(latents, length=torch.full((len(latents),), count, device=latents.tokens.device))
