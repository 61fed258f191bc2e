"""Words that look for what they say among the tokens of a video: the matching network of ALBEF and BLIP."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks the loader up here
from einops import rearrange
from torch import Tensor, nn

from vidgen.conditioning import WordTextEncoder
from vidgen.kernels import AttentionSpec
from vidgen.latents import Latents, LatentSpec
from vidgen.matchers.base import Matcher, tokens_of_frames
from vidgen.nn.norms import RMSNorm
from vidgen.nn.positions import positions, rotary, sine_features
from vidgen.nn.transformer import Block, CrossAttention, FeedForward


class FusionBlock(nn.Module):
    """Words of a text attend to each other, then to the video; pre-norm, as in ALBEF's multimodal encoder."""

    def __init__(self, width: int, heads: int, *, expansion: float) -> None:
        super().__init__()
        self.norm_words = RMSNorm(width)
        self.among_words = CrossAttention(width, heads)
        self.norm_cross = RMSNorm(width)
        self.to_video = CrossAttention(width, heads)
        self.norm_ff = RMSNorm(width)
        self.ff = FeedForward(width, expansion=expansion)

    def forward(self, words: Tensor, mask: Tensor, video: Tensor) -> Tensor:
        """`words` `b k l d` of k texts a video, `mask` bool `b k l`, `video` `b n d`."""
        b, k, _, _ = words.shape
        own = rearrange(self.norm_words(words), "b k l d -> (b k) l d")
        mixed = self.among_words(own, own, rearrange(mask, "b k l -> (b k) l"))
        words = words + rearrange(mixed, "(b k) l d -> b k l d", b=b)
        looking = rearrange(self.norm_cross(words), "b k l d -> b (k l) d")
        seen = self.to_video(looking, video, video.new_ones(video.shape[:2], dtype=torch.bool))
        words = words + rearrange(seen, "b (k l) d -> b k l d", k=k)
        return words + self.ff(self.norm_ff(words))


class CrossAttentionMatcher(Matcher):
    """Log-odds that a text describes a video (image-text matching of ALBEF, arXiv 2107.07651, and BLIP, for latents).

    Tokens attend to each other; the words of a text attend to each other and to them. So a text of two objects is
    checked object by object, which two vectors with an inner product (CLIP) cannot do. Beside that every word is
    multiplied with what it sees (late interaction as in FILIP, arXiv 2111.07783): a network begins to learn sooner so.

    Args:
        latent_spec: `LatentSpec.to_json()` of the tokens; any spec will do.
        width, heads, expansion: of all transformer blocks.
        video_layers: blocks over the tokens of the video.
        fusion_layers: blocks of the words over the tokens.
        text_layers, buckets, max_words: of the `WordTextEncoder`.
    """

    _repeated_blocks = ("Block", "FusionBlock", "TransformerEncoderLayer")  # whose matrices Muon trains

    @register_to_config
    def __init__(
        self,
        latent_spec: dict[str, Any],
        width: int = 128,
        heads: int = 4,
        expansion: float = 3.0,
        video_layers: int = 3,
        fusion_layers: int = 2,
        text_layers: int = 1,
        buckets: int = 256,
        max_words: int = 64,
    ) -> None:
        super().__init__()
        self.spec = LatentSpec.from_json(latent_spec)
        self.head_channels = width // heads
        self.to_video = nn.Sequential(nn.Linear(self.spec.channels, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.norm_in = RMSNorm(width)
        self.part_embedding = nn.Embedding(len(self.spec.parts), width)
        self.video_blocks = nn.ModuleList(Block(width, heads, expansion=expansion) for _ in range(video_layers))
        self.norm_video = RMSNorm(width)
        self.text_encoder = WordTextEncoder(width, text_layers, heads, buckets, max_words)
        self.look = CrossAttention(width, heads)
        self.norm_seen = RMSNorm(width)
        self.from_text = nn.Linear(width, width)
        self.fusion_blocks = nn.ModuleList(FusionBlock(width, heads, expansion=expansion) for _ in range(fusion_layers))
        self.norm_out = RMSNorm(width)
        self.to_score = nn.Linear(width, 1)

    def score(self, latents: Latents, prompts: Sequence[str], *, frames: tuple[int, int] | None = None) -> Tensor:
        if len(prompts) != len(latents):
            raise ValueError(f"expected a prompt for each of {len(latents)} videos, got {len(prompts)}")
        return self.scores(latents, [[prompt] for prompt in prompts], frames=frames).squeeze(1)

    def scores(
        self, latents: Latents, texts: Sequence[Sequence[str]], *, frames: tuple[int, int] | None = None
    ) -> Tensor:
        """Log-odds `b k` of k texts for each video; `frames` as in `score`."""
        self.check_spec(latents.spec)
        coordinates = latents.spec.coordinates(latents.size, start=latents.start)
        tokens = latents.tokens
        if frames is not None:
            seen = tokens_of_frames(latents, *frames)
            if not seen.any():
                raise ValueError(f"the frames {frames[0]} up to {frames[1]} have no token; ask for more of them")
            tokens, coordinates = tokens[:, seen.to(tokens.device)], coordinates[seen]
        text = self.text_encoder.encode([one for of_video in texts for one in of_video])
        states, mask = (rearrange(x, "(b k) ... -> b k ...", b=len(latents)) for x in (text.states, text.mask))
        return self(tokens.to(self.device, self.dtype), coordinates.to(self.device), states, mask)

    def forward(self, tokens: Tensor, coordinates: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """`b n c`, `n 5` of `LatentSpec.coordinates`, `b k l d`, bool `b k l` -> log-odds `b k`."""
        mask = mask.clone()
        mask[..., 0] = True  # a text without words is one as well
        x = self.norm_in(self.to_video(tokens))
        places = positions(coordinates, self.spec.unit)
        x = x + (sine_features(places, x.shape[2]) + self.part_embedding(coordinates[:, 0])).to(x.dtype)
        turns, pattern = rotary(places, self.head_channels), AttentionSpec.sequence(x.shape[1])
        for block in self.video_blocks:
            x = block(x, pattern, turns)
        x = self.norm_video(x)
        seen = self.look(rearrange(words, "b k l d -> b (k l) d"), x, x.new_ones(x.shape[:2], dtype=torch.bool))
        seen = rearrange(self.norm_seen(seen), "b (k l) d -> b k l d", k=words.shape[1])
        agreement = seen * self.from_text(words)
        for block in self.fusion_blocks:
            words = block(words, mask, x)
        found = self.norm_out(words) + agreement
        real = mask.unsqueeze(-1).to(found.dtype)
        return self.to_score((found * real).sum(dim=2) / real.sum(dim=2)).squeeze(-1).float()
