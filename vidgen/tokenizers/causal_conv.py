"""Causal 3D convolutional tokenizer (MAGVIT-v2 / VidTok class): any stride, any bottleneck, exact streaming."""

from typing import Any

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks the loader up in this module
from einops import rearrange
from torch import Tensor, nn

from vidgen.bottlenecks import build_bottleneck
from vidgen.nn.causal_conv import CausalConv3d, Downsample, StreamCache, Upsample
from vidgen.nn.folding import FOLDINGS, Folding
from vidgen.nn.norms import ActivatedChannelNorm
from vidgen.tokenizers.base import check_loss_weights
from vidgen.tokenizers.blockwise import BlockwiseTokenizer, check_block

Factor = tuple[int, int, int]


class ResidualBlock(nn.Module):
    """norm, SiLU, convolution in space; norm, SiLU, causal convolution in time; skip (VidTok's 2D + 1D split)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm_space = ActivatedChannelNorm(channels)
        self.conv_space = CausalConv3d(channels, channels, kernel=(1, 3, 3))
        self.norm_time = ActivatedChannelNorm(channels)
        self.conv_time = CausalConv3d(channels, channels, kernel=(3, 1, 1))

    def forward(self, x: Tensor, cache: StreamCache | None = None) -> Tensor:
        h = self.conv_space(self.norm_space(x))
        h = self.conv_time.after(self.norm_time, h, cache)
        return x + h


class InvertedBlock(nn.Module):
    """norm, SiLU, pointwise to four times the width; norm, SiLU, depthwise convolution in space and time; norm, SiLU,
    pointwise back; skip (MobileNetV2's inverted residual, arXiv 1801.04381, as MotionAura has it, arXiv 2410.07659)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = 4 * channels
        self.norm_in = ActivatedChannelNorm(channels)
        self.expand = CausalConv3d(channels, inner, kernel=(1, 1, 1))
        self.norm_inner = ActivatedChannelNorm(inner)
        self.conv = CausalConv3d(inner, inner, kernel=(3, 3, 3), depthwise=True)
        self.norm_out = ActivatedChannelNorm(inner)
        self.project = CausalConv3d(inner, channels, kernel=(1, 1, 1))

    def forward(self, x: Tensor, cache: StreamCache | None = None) -> Tensor:
        h = self.expand(self.norm_in(x))
        h = self.conv.after(self.norm_inner, h, cache)
        return x + self.project(self.norm_out(h))


BLOCKS: dict[str, type[nn.Module]] = {"residual": ResidualBlock, "inverted": InvertedBlock}


class Encoder(nn.Module):
    """`b 3 t h w -> b c t' h' w'`: pixels folded, then residual blocks and downsampling."""

    def __init__(
        self,
        *,
        folding: Folding,
        widths: tuple[int, ...],
        factors: list[Factor],
        depth: int,
        out_channels: int,
        block: type[nn.Module],
    ) -> None:
        super().__init__()
        self.folding = folding
        self.conv_in = CausalConv3d(3 * folding.pixels, widths[0], kernel=(1, 1, 1))
        layers: list[nn.Module] = []
        for width, next_width, factor in zip(widths[:-1], widths[1:], factors, strict=True):
            layers += [block(width) for _ in range(depth)]
            layers.append(Downsample(width, next_width, factor=factor))
        layers += [block(widths[-1]) for _ in range(depth)]
        self.layers = nn.ModuleList(layers)
        self.norm_out = ActivatedChannelNorm(widths[-1])
        self.conv_out = CausalConv3d(widths[-1], out_channels, kernel=(1, 1, 1))

    def forward(self, video: Tensor, cache: StreamCache | None = None) -> Tensor:
        x = self.conv_in(self.folding.fold(video, cache))
        for layer in self.layers:
            x = layer(x, cache)
        return self.conv_out(self.norm_out(x))

    def reach(self) -> int:
        """Pixels that a token looks beyond its own, on every side."""
        pixels, reach = self.folding.side, 0
        for layer in self.layers:
            reach += pixels * radius(layer)
            pixels *= layer.conv.conv.stride[1] if isinstance(layer, Downsample) else 1
        return reach


class Decoder(nn.Module):
    """`b c t' h' w' -> b 3 t h w`: the encoder backwards."""

    def __init__(
        self,
        *,
        folding: Folding,
        widths: tuple[int, ...],
        factors: list[Factor],
        depth: int,
        in_channels: int,
        block: type[nn.Module],
    ) -> None:
        super().__init__()
        self.folding = folding
        self.conv_in = CausalConv3d(in_channels, widths[-1], kernel=(3, 3, 3))
        layers: list[nn.Module] = [block(widths[-1]) for _ in range(depth)]
        for width, next_width, factor in zip(widths[:0:-1], widths[-2::-1], factors[::-1], strict=True):
            layers.append(Upsample(width, next_width, factor=factor))
            layers += [block(next_width) for _ in range(depth)]
        self.layers = nn.ModuleList(layers)
        self.norm_out = ActivatedChannelNorm(widths[0])
        self.conv_out = CausalConv3d(widths[0], 3 * folding.pixels, kernel=(1, 1, 1))

    def forward(self, latent: Tensor, cache: StreamCache | None = None) -> Tensor:
        x = self.conv_in(latent, cache)
        for layer in self.layers:
            x = layer(x, cache)
        return self.folding.unfold(self.conv_out(self.norm_out(x)), cache)

    def reach(self) -> int:
        """Pixels that a pixel looks beyond its own token, on every side."""
        pixels, reach = self.folding.side, 0
        for layer in reversed(self.layers):
            reach += pixels * radius(layer)
            pixels *= layer.factor[1] if isinstance(layer, Upsample) else 1
        return reach + pixels * radius(self.conv_in)


def radius(layer: nn.Module) -> int:
    """Positions beyond its own that a layer looks in space, on every side."""
    return sum(module.kernel_size[1] // 2 for module in layer.modules() if isinstance(module, nn.Conv3d))


class CausalConvTokenizer(BlockwiseTokenizer, ConfigMixin):
    """Causal 3D CNN with a bottleneck chosen by one word.

    Args:
        bottleneck_type: a name in `vidgen.bottlenecks.BOTTLENECKS`.
        bottleneck_options: keyword arguments of that bottleneck.
        stride: frames, rows and columns of pixels per token; powers of two, the last two equal.
        patch: pixels folded into channels before the first convolution; divides the spatial stride.
        widths: channels at each resolution, one more than there are halvings.
        depth, decoder_depth: residual blocks at each resolution.
        block_frames: inference runs in blocks of this many frames (the first one frame longer), which bounds memory
            and makes streams equal to one shot bit by bit; a multiple of the temporal stride.
        squared_weight: of the squared error beside the absolute one in training. The absolute error alone lets small
            coloured things fade into the background before it learns them (docs/log.md, 2026-11-21).
        front: how pixels are folded: "patch", or "haar" for the bands of a wavelet (`vidgen.nn.folding`).
        patch_frames: frames folded into channels before the first convolution; divides the temporal stride.
        token_patch: positions of the trunk on each side of a token, whose vector is theirs one after the other: 2 makes
            a quarter of the tokens, each with four times the channels (and with a `product` bottleneck the ids).
        block: "residual", or "inverted" for mobile inverted bottlenecks.
    """

    token_parts = ("encoder", "bottleneck")

    @register_to_config
    def __init__(
        self,
        bottleneck_type: str = "fsq",
        bottleneck_options: dict[str, Any] | None = None,
        stride: tuple[int, int, int] = (4, 8, 8),
        patch: int = 2,
        widths: tuple[int, ...] = (64, 128, 256),
        depth: int = 2,
        decoder_depth: int = 3,
        block_frames: int = 16,
        squared_weight: float = 1.0,
        front: str = "patch",
        patch_frames: int = 1,
        token_patch: int = 1,
        block: str = "residual",
    ) -> None:
        super().__init__()
        if front not in FOLDINGS or block not in BLOCKS:
            raise ValueError(
                f"front is one of {', '.join(FOLDINGS)} and block one of {', '.join(BLOCKS)}, got {front!r}, {block!r}"
            )
        self.trunk_stride = trunk_stride(stride, token_patch)
        factors = halvings(self.trunk_stride, patch, patch_frames)
        if len(widths) != len(factors) + 1:
            raise ValueError(
                f"stride {tuple(stride)} with patch {patch} has {len(factors)} halvings and needs "
                f"{len(factors) + 1} widths, got {len(widths)}: {tuple(widths)}"
            )
        if min((*widths, depth, decoder_depth)) < 1:
            raise ValueError(
                f"widths, depth and decoder_depth must be at least 1, got widths {tuple(widths)}, depth {depth} and "
                f"decoder_depth {decoder_depth}"
            )
        self.stride = (stride[0], stride[1], stride[2])
        check_block(block_frames, self.stride)
        check_loss_weights(squared_weight=squared_weight)
        self.block_frames, self.squared_weight = block_frames, squared_weight
        self.bottleneck = build_bottleneck(bottleneck_type, bottleneck_options or {})
        widths, folding = tuple(widths), FOLDINGS[front](frames=patch_frames, side=patch)
        self.token_patch = token_patch
        out_channels = per_position(self.bottleneck.in_channels, token_patch)
        in_channels = per_position(self.bottleneck.channels, token_patch)
        trunk: Any = {"folding": folding, "widths": widths, "factors": factors, "block": BLOCKS[block]}
        self.encoder = Encoder(depth=depth, out_channels=out_channels, **trunk)
        self.decoder = Decoder(depth=decoder_depth, in_channels=in_channels, **trunk)
        self.reach = self.encoder.reach(), self.decoder.reach()
        self.register_statistics(self.bottleneck.channels)

    def features(self, video: Tensor, cache: StreamCache | None) -> Tensor:
        side = self.token_patch  # channels of a position stay together: each id of a product is of one position
        return rearrange(self.encoder(video, cache), "b c t (h p) (w q) -> b (p q c) t h w", p=side, q=side)

    def pixels(self, vectors: Tensor, cache: StreamCache | None) -> Tensor:
        side = self.token_patch
        return self.decoder(rearrange(vectors, "b (p q c) t h w -> b c t (h p) (w q)", p=side, q=side), cache)

    def last_layer(self, frames: int) -> Tensor:
        return self.decoder.conv_out.conv.weight


def trunk_stride(stride: tuple[int, ...], token_patch: int) -> tuple[int, ...]:
    """Frames, rows and columns of pixels per position of the trunk, from those per token."""
    if token_patch < 1 or any(side % token_patch for side in stride[1:]):
        raise ValueError(
            f"token_patch must be at least 1 and divide the stride in space, got {token_patch} and {tuple(stride)}"
        )
    return stride[0], *(side // token_patch for side in stride[1:])


def per_position(channels: int, token_patch: int) -> int:
    """Channels of the trunk at one position, from those of the bottleneck."""
    if channels % token_patch**2:
        raise ValueError(
            f"a token of {token_patch} x {token_patch} positions needs a bottleneck whose channels are a multiple of "
            f"{token_patch**2}, got {channels}; for example a product of {token_patch**2} quantizers"
        )
    return channels // token_patch**2


def halvings(stride: tuple[int, ...], patch: int, patch_frames: int = 1) -> list[Factor]:
    """Downsampling factors that, after patches, give `stride`: space first, time last, together where they meet."""
    powers_of_two = all(extent > 0 and extent & (extent - 1) == 0 for extent in (*stride, patch, patch_frames))
    if len(stride) != 3 or stride[1] != stride[2] or not powers_of_two or stride[1] < patch:
        raise ValueError(
            "stride, patch and patch_frames must be powers of two, the stride (t, s, s) with patch dividing s, got "
            f"stride {tuple(stride)}, patch {patch} and patch_frames {patch_frames}; for example stride (4, 8, 8) with "
            "patch 2"
        )
    if stride[0] < patch_frames:
        raise ValueError(
            f"patch_frames must divide the temporal stride, got {patch_frames} and stride {tuple(stride)}; use up to "
            f"{stride[0]}"
        )
    in_space, in_time = (stride[1] // patch).bit_length() - 1, (stride[0] // patch_frames).bit_length() - 1
    count = max(in_space, in_time)
    factors = []
    for index in range(count):
        s = 2 if index < in_space else 1
        factors.append((2 if index >= count - in_time else 1, s, s))
    return factors
