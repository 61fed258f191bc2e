"""Tubelet ViT autoencoder (ViTok): plain transformers over all tubelets of a clip, encoder and decoder sized apart."""

from typing import Any

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks the loader up in this module
from einops import rearrange
from torch import Tensor, nn

from vidgen.bottlenecks import build_bottleneck
from vidgen.kernels import AttentionSpec
from vidgen.nn.causal_conv import StreamCache
from vidgen.nn.norms import RMSNorm
from vidgen.nn.positions import rotary
from vidgen.tokenizers.base import check_loss_weights
from vidgen.tokenizers.blockwise import BlockwiseTokenizer, check_block
from vidgen.tokenizers.vit import Block, PatchEmbedding, PatchOutput, check_stride, check_transformer, grid_places

# Width, layers, heads (arXiv 2501.09755, table 1): 43, 86 and 384 million parameters.
SIZES = {"S": (768, 6, 12), "B": (768, 12, 12), "L": (1152, 24, 16)}


class FullTransformer(nn.Module):
    """Blocks in which the tokens of `b t h w d` see each other within `rows` rows (`None` = all), and a norm."""

    def __init__(self, width: int, heads: int, *, layers: int, rows: int | None) -> None:
        super().__init__()
        self.rows = rows
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm_out = RMSNorm(width)
        self.head_channels = width // heads

    def forward(self, x: Tensor) -> Tensor:
        _, t, h, w, _ = x.shape
        turns = rotary(grid_places((t, h, w), device=x.device), self.head_channels)
        pattern = AttentionSpec.swin3d((t, h, w), (self.rows or t, h, w))
        x = rearrange(x, "b t h w d -> b (t h w) d")
        for block in self.blocks:
            x = block(x, pattern, turns)
        return rearrange(self.norm_out(x), "b (t h w) d -> b t h w d", t=t, h=h, w=w)


class TubeletViTTokenizer(BlockwiseTokenizer, ConfigMixin):
    """ViTok (arXiv 2501.09755, section 2): tubelets to tokens to tubelets, with 3D rotary positions.

    Args:
        bottleneck_type: a name in `vidgen.bottlenecks.BOTTLENECKS`.
        bottleneck_options: keyword arguments of that bottleneck.
        stride: frames, rows and columns of pixels of a tubelet.
        encoder, decoder: (width, layers, heads) of each, for example of `SIZES`.
        block_frames: attention never leaves a block of this many frames (a multiple of the temporal stride), which
            makes the tokenizer stream; `None` = every token sees the whole clip, and nothing streams.
        squared_weight: of the squared error beside the absolute one in training.
    """

    lone_first = False
    causal = False  # the frames of a block see each other
    token_parts = ("to_patches", "encoder_transformer", "to_features", "bottleneck")

    @register_to_config
    def __init__(
        self,
        bottleneck_type: str = "kl",
        bottleneck_options: dict[str, Any] | None = None,
        stride: tuple[int, int, int] = (4, 8, 8),
        encoder: tuple[int, int, int] = SIZES["S"],
        decoder: tuple[int, int, int] = SIZES["B"],
        block_frames: int | None = None,
        squared_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.stride = check_stride(stride)
        for sizes in (encoder, decoder):
            if len(sizes) != 3:
                raise ValueError(
                    f"encoder and decoder are (width, layers, heads), for example {SIZES['S']}, got {sizes}"
                )
            check_transformer(width=sizes[0], layers=sizes[1], heads=sizes[2])
        if block_frames is not None:
            check_block(block_frames, self.stride)
        check_loss_weights(squared_weight=squared_weight)
        self.block_frames, self.squared_weight = block_frames, squared_weight
        self.bottleneck = build_bottleneck(bottleneck_type, bottleneck_options or {})
        rows = None if block_frames is None else block_frames // self.stride[0]
        width, layers, heads = encoder
        self.to_patches = PatchEmbedding(self.stride, width, lone_first=False)
        self.encoder_transformer = FullTransformer(width, heads, layers=layers, rows=rows)
        self.to_features = nn.Linear(width, self.bottleneck.in_channels)
        width, layers, heads = decoder
        self.from_vectors = nn.Linear(self.bottleneck.channels, width)
        self.decoder_transformer = FullTransformer(width, heads, layers=layers, rows=rows)
        self.to_pixels = PatchOutput(width, self.stride, lone_first=False)
        self.register_statistics(self.bottleneck.channels)

    def features(self, video: Tensor, cache: StreamCache | None) -> Tensor:
        x = self.encoder_transformer(self.to_patches(video))
        return rearrange(self.to_features(x), "b t h w c -> b c t h w")

    def pixels(self, vectors: Tensor, cache: StreamCache | None) -> Tensor:
        x = self.from_vectors(rearrange(vectors, "b c t h w -> b t h w c"))
        return self.to_pixels(self.decoder_transformer(x))

    def last_layer(self, frames: int) -> Tensor:
        return self.to_pixels.others.weight
