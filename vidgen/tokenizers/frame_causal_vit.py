"""Frame-block-causal ViT (BSQ-ViT): every patch sees its whole frame and the frames before it."""

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
from vidgen.tokenizers.vit import FrameCausalBlock, PatchEmbedding, PatchOutput, check_stride, check_transformer


class FrameCausalTransformer(nn.Module):
    """Frame-causal blocks over all tokens of `b t h w d`, and a norm."""

    def __init__(self, width: int, heads: int, *, layers: int, past: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(FrameCausalBlock(width, heads, past=past) for _ in range(layers))
        self.norm_out = RMSNorm(width)

    def forward(self, x: Tensor, cache: StreamCache | None) -> Tensor:
        _, t, h, w, _ = x.shape
        x = rearrange(x, "b t h w d -> b (t h w) d")
        for block in self.blocks:
            x = block(x, (t, h, w), cache)
        return rearrange(self.norm_out(x), "b (t h w) d -> b t h w d", t=t, h=h, w=w)


class FrameCausalViTTokenizer(BlockwiseTokenizer, ConfigMixin):
    """Plain transformers with a block-causal mask over frames (arXiv 2406.07548, section 4).

    The paper's mask reaches back to the first frame; here it reaches back `past` rows, so that streams of any length
    run in constant memory. With `past` at least the rows of a training clip less one the two are the same in training.

    Args:
        bottleneck_type: a name in `vidgen.bottlenecks.BOTTLENECKS`.
        bottleneck_options: keyword arguments of that bottleneck.
        stride: frames, rows and columns of pixels of a patch; with 1 frame every frame has tokens of its own.
        width, heads, layers: of the encoder and of the decoder.
        past: rows of tokens before its own that a token sees.
        block_frames: inference runs in blocks of this many frames (the first one frame longer); a multiple of the
            temporal stride.
        squared_weight: of the squared error beside the absolute one in training.
    """

    token_parts = ("to_patches", "encoder", "to_features", "bottleneck")

    @register_to_config
    def __init__(
        self,
        bottleneck_type: str = "bsq",
        bottleneck_options: dict[str, Any] | None = None,
        stride: tuple[int, int, int] = (1, 8, 8),
        width: int = 768,
        heads: int = 12,
        layers: int = 12,
        past: int = 15,
        block_frames: int = 4,
        squared_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.stride = check_stride(stride)
        check_block(block_frames, self.stride)
        check_transformer(width=width, heads=heads, layers=layers)
        if past < 1:
            raise ValueError(f"past must be at least 1 row of tokens, got {past}")
        check_loss_weights(squared_weight=squared_weight)
        self.block_frames, self.squared_weight = block_frames, squared_weight
        self.bottleneck = build_bottleneck(bottleneck_type, bottleneck_options or {})
        self.to_patches = PatchEmbedding(self.stride, width, lone_first=True)
        self.encoder = FrameCausalTransformer(width, heads, layers=layers, past=past)
        self.to_features = nn.Linear(width, self.bottleneck.in_channels)
        self.from_vectors = nn.Linear(self.bottleneck.channels, width)
        self.decoder = FrameCausalTransformer(width, heads, layers=layers, past=past)
        self.to_pixels = PatchOutput(width, self.stride, lone_first=True)
        self.register_statistics(self.bottleneck.channels)

    def features(self, video: Tensor, cache: StreamCache | None) -> Tensor:
        x = self.encoder(self.to_patches(video, starts=cache is None or cache.first), cache)
        return rearrange(self.to_features(x), "b t h w c -> b c t h w")

    def pixels(self, vectors: Tensor, cache: StreamCache | None) -> Tensor:
        x = self.decoder(self.from_vectors(rearrange(vectors, "b c t h w -> b t h w c")), cache)
        return self.to_pixels(x, starts=cache is None or cache.first)

    def last_layer(self, frames: int) -> Tensor:
        return self.to_pixels.layer(frames).weight
