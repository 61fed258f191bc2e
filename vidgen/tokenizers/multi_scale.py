"""A pyramid of tokens a frame, each scale coding what the coarser ones left over (SPAE, VAR, ImageFolder)."""

from dataclasses import replace
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks the loader up in this module
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vidgen.bottlenecks import Bottleneck, Bottlenecked, Product, Quantizer
from vidgen.bottlenecks.base import kept_counts
from vidgen.latents import LatentPart, Latents, LatentSpec, VideoSize
from vidgen.nn.causal_conv import StreamCache
from vidgen.nn.random import Generators
from vidgen.tokenizers.blockwise import BlockwiseTokenizer
from vidgen.tokenizers.parts import PartedTokenizer
from vidgen.tokenizers.wrapping import configured


class ScalePyramid(Bottleneck):
    """One quantizer at every scale of each row of a grid, the coarsest first (VAR, arXiv 2404.02905, algorithms 1, 2).

    Ids are those of all scales one after the other, `b n q`; vectors are on the grid.

    Args:
        quantizer: of every scale; its codes must be able to stand for what is left over.
        scales: places of the grid, along both axes, that a token of each scale stands for.
        dropout: share of the training clips that are decoded from a random number of their first scales.
    """

    def __init__(self, quantizer: Bottleneck, *, scales: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        if not isinstance(quantizer, Quantizer) or quantizer.unit_length or quantizer.needs_gradient:
            raise ValueError(
                "scales need a quantizer whose codes can stand for what is left over, such as fsq, lfq, simvq or vq "
                f'with {{"cosine": false}}; got {type(quantizer).__name__}'
            )
        if any(getattr(module, "balance", 0) for module in quantizer.modules()):
            raise ValueError(
                "what a scale leaves over is that of the nearest code, and a balanced assignment takes others; set "
                "balance to 0"
            )
        if not scales or scales[-1] != 1 or list(scales) != sorted(scales, reverse=True):
            raise ValueError(f"scales go from coarse to fine and end with 1, such as (8, 4, 2, 1); got {scales}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"the dropout of scales is a share between 0 and 1, got {dropout}")
        self.quantizer, self.scales, self.dropout = quantizer, scales, dropout
        self.in_channels, self.channels = quantizer.in_channels, quantizer.channels
        self.codebooks, self.fixed, self.passed = quantizer.codebooks, quantizer.fixed, quantizer.passed
        apart = len(quantizer.layers) if isinstance(quantizer, Product) else 1  # sub-codes stay by themselves
        self.smooth = nn.ModuleList(nn.Conv2d(self.channels, self.channels, 3, padding=1, groups=apart) for _ in scales)
        for layer in self.smooth.parameters():
            nn.init.zeros_(layer)

    def forward(
        self,
        features: Tensor,
        *,
        sample: bool = False,
        generators: Generators | None = None,
        grid: VideoSize | None = None,
    ) -> Bottlenecked:
        """`b (t h w) in_channels` on `grid`, which must be given."""
        if grid is None:
            raise ValueError("a pyramid needs to know the grid (t, h, w) of its features")
        kept = kept_counts(features, len(self.scales), self.dropout if self.quantizer.learns else 0.0, generators)
        with torch.autocast(features.device.type, enabled=False):  # bf16 would pick other codes
            vectors = self.quantizer.enter(features.float())
            rows = rearrange(vectors, "b (t h w) c -> b c t h w", t=grid[0], h=grid[1])
            rests = torch.cat(self._rests(rows, grid), dim=1)
            result = self.quantizer.quantize(rests, sample=sample, generators=generators)
            decoded = torch.zeros_like(rows)
            places = [-(-grid[1] // scale) * -(-grid[2] // scale) * grid[0] for scale in self.scales]
            for number, codes in enumerate(result.vectors.detach().split(places, dim=1)):
                part = self.spread(number, codes, grid)
                decoded = decoded + (part if kept is None else torch.where(number < kept[..., None, None], part, 0.0))
            decoded = rearrange(decoded, "b c t h w -> b (t h w) c")
            smoothing = decoded - decoded.detach()  # 0, with the gradient to what smooths
            return Bottlenecked(self.passed(vectors, decoded) + smoothing, result.ids, result.losses)

    def _rests(self, rows: Tensor, grid: VideoSize) -> list[Tensor]:
        """`b (t h' w') c` of each scale: what the coarser ones leave over of `b c t h w`, with its gradient.

        All scales are then quantized in one go, so that a codebook that keeps itself learns once a step from them all.
        """
        made, rests = torch.zeros_like(rows), []
        for number, scale in enumerate(self.scales):
            rests.append(pooled(rows - made, scale))
            with torch.no_grad():
                codes = self.quantizer.lookup(self.quantizer.nearest(rests[-1]))
                made = made + self.spread(number, codes, grid)
        return rests

    def spread(self, number: int, codes: Tensor, grid: VideoSize) -> Tensor:
        """What the codes `b (t h' w') c` of a scale add to the grid, `b c t h w`."""
        (t, h, w), scale = grid, self.scales[number]
        rows = rearrange(codes, "b (t h w) c -> (b t) c h w", t=t, h=-(-h // scale))
        if scale > 1:
            rows = F.interpolate(rows, scale_factor=scale, mode="bicubic")[..., :h, :w]
        layer = self.smooth[number]
        rows = rows + layer(rows.to(layer.weight.dtype)).to(rows.dtype)
        return rearrange(rows, "(b t) c h w -> b c t h w", t=t)

    def lookup(self, ids: Tensor) -> Tensor:
        """`b n q -> b n c`: the code of each token by itself; `spread` brings them together."""
        return self.quantizer.lookup(ids)

    def nearest(self, vectors: Tensor) -> Tensor:
        return self.quantizer.nearest(vectors)


def pooled(rows: Tensor, scale: int) -> Tensor:
    """`b c t h w -> b (t h' w') c`: means over `scale` × `scale` places, of fewer at the edge."""
    t = rows.shape[2]
    rows = rearrange(rows, "b c t h w -> (b t) c h w")
    rows = F.avg_pool2d(rows, scale, ceil_mode=True, count_include_pad=False)
    return rearrange(rows, "(b t) c h w -> b (t h w) c", t=t)


class MultiScaleTokenizer(PartedTokenizer, BlockwiseTokenizer, ConfigMixin):
    """A trunk with one grid of tokens, whose quantizer codes each row of it scale by scale, and so as several parts.

    Causality, streams and blocks are those of the trunk. `coarse` keeps the first scales alone.

    Args:
        trunk_config: of a tokenizer that has one grid, its class as `_class_name`; its quantizer is used at all scales.
        scales: places of the trunk's grid along both axes that a token of each scale stands for, coarse to fine.
        dropout: share of the training clips that are decoded from a random number of their first scales, so that the
            first scales alone decode well (ImageFolder's quantizer dropout, arXiv 2410.01756, section 3.2).
    """

    @register_to_config
    def __init__(
        self,
        trunk_config: dict[str, Any],
        scales: tuple[int, ...] = (8, 4, 2, 1),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        trunk = configured(trunk_config, option="trunk_config")
        if not isinstance(trunk, BlockwiseTokenizer) or not trunk.spec.is_grid:
            raise ValueError(f"scales need a trunk with one grid of tokens, and {type(trunk).__name__} has none")
        trunk.bottleneck = ScalePyramid(trunk.bottleneck, scales=tuple(scales), dropout=dropout)
        self.trunk = trunk
        self.token_parts = tuple(f"trunk.{part}" for part in trunk.token_parts)
        self.stride, self.block_frames, self.lone_first = trunk.stride, trunk.block_frames, trunk.lone_first
        self.causal, self.squared_weight = trunk.causal, trunk.squared_weight
        self.register_part_statistics([trunk.bottleneck.channels] * len(scales))

    @property
    def bottleneck(self) -> ScalePyramid:  # pyright: ignore[reportIncompatibleVariableOverride]
        pyramid = self.trunk.bottleneck
        assert isinstance(pyramid, ScalePyramid)
        return pyramid

    def bottleneck_at(self, part: int) -> Bottleneck:
        return self.bottleneck

    @property
    def spec(self) -> LatentSpec:
        frames, down, across = self.stride
        parts = []
        for number, scale in enumerate(self.bottleneck.scales):
            stride = (frames, down * scale, across * scale)
            parts.append(
                LatentPart(
                    f"scale_{number}",
                    "thw",
                    stride,
                    self.bottleneck.channels,
                    self.bottleneck.codebooks,
                    first_frame_alone=self.lone_first,
                )
            )
        return LatentSpec(tuple(parts), causal=self.causal, streamable=self.block_frames is not None)

    def features(self, video: Tensor, cache: StreamCache | None) -> Tensor:
        return self.trunk.features(video, cache)

    def bottlenecked(self, features: Tensor, *, sample: bool, generators: Generators | None) -> Bottlenecked:
        _, _, t, h, w = features.shape
        features = rearrange(features, "b c t h w -> b (t h w) c")
        return self.bottleneck(features, sample=sample, generators=generators, grid=(t, h, w))

    def vectors(self, latents: Latents) -> Tensor:
        """What `pixels` takes: the sum of the scales, of those alone that end within `latents.length`."""
        assert latents.ids is not None
        grid = self.spec.grid(latents.size, len(self.spec.parts) - 1, start=latents.start)
        codes = self.bottleneck.lookup(latents.ids).to(self.dtype)
        rows = codes.new_zeros(len(codes), codes.shape[2], *grid)
        for number, place in enumerate(self.spec.slices(latents.size, start=latents.start)):
            part = self.bottleneck.spread(number, codes[:, place], (grid[0], grid[1], grid[2]))
            if latents.length is not None:
                part = torch.where((place.stop <= latents.length.to(part.device)).view(-1, 1, 1, 1, 1), part, 0.0)
            rows = rows + part
        return rows

    def pixels(self, vectors: Tensor, cache: StreamCache | None) -> Tensor:
        return self.trunk.pixels(vectors, cache)

    def last_layer(self, frames: int) -> Tensor:
        return self.trunk.last_layer(frames)


def coarse(latents: Latents, scales: int) -> Latents:
    """The same latents of which only the first `scales` parts are to be decoded."""
    places = latents.spec.slices(latents.size, start=latents.start)
    if not 1 <= scales <= len(places):
        raise ValueError(f"expected 1 to {len(places)} scales, got {scales}")
    length = torch.full((len(latents),), places[scales - 1].stop, device=latents.tokens.device)
    return replace(latents, length=length)
