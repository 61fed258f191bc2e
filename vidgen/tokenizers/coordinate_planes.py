"""Coordinate planes (CoordTok): a long clip as xy, xt and yt planes, from which any patch decodes by its coordinate."""

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks the loader up in this module
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from vidgen.bottlenecks import build_bottleneck
from vidgen.kernels import AttentionSpec
from vidgen.latents import AXES, LatentPart, Latents, LatentSpec, VideoSize
from vidgen.nn.norms import RMSNorm
from vidgen.nn.positions import positions, rotary, sine_features
from vidgen.nn.random import Generators, rand
from vidgen.nn.transformer import FeedForward
from vidgen.tokenizers.base import Critic, check_loss_weights, check_video, reconstruction_losses
from vidgen.tokenizers.blockwise import pad
from vidgen.tokenizers.vit import Block, PatchEmbedding, check_stride, check_transformer, grid_places, learned_vectors
from vidgen.tokenizers.whole_clip import WholeClipTokenizer

PLANES = ("hw", "tw", "th")
FRAMES_AT_ONCE = 8  # in decode: what bounds its memory


class PlaneTransformer(nn.Module):
    """Blocks in which tokens of any parts see each other, with rotary places, and a norm."""

    def __init__(self, width: int, heads: int, *, layers: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm_out = RMSNorm(width)
        self.head_channels = width // heads

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        turns = rotary(places, self.head_channels)
        everything = AttentionSpec.sequence(x.shape[1])
        for block in self.blocks:
            x = block(x, everything, turns)
        return self.norm_out(x)


class PatchDecoder(nn.Module):
    """The pixels of a patch from what the planes hold at its coordinate: `b n d`, `b n 3 -> b n 3 p p`."""

    def __init__(self, width: int, *, layers: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.norms = nn.ModuleList(RMSNorm(width) for _ in range(layers))
        self.layers = nn.ModuleList(FeedForward(width, expansion=4.0) for _ in range(layers))
        self.norm_out = RMSNorm(width)
        self.to_pixels = nn.Linear(width, 3 * patch * patch)

    def forward(self, x: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return rearrange(self.to_pixels(self.norm_out(x)), "b n (c p q) -> b n c p q", p=self.patch, q=self.patch)


class CoordinatePlanesTokenizer(WholeClipTokenizer, ConfigMixin):
    """Three planes of tokens for a clip of any length; a patch is a function of the planes and its coordinate.

    CoordTok (arXiv 2411.14762, section 3): plane queries gather the clip, decoding interpolates each plane at a
    coordinate, and training decodes a sample of the patches only, so that long clips fit into memory. In the paper the
    sampled patches attend to each other; here the plane tokens do, and each patch is decoded by itself: any patch
    equals the same patch of the whole video, and decoding costs a pointwise network a patch. Every token sees the whole
    clip, so nothing streams; `decode` runs a few frames at a time, and `decode_patches` gives any patches.

    Args:
        bottleneck_type: a name in `vidgen.bottlenecks.BOTTLENECKS`, one for all planes.
        bottleneck_options: keyword arguments of that bottleneck.
        stride: frames, rows and columns of pixels of a plane token along the axes that its plane has.
        patch: frames, rows and columns of pixels of an encoder patch.
        out_patch: pixels a side of a decoded patch.
        width, heads: of the transformers.
        encoder_layers: over patches and planes; decoder_layers: over planes; patch_layers: at each decoded patch.
        sampled_patches: decoded in training, a clip.
        squared_weight: of the squared error beside the absolute one in training.
    """

    learns_hidden_frames = False  # a critic judges a few frames of a clip, not those that were hidden
    trains_on_pieces = True
    token_parts = ("to_patches", "plane_query", "encoder", "to_features", "bottlenecks")

    @register_to_config
    def __init__(
        self,
        bottleneck_type: str = "ae",
        bottleneck_options: dict[str, Any] | None = None,
        stride: tuple[int, int, int] = (4, 8, 8),
        patch: tuple[int, int, int] = (8, 8, 8),
        out_patch: int = 8,
        width: int = 768,
        heads: int = 12,
        encoder_layers: int = 12,
        decoder_layers: int = 12,
        patch_layers: int = 2,
        sampled_patches: int = 1024,
        squared_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.stride, self.patch = check_stride(stride), check_stride(patch)
        check_transformer(width=width, heads=heads, layers=min(encoder_layers, decoder_layers))
        if min(out_patch, patch_layers, sampled_patches) < 1:
            raise ValueError(
                f"out_patch, patch_layers and sampled_patches must be at least 1, got {out_patch}, {patch_layers} and "
                f"{sampled_patches}"
            )
        check_loss_weights(squared_weight=squared_weight)
        self.out_patch, self.sampled_patches, self.squared_weight = out_patch, sampled_patches, squared_weight
        bottleneck = build_bottleneck(bottleneck_type, bottleneck_options or {})
        self.register_parts({"plane": bottleneck}, ("plane", "plane", "plane"))
        self.to_patches = PatchEmbedding(self.patch, width, lone_first=False)
        self.plane_query = learned_vectors(len(PLANES), width)
        self.encoder = PlaneTransformer(width, heads, layers=encoder_layers)
        self.to_features = nn.Linear(width, bottleneck.in_channels)
        self.from_vectors = nn.Linear(bottleneck.channels, width)
        self.decoder_plane = learned_vectors(len(PLANES), width)
        self.decoder = PlaneTransformer(width, heads, layers=decoder_layers)
        self.mix_planes = nn.Linear(len(PLANES) * width, width)
        self.patch_decoder = PatchDecoder(width, layers=patch_layers, patch=out_patch)

    @property
    def spec(self) -> LatentSpec:
        bottleneck = self.bottleneck_at(0)
        parts = []
        for axes in PLANES:
            stride = tuple(self.stride[AXES.index(axis)] for axis in axes)
            parts.append(LatentPart(f"plane_{axes}", axes, stride, bottleneck.channels, bottleneck.codebooks))
        return LatentSpec(tuple(parts), causal=False, streamable=False)

    # encoding

    def features(self, video: Tensor) -> list[Tensor]:
        size = (video.shape[2], video.shape[3], video.shape[4])
        t, h, w = self.patch
        patches = self.to_patches(pad(video, (-size[0] % t, -size[1] % h, -size[2] % w)))
        patch_places = grid_places((patches.shape[1], patches.shape[2], patches.shape[3]), device=video.device)
        patch_places = patch_places * torch.tensor(self.patch, device=video.device)
        patch_places = patch_places / torch.tensor(self.stride, device=video.device)  # in plane tokens
        planes, plane_places = self._planes(self.plane_query, size)
        places = torch.cat([patch_places, plane_places])
        patches = rearrange(patches, "b t h w d -> b (t h w) d")
        x = torch.cat([patches, planes.expand(len(video), -1, -1).to(patches.dtype)], dim=1)
        x = self.encoder(x + sine_features(places, x.shape[2]).to(x.dtype), places)
        features = self.to_features(x[:, patches.shape[1] :])
        return [features[:, place] for place in self.spec.slices(size)]

    def _planes(self, vectors: Tensor, size: VideoSize) -> tuple[Tensor, Tensor]:
        """One vector a plane, `3 d`, at each of its tokens, `n d`, and the places of these in plane tokens, `n 3`."""
        coordinates = self.spec.coordinates(size).to(vectors.device)
        return vectors[coordinates[:, 0]], positions(coordinates, self.stride)

    # decoding

    def pixels(self, vectors: list[Tensor], size: VideoSize) -> Tensor:
        planes = self._decoded_planes(vectors, size)
        chunks = []
        for start in range(0, size[0], FRAMES_AT_ONCE):
            frames = range(start, min(start + FRAMES_AT_ONCE, size[0]))
            places = self._patch_places(size, frames=frames).to(vectors[0].device)
            patches = self._patches(planes, places.expand(len(vectors[0]), -1, -1))
            chunks.append(self._assembled(patches, size))
        return torch.cat(chunks, dim=2)

    @torch.no_grad()
    def decode_patches(self, latents: Latents, places: Tensor) -> Tensor:
        """Patches `b n 3 p p` in [-1, 1] with their first pixel at `places` (`n 3`: frame, row, column, or between)."""
        planes = self._decoded_planes(self.vectors(latents), latents.size)
        places = places.to(latents.tokens.device).expand(len(latents), -1, -1)
        return self._patches(planes, places).clamp(-1.0, 1.0)

    def _decoded_planes(self, vectors: list[Tensor], size: VideoSize) -> list[Tensor]:
        """The planes as the decoder sees them, `b d` and the two axes of each."""
        x = self.from_vectors(torch.cat(vectors, dim=1))
        own, places = self._planes(self.decoder_plane, size)
        x = self.decoder(x + own.to(x.dtype) + sine_features(places, x.shape[2]).to(x.dtype), places)
        planes = []
        for number, place in enumerate(self.spec.slices(size)):
            rows, columns = self.spec.grid(size, number)
            planes.append(rearrange(x[:, place], "b (r c) d -> b d r c", r=rows, c=columns))
        return planes

    def _patches(self, planes: list[Tensor], places: Tensor) -> Tensor:
        """`b n 3` first pixels -> `b n 3 p p`: each plane interpolated at the middle of the patch, mixed, decoded."""
        to_middle = torch.tensor([0.5, self.out_patch / 2, self.out_patch / 2], device=places.device)
        in_tokens = (places + to_middle) / torch.tensor(self.stride, device=places.device)  # token i covers i … i + 1
        seen = []
        for plane, axes in zip(planes, PLANES, strict=True):
            row, column = (2 * in_tokens[..., AXES.index(axis)] / plane.shape[2 + i] - 1 for i, axis in enumerate(axes))
            where = rearrange([column, row], "two b n -> b 1 n two")
            # bf16 places would be off by pixels
            sampled = F.grid_sample(plane.float(), where, padding_mode="border", align_corners=False)
            seen.append(rearrange(sampled, "b d 1 n -> b n d").to(plane.dtype))
        x = self.mix_planes(torch.cat(seen, dim=-1))
        phase = sine_features(in_tokens.flatten(0, 1), x.shape[2]).unflatten(0, x.shape[:2])
        return self.patch_decoder(x + phase.to(x.dtype))

    def _patch_places(self, size: VideoSize, *, frames: range) -> Tensor:
        """First pixels `n 3` of the patches that cover those frames, in raster order."""
        rows, columns = self._patch_grid(size)
        places = grid_places((len(frames), rows, columns), device=torch.device("cpu"))
        return places * torch.tensor([1, self.out_patch, self.out_patch]) + torch.tensor([frames.start, 0, 0])

    def _patch_grid(self, size: VideoSize) -> tuple[int, int]:
        return -(-size[1] // self.out_patch), -(-size[2] // self.out_patch)

    def _assembled(self, patches: Tensor, size: VideoSize) -> Tensor:
        """`b n 3 p p` of whole frames -> `b 3 t h w`."""
        rows, columns = self._patch_grid(size)
        video = rearrange(patches, "b (t h w) c p q -> b c t (h p) (w q)", h=rows, w=columns)
        return video[:, :, :, : size[1], : size[2]]

    @property
    def last_layer(self) -> Tensor:
        return self.patch_decoder.to_pixels.weight

    # training

    def training_losses(
        self, video: Tensor, *, generators: Generators, critic: Critic | None = None
    ) -> dict[str, Tensor]:
        """A sample of scattered patches; under a critic, which judges frames, as many patches in whole frames."""
        check_video(video)
        size = (video.shape[2], video.shape[3], video.shape[4])
        tokens = self.bottlenecked(self.features(video), sample=True, generators=generators)
        planes = self._decoded_planes(tokens.vectors, size)
        if critic is None:
            places = self._scattered(size, generators).to(video.device)
            target, reconstruction = self._target_patches(video, places), self._patches(planes, places)
            target, reconstruction = (rearrange(x, "b n c p q -> b c n p q") for x in (target, reconstruction))
        else:
            places, target = self._neighbouring_frames(video, generators)
            reconstruction = self._assembled(self._patches(planes, places), size)
        losses = reconstruction_losses(
            target, reconstruction, squared_weight=self.squared_weight, critic=critic, last_layer=self.last_layer
        )
        return {**losses, **tokens.losses}

    def _neighbouring_frames(self, video: Tensor, generators: Generators) -> tuple[Tensor, Tensor]:
        """A few frames in a row of each sample: first pixels `b n 3` of all their patches, and the frames."""
        size = (video.shape[2], video.shape[3], video.shape[4])
        rows, columns = self._patch_grid(size)
        count = max(1, min(size[0], self.sampled_patches // (rows * columns)))
        first = (rand((len(video),), generators).cpu() * (size[0] - count + 1)).long()
        places = self._patch_places(size, frames=range(count)) + F.pad(first[:, None, None], (0, 2))
        frames = torch.stack(
            [clip[:, start : start + count] for clip, start in zip(video, first.tolist(), strict=True)]
        )
        return places.to(video.device), frames

    def _scattered(self, size: VideoSize, generators: Generators) -> Tensor:
        """First pixels `b n 3` of random patches of the lattice, other ones for each sample."""
        rows, columns = self._patch_grid(size)
        extents = torch.tensor([size[0], rows, columns])
        drawn = rand((len(generators), self.sampled_patches, 3), generators).cpu()
        return (drawn * extents).floor() * torch.tensor([1, self.out_patch, self.out_patch])

    def _target_patches(self, video: Tensor, places: Tensor) -> Tensor:
        """The pixels `b n 3 p p` of patches at `places`; beyond the border the last row and column repeat."""
        patch = torch.arange(self.out_patch, device=video.device)
        frame, row, column = places.long().unbind(dim=-1)
        rows = (row[..., None] + patch).clamp(max=video.shape[3] - 1)
        columns = (column[..., None] + patch).clamp(max=video.shape[4] - 1)
        sample = repeat(torch.arange(len(video), device=video.device), "b -> b 1 1 1")
        pixels = video[sample, :, frame[..., None, None], rows[..., :, None], columns[..., None, :]]
        return rearrange(pixels, "b n p q c -> b n c p q")
