"""Tiny real tokenizers, generators and pipelines of every kind, which the tests of several files build on."""

import torch
from torch import Tensor, nn

from vidgen.conditioning import WordTextEncoder
from vidgen.latents import LatentPart, Latents, LatentSpec, VideoSize
from vidgen.nn.random import rand, randn, seeded
from vidgen.pipelines import VideoPipeline
from vidgen.pipelines.presets import PIPELINE_PRESETS
from vidgen.tokenizers import CausalConvTokenizer

FAMILIES = {"masked": "base-masked", "diffusion": "shapes-flow", "autoregressive": "shapes-ar"}
OPTIONS = {"kl": {"channels": 4}, "vq": {"codes": 64, "channels": 4}, "fsq": {"levels": [8, 5, 5]}}
PAIRS = [(family, bottleneck) for family in FAMILIES for bottleneck in OPTIONS]

# One spec of each odd kind that a generator has to serve.
SPECS = {
    "grid of ids": LatentSpec((LatentPart("grid", "thw", (2, 4, 4), 3, (32,)),), causal=False, streamable=False),
    "grid of reals": LatentSpec((LatentPart("grid", "thw", (2, 4, 4), 3),), causal=False, streamable=False),
    "queries of ids": LatentSpec((LatentPart("query", "", (), 4, (32,), count=6),), causal=False, streamable=False),
    "queries of reals": LatentSpec((LatentPart("query", "", (), 4, count=6),), causal=False, streamable=False),
    "three planes": LatentSpec(
        (
            LatentPart("plane_hw", "hw", (4, 4), 4),
            LatentPart("plane_tw", "tw", (2, 4), 4),
            LatentPart("plane_th", "th", (2, 4), 4),
        ),
        causal=False,
        streamable=False,
    ),
    "two parts of ids": LatentSpec(
        (LatentPart("structure", "hw", (4, 4), 3, (32,)), LatentPart("motion", "t", (2,), 2, (8,))),
        causal=False,
        streamable=False,
    ),
    "two codebooks": LatentSpec((LatentPart("grid", "thw", (2, 4, 4), 4, (16, 8)),), causal=False, streamable=False),
    "2^18 codes": LatentSpec((LatentPart("grid", "thw", (2, 4, 4), 18, (2**18,)),), causal=False, streamable=False),
}
SIZE = (4, 8, 8)


def tokenizer(bottleneck: str = "fsq") -> CausalConvTokenizer:
    """A causal tokenizer of stride 4×8×8 whose latents spread as after training."""
    torch.manual_seed(0)
    built = CausalConvTokenizer(
        bottleneck_type=bottleneck,
        bottleneck_options=OPTIONS[bottleneck],
        patch=4,
        widths=(8, 8, 8),
        depth=1,
        decoder_depth=1,
    )
    with torch.no_grad():
        built.encoder.conv_out.conv.weight.mul_(3.0)
    return built.eval()


def pipeline(family: str = "masked", bottleneck: str = "fsq") -> VideoPipeline:
    """A pipeline whose every weight matters: layers that start at zero (adaLN-zero) are shaken awake."""
    torch.manual_seed(0)
    preset = PIPELINE_PRESETS[FAMILIES[family]].tiny()
    built = preset.build(tokenizer(bottleneck), WordTextEncoder(width=16, layers=1, heads=2, buckets=64))
    shake(built.transformer)
    built.text_encoder.eval()
    built.transformer.eval()
    built.set_progress_bar_config(disable=True)
    return built


@torch.no_grad()
def shake(module: nn.Module, *, strength: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(1)
    for weight in module.parameters():
        weight.add_(strength * torch.randn(weight.shape, generator=generator))


def clip(frames: int = 5, height: int = 16, width: int = 16, *, batch: int = 1, seed: int = 0) -> Tensor:
    """Noise as a video `b 3 t h w` in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, frames, height, width, generator=generator) * 2 - 1


def random_latents(spec: LatentSpec, *, batch: int = 2, seed: int = 0, size: VideoSize = SIZE) -> Latents:
    """Latents of videos of this size with every id within its own part's codebooks."""
    generators = seeded([seed + index for index in range(batch)])
    tokens = randn((batch, spec.num_tokens(size), spec.channels), generators)
    if not spec.discrete:
        return Latents(tokens, None, size, spec)
    uniform = rand((batch, spec.num_tokens(size), spec.num_codebooks), generators)
    sizes = torch.cat([torch.tensor(part.codebooks).expand(part.num_tokens(size), -1) for part in spec.parts])
    return Latents(tokens, (uniform * sizes).long(), size, spec)
