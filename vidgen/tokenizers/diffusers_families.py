"""How each of diffusers' video autoencoders is driven: its frames, its latents, and what it keeps of the past."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, patchify, unpatchify
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vidgen.bottlenecks import AE, FSQ, KL, Bottleneck
from vidgen.latents import VideoSize

KL_WEIGHT = 1e-6  # in training; what the video autoencoders report (VidTok, Open-Sora)


class Family(ABC):
    """The autoencoders of one class of diffusers.

    `moments` and `pixels` take whole rows of tokens; what a network must remember lies in `state`, empty at the start
    of a clip. Where `block_frames` is None they are given whole clips only.

    Attributes:
        lone_first: the first frame has a row of tokens by itself.
        causal: later frames never change earlier tokens.
        block_frames: frames at a time, which bounds memory; None if the network sees the whole clip.
        why_whole: for people who want to stream one that sees the whole clip.
    """

    lone_first: bool = True
    causal: bool = True
    block_frames: int | None = None
    why_whole: str = ""

    def __init__(self, autoencoder: Any) -> None:
        self.config = autoencoder.config

    @abstractmethod
    def stride(self, autoencoder: Any) -> VideoSize:
        """Frames, rows and columns of pixels per token."""

    def channels(self) -> int:
        return self.config.latent_channels

    def bottleneck(self) -> Bottleneck:
        return KL(channels=self.channels(), weight=KL_WEIGHT)

    def statistics(self, autoencoder: Any) -> tuple[Tensor, Tensor]:
        """Mean and deviation (`c` each) of the latents, as the pipelines of diffusers normalise them."""
        return torch.zeros(self.channels()), torch.ones(self.channels()) / self.config.scaling_factor

    def moments(self, autoencoder: Any, video: Tensor, state: dict[str, Any]) -> Tensor:
        """`b 3 t h w` -> what the bottleneck takes, `b c t' h' w'`."""
        return autoencoder.encode(video).latent_dist.parameters

    def pixels(self, autoencoder: Any, vectors: Tensor, state: dict[str, Any]) -> Tensor:
        """`b c t' h' w' -> b 3 t h w`."""
        return autoencoder.decode(vectors).sample


def same_stride(autoencoder: Any) -> VideoSize:
    side = autoencoder.spatial_compression_ratio
    return autoencoder.temporal_compression_ratio, side, side


def listed_statistics(config: Any, *, scaling: float) -> tuple[Tensor, Tensor]:
    """Of a configuration that lists a mean and a deviation for each channel."""
    return torch.tensor(config.latents_mean), torch.tensor(config.latents_std) / scaling


def pieces(x: Tensor, *, first: int, others: int) -> Iterator[Tensor]:
    """`b c t h w` cut along t: `first` frames, then `others` at a time, the last perhaps shorter."""
    yield x[:, :, :first]
    for start in range(first, x.shape[2], others):
        yield x[:, :, start : start + others]


def in_place(kept: Any, fresh: Any) -> Any:
    """The state `fresh`, written into the tensors of the state `kept` before it where their shapes agree.

    What lives as long as the stream then stays where it is. New tensors for each block leave holes in the heap among
    those that live for a moment, and the process grows with the length of the stream. Gradients need the old ones.
    """
    if torch.is_grad_enabled():
        return fresh
    if isinstance(fresh, dict):
        return {name: in_place(None if kept is None else kept[name], value) for name, value in fresh.items()}
    if isinstance(fresh, list):
        before = [None] * len(fresh) if kept is None else kept
        return [in_place(*pair) for pair in zip(before, fresh, strict=True)]
    if isinstance(kept, Tensor) and isinstance(fresh, Tensor) and kept.shape == fresh.shape:
        return kept.copy_(fresh)
    return fresh


def nested_copy(state: Any) -> Any:
    """Lists and dicts of their own around the same tensors, for a network that writes into them."""
    if isinstance(state, dict):
        return {name: nested_copy(value) for name, value in state.items()}
    return [nested_copy(value) for value in state] if isinstance(state, list) else state


class Wan(Family):
    """Wan 2.1 and 2.2: one row of tokens at a time, every causal convolution with a cache that the caller holds."""

    block_frames = 16

    def stride(self, autoencoder: Any) -> VideoSize:
        side = self.config.scale_factor_spatial
        return self.config.scale_factor_temporal, side, side

    def channels(self) -> int:
        return self.config.z_dim

    def statistics(self, autoencoder: Any) -> tuple[Tensor, Tensor]:
        return listed_statistics(self.config, scaling=1.0)

    def moments(self, autoencoder: Any, video: Tensor, state: dict[str, Any]) -> Tensor:
        if self.config.patch_size is not None:
            video = patchify(video, patch_size=self.config.patch_size)
        frames, starts = self.config.scale_factor_temporal, not state
        encoded = []
        for piece in pieces(video, first=1 if starts else frames, others=frames):
            cache = self._cache(autoencoder.encoder, state)
            encoded.append(autoencoder.encoder(piece, feat_cache=cache, feat_idx=[0]))
            state["cache"] = in_place(state["cache"], cache)
        return autoencoder.quant_conv(torch.cat(encoded, dim=2))

    def pixels(self, autoencoder: Any, vectors: Tensor, state: dict[str, Any]) -> Tensor:
        starts, decoded = not state, []
        for row in pieces(autoencoder.post_quant_conv(vectors), first=1, others=1):
            cache, first = self._cache(autoencoder.decoder, state), starts and not decoded
            decoded.append(autoencoder.decoder(row, feat_cache=cache, feat_idx=[0], first_chunk=first))
            state["cache"] = in_place(state["cache"], cache)
        video = torch.cat(decoded, dim=2)
        return video if self.config.patch_size is None else unpatchify(video, patch_size=self.config.patch_size)

    def _cache(self, network: nn.Module, state: dict[str, Any]) -> list[Any]:
        """What each causal convolution of `network` keeps, in a list that the network writes to."""
        if not state:
            state["cache"] = [None for module in network.modules() if isinstance(module, WanCausalConv3d)]
        return list(state["cache"])


class CogVideoX(Family):
    """CogVideoX: eight frames at a time; its norms pool over them, so tokens depend on the rest of their eight."""

    causal = False
    rows = 2  # of tokens in a block
    block_frames = 8

    def stride(self, autoencoder: Any) -> VideoSize:
        side = 2 ** (len(self.config.block_out_channels) - 1)
        return int(self.config.temporal_compression_ratio), side, side

    def moments(self, autoencoder: Any, video: Tensor, state: dict[str, Any]) -> Tensor:
        encoded, frames = [], self.rows * int(self.config.temporal_compression_ratio)
        for piece in pieces(video, first=frames + (not state), others=frames):
            h, cache = autoencoder.encoder(piece, conv_cache=state.get("cache"))
            state["cache"] = in_place(state.get("cache"), cache)
            encoded.append(h if autoencoder.quant_conv is None else autoencoder.quant_conv(h))
        return torch.cat(encoded, dim=2)

    def pixels(self, autoencoder: Any, vectors: Tensor, state: dict[str, Any]) -> Tensor:
        stride, decoded = int(self.config.temporal_compression_ratio), []
        for piece in pieces(vectors, first=self.rows + (not state), others=self.rows):
            # The decoder takes a row alone for an image, and an even number at the start for whole rows of frames.
            image, wanted = not state and vectors.shape[2] == 1, self.rows + (not state)
            frames = stride * piece.shape[2] - (stride - 1 if not state else 0)
            piece = piece if image else repeat_last_row(piece, wanted - piece.shape[2])
            z = piece if autoencoder.post_quant_conv is None else autoencoder.post_quant_conv(piece)
            video, cache = autoencoder.decoder(z, conv_cache=state.get("cache"))
            state["cache"] = in_place(state.get("cache"), cache)
            decoded.append(video[:, :, :frames])
        return torch.cat(decoded, dim=2)


class HunyuanVideo(Family):
    """HunyuanVideo: windows of 17 frames that are blended, and norms that pool over a window."""

    causal = False
    why_whole = "its norms pool over windows of 17 frames, which diffusers blends over the whole clip"

    def stride(self, autoencoder: Any) -> VideoSize:
        return same_stride(autoencoder)


class LTX(Family):
    """LTX-Video: a causal encoder, and a decoder that looks ahead unless its configuration says otherwise."""

    why_whole = "diffusers runs it over the whole clip, and most of its decoders look at later frames"

    def __init__(self, autoencoder: Any) -> None:
        super().__init__(autoencoder)
        self.causal = self.config.encoder_causal

    def stride(self, autoencoder: Any) -> VideoSize:
        return same_stride(autoencoder)

    def statistics(self, autoencoder: Any) -> tuple[Tensor, Tensor]:
        return autoencoder.latents_mean.clone(), autoencoder.latents_std / self.config.scaling_factor

    def pixels(self, autoencoder: Any, vectors: Tensor, state: dict[str, Any]) -> Tensor:
        """Decoders that know a noise level are told that there is none, as the pipelines do by default."""
        b, clean = vectors.shape[0], None
        if self.config.timestep_conditioning:
            clean = torch.zeros(b, device=vectors.device, dtype=vectors.dtype)
        devices = [vectors.device] if vectors.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # some add noise from the global generator: then always the same
            torch.manual_seed(0)
            return autoencoder.decode(vectors, clean).sample


class LTX2(LTX):
    """LTX-2: as LTX-Video, with blocks that make less of space, of time, or of both."""

    def stride(self, autoencoder: Any) -> VideoSize:
        """Counted here: what diffusers counts where the configuration gives no ratio takes every block for both."""
        kinds = [
            kind for kind, scales in zip(self.config.downsample_type, scalings(self.config), strict=True) if scales
        ]
        side = self.config.patch_size * 2 ** sum(kind != "temporal" for kind in kinds)
        return self.config.patch_size_t * 2 ** sum(kind != "spatial" for kind in kinds), side, side

    def pixels(self, autoencoder: Any, vectors: Tensor, state: dict[str, Any]) -> Tensor:
        """Its decoder mirrors edges, for which it takes two rows and two columns."""
        h, w = vectors.shape[3:]
        mirrored = F.pad(vectors, (0, max(2 - w, 0), 0, max(2 - h, 0), 0, 0), mode="replicate")
        side = self.stride(autoencoder)[1]
        return super().pixels(autoencoder, mirrored, state)[..., : h * side, : w * side]


def scalings(config: Any) -> tuple[bool, ...]:
    """Which blocks of an encoder of LTX-2 make less."""
    scaling = config.spatio_temporal_scaling
    return (scaling,) * len(config.downsample_type) if isinstance(scaling, bool) else tuple(scaling)


class HunyuanVideo15(Family):
    """HunyuanVideo 1.5: causal convolutions, norms of single positions, and attention that looks back.

    One clip at a time: the mask of its attention fits no batch of two (diffusers 0.42).
    """

    why_whole = "attention looks back over the whole clip"

    def stride(self, autoencoder: Any) -> VideoSize:
        return same_stride(autoencoder)

    def moments(self, autoencoder: Any, video: Tensor, state: dict[str, Any]) -> Tensor:
        return torch.cat([super(HunyuanVideo15, self).moments(autoencoder, one, state) for one in video.split(1)])

    def pixels(self, autoencoder: Any, vectors: Tensor, state: dict[str, Any]) -> Tensor:
        return torch.cat([super(HunyuanVideo15, self).pixels(autoencoder, one, state) for one in vectors.split(1)])


class KVAE(Family):
    """KVAE (Kandinsky): 16 frames at a time; its norms pool over them, so tokens depend on the rest of their sixteen.

    diffusers gives back the mean alone and calls the variance 1; here the encoder's own variance is used in training.
    """

    causal = False
    segment = 16  # frames at a time, as diffusers has it
    block_frames = segment

    def stride(self, autoencoder: Any) -> VideoSize:
        side = 2 ** (len(self.config.ch_mult) - 1)
        return self.config.temporal_compress_times, side, side

    def channels(self) -> int:
        return self.config.z_channels

    def statistics(self, autoencoder: Any) -> tuple[Tensor, Tensor]:
        return torch.zeros(self.channels()), torch.ones(self.channels())

    def moments(self, autoencoder: Any, video: Tensor, state: dict[str, Any]) -> Tensor:
        encoded, frames = [], self.segment
        for piece in pieces(video, first=frames + (not state), others=frames):
            cache = nested_copy(state["cache"]) if state else autoencoder._make_encoder_cache()
            encoded.append(autoencoder.encoder(piece, cache))
            state["cache"] = in_place(state.get("cache"), cache)
        return torch.cat(encoded, dim=2)

    def pixels(self, autoencoder: Any, vectors: Tensor, state: dict[str, Any]) -> Tensor:
        stride, decoded = self.config.temporal_compress_times, []
        rows = self.segment // stride
        for piece in pieces(vectors, first=rows + (not state), others=rows):
            frames = stride * piece.shape[2] - (0 if state else stride - 1)
            if state and piece.shape[2] == 1:  # the decoder takes every row that comes alone for an image
                piece = repeat_last_row(piece, 1)
            cache = nested_copy(state["cache"]) if state else autoencoder._make_decoder_cache()
            decoded.append(autoencoder.decoder(piece, cache)[:, :, :frames])
            state["cache"] = in_place(state.get("cache"), cache)
        return torch.cat(decoded, dim=2)


class TemporalDecoder(Family):
    """Stable Video Diffusion: an image encoder for each frame by itself, and a decoder that sees its neighbours."""

    lone_first = False
    why_whole = "its decoder looks at earlier and later frames"

    def stride(self, autoencoder: Any) -> VideoSize:
        side = 2 ** (len(self.config.block_out_channels) - 1)
        return 1, side, side

    def moments(self, autoencoder: Any, video: Tensor, state: dict[str, Any]) -> Tensor:
        frames = super().moments(autoencoder, rearrange(video, "b c t h w -> (b t) c h w"), state)
        return rearrange(frames, "(b t) c h w -> b c t h w", b=video.shape[0])

    def pixels(self, autoencoder: Any, vectors: Tensor, state: dict[str, Any]) -> Tensor:
        b, _, t, _, _ = vectors.shape
        frames = autoencoder.decode(rearrange(vectors, "b c t h w -> (b t) c h w"), num_frames=t).sample
        return rearrange(frames, "(b t) c h w -> b c t h w", b=b)


class Mochi(Family):
    """Mochi: six frames a row; attention in the encoder looks back over the whole clip."""

    why_whole = "attention in its encoder looks back over the whole clip"

    def stride(self, autoencoder: Any) -> VideoSize:
        return same_stride(autoencoder)

    def statistics(self, autoencoder: Any) -> tuple[Tensor, Tensor]:
        return listed_statistics(self.config, scaling=self.config.scaling_factor)


class Cosmos(Family):
    """Cosmos: wavelets, causal convolution, and attention that looks back over the whole clip; no posterior."""

    why_whole = "causal attention looks back over the whole clip, and diffusers keeps no state for it"

    def stride(self, autoencoder: Any) -> VideoSize:
        side = self.config.spatial_compression_ratio
        return self.config.temporal_compression_ratio, side, side

    def bottleneck(self) -> Bottleneck:
        return AE(channels=self.channels())

    def statistics(self, autoencoder: Any) -> tuple[Tensor, Tensor]:
        """Cosmos lists statistics for each channel of each of 16 rows; tokens take those of their channel over all."""
        if self.config.latents_mean is None:
            return super().statistics(autoencoder)
        means = torch.tensor(self.config.latents_mean).view(self.channels(), -1)
        variances = torch.tensor(self.config.latents_std).view(self.channels(), -1).square()
        return means.mean(dim=1), (variances.mean(dim=1) + means.var(dim=1, unbiased=False)).sqrt()


class Allegro(Family):
    """Allegro: four frames a row, the first ones too, and norms that pool over the clip.

    diffusers runs it in tiles of 24 frames only and drops what does not fill one; here the network takes the clip
    whole, which is the same for clips of one tile.
    """

    lone_first = False
    causal = False
    why_whole = "its norms pool over the whole clip"

    def stride(self, autoencoder: Any) -> VideoSize:
        side = autoencoder.spatial_compression_ratio
        return int(self.config.temporal_compression_ratio), side, side

    def moments(self, autoencoder: Any, video: Tensor, state: dict[str, Any]) -> Tensor:
        return self._each_frame(autoencoder.quant_conv, autoencoder.encoder(video))

    def pixels(self, autoencoder: Any, vectors: Tensor, state: dict[str, Any]) -> Tensor:
        return autoencoder.decoder(self._each_frame(autoencoder.post_quant_conv, vectors))

    def _each_frame(self, layer: nn.Module, x: Tensor) -> Tensor:
        frames = layer(rearrange(x, "b c t h w -> (b t) c h w"))
        return rearrange(frames, "(b t) c h w -> b c t h w", b=x.shape[0])


class Magvit(Family):
    """EasyAnimate's MAGVIT: one row of tokens at a time, with caches that lie on its layers."""

    why_whole = "diffusers keeps the state of its convolutions on the layers, where two streams would meet"

    def stride(self, autoencoder: Any) -> VideoSize:
        return same_stride(autoencoder)


