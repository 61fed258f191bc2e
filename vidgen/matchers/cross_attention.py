"""Words that look for what they say in a video: the matching network of ALBEF and BLIP, for videos."""

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks the loader up here
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vidgen.conditioning import WordTextEncoder
from vidgen.kernels import AttentionSpec
from vidgen.matchers.base import Matcher
from vidgen.nn.norms import ChannelRMSNorm, RMSNorm
from vidgen.nn.positions import grid_places, rotary, sine_features
from vidgen.nn.transformer import Block, CrossAttention, FeedForward

PATCH = (2, 4, 4)  # frames, rows and columns of pixels that the first layer sees at once


class VideoStem(nn.Module):
    """Pixels to tokens, one for about 4×8×8 pixels, which see somewhat more."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.patches = nn.Conv3d(3, channels, PATCH, PATCH)
        self.norm_1 = ChannelRMSNorm(channels)
        self.halve = nn.Conv3d(channels, 2 * channels, 3, (1, 2, 2), padding=1)
        self.norm_2 = ChannelRMSNorm(2 * channels)
        self.halve_time = nn.Conv3d(2 * channels, width, (3, 1, 1), (2, 1, 1), padding=(1, 0, 0))
        self.norm_3 = ChannelRMSNorm(width)

    def forward(self, video: Tensor) -> Tensor:
        """`b 3 t h w` of any size -> `b d t' h' w'`."""
        frames, height, width = (-size % patch for size, patch in zip(video.shape[2:], PATCH, strict=True))
        x = F.pad(video, (0, width, 0, height, 0, frames), mode="replicate")
        x = self.halve(F.silu(self.norm_1(self.patches(x))))
        return self.norm_3(self.halve_time(F.silu(self.norm_2(x))))


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
    """Log-odds that a text describes a video (image-text matching of ALBEF, arXiv 2107.07651, and BLIP, for videos).

    Videos become tokens that attend to each other; the words of a text attend to each other and to them. So a text of
    two objects is checked object by object, which two vectors with an inner product (CLIP) cannot do. Beside that every
    word is multiplied with what it sees (late interaction as in FILIP, arXiv 2111.07783): from that a network learns
    within some hundred clips, without it within thousands, if at all.

    Args:
        width, heads, expansion: of all transformer blocks.
        channels: of the first convolution; the second has twice as many.
        video_layers: blocks over the tokens of the video.
        fusion_layers: blocks of the words over the video.
        text_layers, buckets, max_words: of the `WordTextEncoder`.
    """

    @register_to_config
    def __init__(
        self,
        width: int = 128,
        heads: int = 4,
        expansion: float = 3.0,
        channels: int = 48,
        video_layers: int = 3,
        fusion_layers: int = 2,
        text_layers: int = 1,
        buckets: int = 256,
        max_words: int = 64,
    ) -> None:
        super().__init__()
        self.head_channels = width // heads
        self.stem = VideoStem(channels, width)
        self.video_blocks = nn.ModuleList(Block(width, heads, expansion=expansion) for _ in range(video_layers))
        self.norm_video = RMSNorm(width)
        self.text_encoder = WordTextEncoder(width, text_layers, heads, buckets, max_words)
        self.fusion_blocks = nn.ModuleList(FusionBlock(width, heads, expansion=expansion) for _ in range(fusion_layers))
        self.norm_out = RMSNorm(width)
        self.look = CrossAttention(width, heads)
        self.norm_seen = RMSNorm(width)
        self.from_text = nn.Linear(width, width)
        self.to_score = nn.Linear(width, 1)

    def score(self, video: Tensor, prompts: Sequence[str]) -> Tensor:
        if len(prompts) != len(video):
            raise ValueError(f"expected a prompt for each of {len(video)} videos, got {len(prompts)}")
        return self.scores(video, [[prompt] for prompt in prompts]).squeeze(1)

    def scores(self, video: Tensor, texts: Sequence[Sequence[str]]) -> Tensor:
        """Log-odds `b k` of k texts for each video of `b 3 t h w`."""
        text = self.text_encoder.encode([one for of_video in texts for one in of_video])
        states, mask = (rearrange(x, "(b k) ... -> b k ...", b=len(video)) for x in (text.states, text.mask))
        return self(video.to(self.device, self.dtype), states, mask)

    def forward(self, video: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """`b 3 t h w`, `b k l d`, bool `b k l` -> log-odds `b k`."""
        mask = mask.clone()
        mask[..., 0] = True  # a text without words is one as well
        x = self.stem(video)
        places = grid_places(tuple(x.shape[2:]), device=x.device)
        turns = rotary(places, self.head_channels)
        pattern = AttentionSpec.full(tuple(x.shape[2:]))
        x = rearrange(x, "b d t h w -> b (t h w) d") + sine_features(places, x.shape[1]).to(x.dtype)
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
