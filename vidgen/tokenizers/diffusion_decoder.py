"""A decoder that denoises: flow matching around any tokenizer, `decode(latents, steps=…)` (ε-VAE, Divot)."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks the loader up in this module
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vidgen.latents import Latents
from vidgen.nn.causal_conv import CausalConv3d, StreamCache
from vidgen.nn.folding import PatchFolding
from vidgen.nn.norms import ActivatedChannelNorm, ChannelRMSNorm
from vidgen.nn.positions import level_features
from vidgen.nn.random import Generators, rand, randn, seeded
from vidgen.tokenizers.base import Critic, check_loss_weights, check_video
from vidgen.tokenizers.blockwise import in_blocks, pad
from vidgen.tokenizers.wrapping import WrappingTokenizer

LEAST_LEVEL = 0.1  # below it errors of the clean video would count more than 100 times
STEPS = 3  # ε-VAE decodes in one to three


class ModulatedBlock(nn.Module):
    """norm, modulation by the noise level, SiLU, convolution in space; norm, SiLU, convolution in time; skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_space = ChannelRMSNorm(width)
        self.to_modulation = nn.Linear(width, 2 * width)
        self.conv_space = CausalConv3d(width, width, kernel=(1, 3, 3))
        self.norm_time = ActivatedChannelNorm(width)
        self.conv_time = CausalConv3d(width, width, kernel=(3, 1, 1))

    def forward(self, x: Tensor, told: Tensor, cache: StreamCache | None) -> Tensor:
        shift, scale = rearrange(self.to_modulation(told), "b (two d) -> two b d 1 1 1", two=2)
        h = self.conv_space(F.silu(self.norm_space(x) * (1 + scale) + shift))
        return x + self.conv_time.after(self.norm_time, h, cache)


class Denoiser(nn.Module):
    """(noisy video, its noise level `b` in [0, 1], coarse video) -> clean video, `b 3 t h w` each; causal in time."""

    def __init__(self, *, patch: int, width: int, depth: int) -> None:
        super().__init__()
        self.folding = PatchFolding(frames=1, side=patch)
        self.conv_in = CausalConv3d(6 * self.folding.pixels, width, kernel=(1, 1, 1))
        self.level_embedding = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.blocks = nn.ModuleList(ModulatedBlock(width) for _ in range(depth))
        self.norm_out = ActivatedChannelNorm(width)
        self.conv_out = CausalConv3d(width, 3 * self.folding.pixels, kernel=(1, 1, 1))
        nn.init.normal_(self.conv_out.conv.weight, std=0.01)  # begins close to the coarse video

    def forward(self, noisy: Tensor, level: Tensor, coarse: Tensor, cache: StreamCache | None = None) -> Tensor:
        h, w = noisy.shape[3:]
        missing = (0, -h % self.folding.side, -w % self.folding.side)
        x = self.folding.folded(pad(torch.cat([noisy, coarse], dim=1), missing))
        x = self.conv_in(x)
        told = self.level_embedding(level_features(level, x.shape[1]).to(x.dtype))
        for block in self.blocks:
            x = block(x, told, cache)
        change = self.folding.unfolded(self.conv_out(self.norm_out(x)))
        return coarse + change[..., :h, :w]


