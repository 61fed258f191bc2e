"""Causal factorised ViT (C-ViViT, OmniTokenizer): attention within frames, then causal attention along time."""

from typing import Any

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks the loader up in this module
from einops import rearrange
from torch import Tensor, nn

from vidgen.bottlenecks import build_bottleneck
from vidgen.nn.causal_conv import StreamCache
from vidgen.nn.norms import RMSNorm
from vidgen.tokenizers.base import check_loss_weights
from vidgen.tokenizers.blockwise import BlockwiseTokenizer, check_block
from vidgen.tokenizers.vit import (
    FrameCausalBlock,
    InSpace,
    PatchEmbedding,
    PatchOutput,
    check_stride,
    check_transformer,
    check_windows,
)


class InTime(nn.Module):
    """Causal blocks along time at each place of `b t h w d`."""

    def __init__(self, width: int, heads: int, *, layers: int, past: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(FrameCausalBlock(width, heads, past=past) for _ in range(layers))

    def forward(self, x: Tensor, cache: StreamCache | None) -> Tensor:
        b, t, h, w, _ = x.shape
        x = rearrange(x, "b t h w d -> (b h w) t d")
        for block in self.blocks:
            x = block(x, (t, 1, 1), cache)
        return rearrange(x, "(b h w) t d -> b t h w d", b=b, h=h, w=w)


class FactorisedViTTokenizer(BlockwiseTokenizer, ConfigMixin):
    """Transformer in space, then in time, and back; one set of weights for images and videos.

    C-ViViT (Phenaki, arXiv 2210.02399, section 2.1) and OmniTokenizer (arXiv 2406.09399, section 3.1). Unlike theirs
    the temporal attention has a window, so that streams of any length run in constant memory.

    Args:
        bottleneck_type: a name in `vidgen.bottlenecks.BOTTLENECKS`.
        bottleneck_options: keyword arguments of that bottleneck.
        stride: frames, rows and columns of pixels of a patch; the first frame has patches of one frame.
        width, heads: of the transformers.
        windows: one entry a spatial layer: tokens a side of its attention windows, 0 = the whole frame.
        time_layers: temporal layers.
        past: rows of tokens before its own that a row sees in a temporal layer.
        block_frames: inference runs in blocks of this many frames (the first one frame longer); a multiple of the
            temporal stride.
        squared_weight: of the squared error beside the absolute one in training.
    """

    token_parts = ("to_patches", "encoder_in_space", "encoder_in_time", "norm_features", "to_features", "bottleneck")

    @register_to_config
    def __init__(
        self,
        bottleneck_type: str = "vq",
        bottleneck_options: dict[str, Any] | None = None,
        stride: tuple[int, int, int] = (4, 8, 8),
        width: int = 512,
        heads: int = 8,
        windows: tuple[int, ...] = (0, 0, 8, 8),
        time_layers: int = 4,
        past: int = 16,
        block_frames: int = 16,
        squared_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.stride = check_stride(stride)
        check_block(block_frames, self.stride)
        check_windows(windows)
        check_transformer(width=width, heads=heads, layers=min(time_layers, len(windows)))
        if past < 1:
            raise ValueError(f"past must be at least 1 row of tokens, got {past}")
        check_loss_weights(squared_weight=squared_weight)
        self.block_frames, self.squared_weight = block_frames, squared_weight
        self.bottleneck = build_bottleneck(bottleneck_type, bottleneck_options or {})
        windows = tuple(windows)
        self.to_patches = PatchEmbedding(self.stride, width, lone_first=True)
        self.encoder_in_space = InSpace(width, heads, windows=windows)
        self.encoder_in_time = InTime(width, heads, layers=time_layers, past=past)
        self.norm_features = RMSNorm(width)
        self.to_features = nn.Linear(width, self.bottleneck.in_channels)
        self.from_vectors = nn.Linear(self.bottleneck.channels, width)
        self.decoder_in_time = InTime(width, heads, layers=time_layers, past=past)
        self.decoder_in_space = InSpace(width, heads, windows=windows)
        self.norm_pixels = RMSNorm(width)
        self.to_pixels = PatchOutput(width, self.stride, lone_first=True)
        self.register_statistics(self.bottleneck.channels)

    def features(self, video: Tensor, cache: StreamCache | None) -> Tensor:
        x = self.to_patches(video, starts=cache is None or cache.first)
        x = self.encoder_in_space(x)
        x = self.encoder_in_time(x, cache)
        return rearrange(self.to_features(self.norm_features(x)), "b t h w c -> b c t h w")

    def pixels(self, vectors: Tensor, cache: StreamCache | None) -> Tensor:
        x = self.from_vectors(rearrange(vectors, "b c t h w -> b t h w c"))
        x = self.decoder_in_time(x, cache)
        x = self.decoder_in_space(x)
        return self.to_pixels(self.norm_pixels(x), starts=cache is None or cache.first)

    def last_layer(self, frames: int) -> Tensor:
        return self.to_pixels.layer(frames).weight