class VidTok(Family):
    """VidTok: causal and not, KL and FSQ; the padding that diffusers leaves to `forward` is done here."""

    why_whole = "diffusers keeps the state of its convolutions on the layers, where two streams would meet"

    def __init__(self, autoencoder: Any) -> None:
        super().__init__(autoencoder)
        self.causal = self.lone_first = self.config.is_causal

    def stride(self, autoencoder: Any) -> VideoSize:
        side = 2 ** len(autoencoder.encoder.spatial_ds)
        return autoencoder.temporal_compression_ratio, side, side

    def channels(self) -> int:
        return self.config.z_channels

    def bottleneck(self) -> Bottleneck:
        if self.config.regularizer == "fsq":
            return FSQ(levels=(8,) * self.channels())
        return KL(channels=self.channels(), weight=KL_WEIGHT)

    def statistics(self, autoencoder: Any) -> tuple[Tensor, Tensor]:
        return torch.zeros(self.channels()), torch.ones(self.channels())

    def moments(self, autoencoder: Any, video: Tensor, state: dict[str, Any]) -> Tensor:
        stride, frames = autoencoder.temporal_compression_ratio, video.shape[2]
        if self.lone_first:
            video = torch.cat([video[:, :, :1].expand(-1, -1, stride - 1, -1, -1), video], dim=2)
            return autoencoder._encode(video)
        # Whole chunks only; the rows that this adds are dropped.
        video = repeat_last_row(video, -frames % autoencoder.num_sample_frames_batch_size)
        return autoencoder._encode(video)[:, :, : frames // stride]

    def pixels(self, autoencoder: Any, vectors: Tensor, state: dict[str, Any]) -> Tensor:
        if not self.lone_first:
            vectors = repeat_last_row(vectors, -vectors.shape[2] % autoencoder.num_latent_frames_batch_size)
        return autoencoder.decode(vectors)


def repeat_last_row(x: Tensor, times: int) -> Tensor:
    """`b c t h w -> b c (t + times) h w`."""
    return F.pad(x, (0, 0, 0, 0, 0, times), mode="replicate") if times else x


REFUSED = {
    "AutoencoderKLMiniMaxH3": "it keeps 5n + 2 rows of tokens of 17n + 5 frames, which is no grid in time",
}

FAMILIES: dict[str, type[Family]] = {
    "AutoencoderKLAllegro": Allegro,
    "AutoencoderKLCogVideoX": CogVideoX,
    "AutoencoderKLCosmos": Cosmos,
    "AutoencoderKLHunyuanVideo": HunyuanVideo,
    "AutoencoderKLHunyuanVideo15": HunyuanVideo15,
    "AutoencoderKLKVAEVideo": KVAE,
    "AutoencoderKLLTX2Video": LTX2,
    "AutoencoderKLLTXVideo": LTX,
    "AutoencoderKLMagvit": Magvit,
    "AutoencoderKLMochi": Mochi,
    "AutoencoderKLTemporalDecoder": TemporalDecoder,
    "AutoencoderKLWan": Wan,
    "AutoencoderVidTok": VidTok,
}