class DiffusionDecoderTokenizer(WrappingTokenizer, ConfigMixin):
    """The tokens of any tokenizer, decoded by flow matching that is conditioned on what its own decoder makes of them.

    ε-VAE (arXiv 2410.04081) replaces the decoder of an autoencoder by a denoiser that sees the latents upsampled; here
    the wrapped decoder upsamples them, so that tokens of any kind will do, and `steps=0` gives its result.
    The network says the clean video, and the loss is that of the velocity (noise - clean).

    Args:
        encoder_config: configuration of the wrapped tokenizer, with its class as `_class_name`.
        patch: pixels a side that are folded into channels.
        width, depth: of the denoiser.
        block_frames: frames that are denoised at a time; the same for one shot and for streams.
        freeze_encoder: train the denoiser alone; otherwise the wrapped tokenizer learns with it.
        flow_weight: of the flow term beside those of the wrapped tokenizer.
    """

    learns_hidden_frames = False  # it would learn to denoise the clip that the wrapped tokenizer sees

    @register_to_config
    def __init__(
        self,
        encoder_config: dict[str, Any],
        patch: int = 4,
        width: int = 256,
        depth: int = 6,
        block_frames: int = 16,
        freeze_encoder: bool = False,
        flow_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if min(patch, depth, block_frames) < 1 or width < 2 or width % 2:
            raise ValueError(
                "patch, depth and block_frames must be at least 1 and width even, got "
                f"{patch}, {depth}, {block_frames} and width {width}"
            )
        self.register_encoder(encoder_config, freeze=freeze_encoder)
        self.build_decoder()
        self.reach = self.reach[0], None  # noise is drawn for whole frames, and a tile would have another one
        check_loss_weights(flow_weight=flow_weight)
        self.block_frames, self.flow_weight = block_frames, flow_weight

    def build_decoder(self) -> None:
        self.denoiser = Denoiser(patch=self.config["patch"], width=self.config["width"], depth=self.config["depth"])

    # decoding

    def decode(self, latents: Latents, *, steps: int | None = None, generators: Generators | None = None) -> Tensor:
        """Video of exactly `latents.size`; `steps` of Euler, 3 by default, 0 for the wrapped decoder alone.

        The noise of a frame depends on the generator of its sample and on the number of the frame; without
        `generators` it is always the same.
        """
        steps = STEPS if steps is None else steps
        if steps < 0:
            raise ValueError(f"steps must be at least 0, got {steps}")
        seeds = [0] * len(latents)
        if generators is not None:
            if len(generators) != len(latents):
                raise ValueError(f"expected one generator per sample, {len(latents)} in all, got {len(generators)}")
            seeds = [int(torch.randint(2**62, (), generator=g, device=g.device)) for g in generators]
        return torch.cat(list(self._denoised(self.encoder.decode_chunks([latents]), steps=steps, seeds=seeds)), dim=2)

    def decode_stream(self, chunks: Iterable[Latents]) -> Iterator[Tensor]:
        return self._denoised(self.encoder.decode_stream(chunks), steps=STEPS, seeds=None)

    @torch.no_grad()
    def _denoised(self, coarse: Iterable[Tensor], *, steps: int, seeds: list[int] | None) -> Iterator[Tensor]:
        """Chunks of the coarse video -> blocks of the video; each step keeps the past of its own convolutions."""
        caches, start = [StreamCache() for _ in range(steps)], 0
        for block, final in in_blocks(coarse, first=self.block_frames, others=self.block_frames):
            seeds = [0] * len(block) if seeds is None else seeds
            video = frame_noise(block, start=start, seeds=seeds) if steps else block
            for step, cache in enumerate(caches):
                cache.begin_block(final=final)
                level = torch.full((len(block),), max(1 - step / steps, LEAST_LEVEL), device=block.device)
                clean = self.denoiser(video, level, block, cache)
                # Euler along (video - clean) / level, from `level` to `level - 1 / steps`
                video = clean + (video - clean) * ((steps - step - 1) / (steps - step))
            start += block.shape[2]
            yield video.clamp(-1.0, 1.0)

    # training

    def training_losses(
        self, video: Tensor, *, generators: Generators, critic: Critic | None = None
    ) -> dict[str, Tensor]:
        check_video(video)
        if self.freeze_encoder and critic is not None:
            raise ValueError(
                "perceptual, adversarial and other pixel terms judge the wrapped decoder, and freeze_encoder keeps "
                "it as it is; set freeze_encoder to False or leave these terms out (pixel_loss own, weights 0)"
            )
        coarse, losses = self.coarse_and_losses(video, generators=generators, critic=critic)
        noise = randn(video.shape, generators, like=video)
        level = LEAST_LEVEL + (1 - LEAST_LEVEL) * rand((len(video),), generators, like=video)
        t = level[:, None, None, None, None]
        noisy = (1 - t) * video + t * noise
        velocity = (noisy - self.denoiser(noisy, level, coarse)) / t
        return {**losses, "flow": self.flow_weight * (velocity - (noise - video)).float().square().mean()}


def frame_noise(like: Tensor, *, start: int, seeds: list[int]) -> Tensor:
    """Normal noise `b c t h w` in which frame t depends on its sample's seed and on `start + t` alone."""
    _, c, t, h, w = like.shape
    frames = [
        randn((len(seeds), c, h, w), seeded([frame_seed(seed, start + frame) for seed in seeds]), like=like)
        for frame in range(t)
    ]
    return torch.stack(frames, dim=2)


def frame_seed(seed: int, frame: int) -> int:
    """A seed of 63 bits for one frame; neighbours differ in many bits (steps of 2^64 over the golden ratio)."""
    return (seed + 0x9E3779B97F4A7C15 * (frame + 1)) % 2**63
