"""Every patch by itself: pixel centroids (CCViT) and networks that see one patch at a time (PUT)."""

from typing import Any

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks the loader up in this module
from torch import Tensor, nn

from vidgen.bottlenecks import build_bottleneck
from vidgen.nn.causal_conv import CausalConv3d, StreamCache
from vidgen.nn.folding import PatchFolding
from vidgen.nn.norms import ActivatedChannelNorm
from vidgen.tokenizers.base import check_loss_weights
from vidgen.tokenizers.blockwise import BlockwiseTokenizer, check_block
from vidgen.tokenizers.causal_conv import ResidualBlock, radius
from vidgen.tokenizers.vit import check_stride


class PatchBlock(nn.Module):
    """norm, SiLU, linear, SiLU, linear, skip at each place of `b c t h w`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_in = ActivatedChannelNorm(width)
        self.inner = CausalConv3d(width, width // 2, kernel=(1, 1, 1))
        self.norm_inner = ActivatedChannelNorm(width // 2)
        self.outer = CausalConv3d(width // 2, width, kernel=(1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(self.norm_inner(self.inner(self.norm_in(x))))


class PatchwiseTokenizer(BlockwiseTokenizer, ConfigMixin):
    """A token sees its own pixels and nothing else, so that damage elsewhere never reaches it; the decoder sees all.

    With `layers` the encoder is a network on each patch (PUT, arXiv 2205.05076, section 3.1). Without, the features are
    the pixels themselves: with `vq` and k-means the codes are centroids of patches (CCViT, arXiv 2303.04664, section
    3.1). Without `decoder_layers` what comes back is the code, through a linear map that begins as the identity.

    Args:
        bottleneck_type: a name in `vidgen.bottlenecks.BOTTLENECKS`.
        bottleneck_options: keyword arguments of that bottleneck; without `layers`, one whose `in_channels` are the
            numbers of a patch.
        stride: frames, rows and columns of pixels of a patch, the last two equal; a lone first frame is repeated.
        width: channels of the networks, even.
        layers, decoder_layers: blocks on each patch, and residual blocks of convolutions behind them.
        block_frames: inference runs in blocks of this many frames (the first one frame longer), which bounds memory
            and makes streams equal to one shot bit by bit; a multiple of the temporal stride.
        squared_weight: of the squared error beside the absolute one in training.
    """

    token_parts = ("encoder", "bottleneck")

    @register_to_config
    def __init__(
        self,
        bottleneck_type: str = "vq",
        bottleneck_options: dict[str, Any] | None = None,
        stride: tuple[int, int, int] = (1, 8, 8),
        width: int = 256,
        layers: int = 8,
        decoder_layers: int = 8,
        block_frames: int = 16,
        squared_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.stride = check_stride(stride)
        if self.stride[1] != self.stride[2]:
            raise ValueError(f"patches are square in space, got stride {tuple(stride)}; for example (1, 8, 8)")
        check_block(block_frames, self.stride)
        if min(layers, decoder_layers) < 0 or width < 2 or width % 2:
            raise ValueError(
                "layers and decoder_layers must be at least 0 and width even, got "
                f"{layers}, {decoder_layers} and width {width}"
            )
        self.bottleneck = build_bottleneck(bottleneck_type, bottleneck_options or {})
        self.folding = PatchFolding(frames=self.stride[0], side=self.stride[1])
        numbers = 3 * self.folding.pixels
        entered, left = self.bottleneck.in_channels, self.bottleneck.channels
        if layers == 0 and entered != numbers:
            raise ValueError(
                f"without layers the features of a patch are its {numbers} numbers, and bottleneck {bottleneck_type!r} "
                f"takes {entered} channels; give it {numbers}, or layers of at least 1"
            )
        check_loss_weights(squared_weight=squared_weight)
        self.block_frames, self.squared_weight = block_frames, squared_weight
        self.encoder = nn.Sequential() if layers == 0 else patch_network(numbers, width, entered, layers)
        self.enlarge = CausalConv3d(left, width, kernel=(1, 1, 1)) if decoder_layers else nn.Identity()
        self.decoder = nn.ModuleList(ResidualBlock(width) for _ in range(decoder_layers))
        self.norm_out = ActivatedChannelNorm(width) if decoder_layers else nn.Identity()
        self.to_pixels = CausalConv3d(width if decoder_layers else left, numbers, kernel=(1, 1, 1))
        if decoder_layers == 0 and left == numbers:
            nn.init.dirac_(self.to_pixels.conv.weight)
            nn.init.zeros_(self.to_pixels.conv.bias)  # pyright: ignore[reportArgumentType]
        self.reach = 0, self.stride[1] * sum(radius(block) for block in self.decoder)
        self.register_statistics(left)

    def features(self, video: Tensor, cache: StreamCache | None) -> Tensor:
        return self.encoder(self.folding.fold(video, cache))

    def pixels(self, vectors: Tensor, cache: StreamCache | None) -> Tensor:
        x = self.enlarge(vectors)
        for block in self.decoder:
            x = block(x, cache)
        return self.folding.unfold(self.to_pixels(self.norm_out(x)), cache)

    def last_layer(self, frames: int) -> Tensor:
        return self.to_pixels.conv.weight


def patch_network(numbers: int, width: int, out_channels: int, layers: int) -> nn.Sequential:
    """`b numbers t h w -> b out_channels t h w`, each place by itself."""
    return nn.Sequential(
        CausalConv3d(numbers, width, kernel=(1, 1, 1)),
        *(PatchBlock(width) for _ in range(layers)),
        ActivatedChannelNorm(width),
        CausalConv3d(width, out_channels, kernel=(1, 1, 1)),
    )
