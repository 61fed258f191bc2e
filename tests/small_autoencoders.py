"""Small random video autoencoders of diffusers, one of every class and kind."""

from typing import Any

import diffusers
import torch

FOUR = (8, 8, 8, 8)
LTX = {
    "latent_channels": 8,
    "block_out_channels": FOUR,
    "decoder_block_out_channels": FOUR,
    "layers_per_block": (1, 1, 1, 1, 1),
    "decoder_layers_per_block": (1, 1, 1, 1, 1),
}
VIDTOK = {"ch": 8, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1}

SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "wan": ("AutoencoderKLWan", {"base_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}),
    "wan-2.2": (
        "AutoencoderKLWan",
        {
            "base_dim": 4,
            "dim_mult": [1, 1, 1, 1],
            "num_res_blocks": 1,
            "is_residual": True,
            "in_channels": 12,
            "out_channels": 12,
            "patch_size": 2,
            "scale_factor_spatial": 16,
        },
    ),
    "cogvideox": (
        "AutoencoderKLCogVideoX",
        {"block_out_channels": FOUR, "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 2},
    ),
    "hunyuan": (
        "AutoencoderKLHunyuanVideo",
        {"block_out_channels": FOUR, "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 2},
    ),
    "hunyuan-1.5": (
        "AutoencoderKLHunyuanVideo15",
        {"block_out_channels": (16, 16, 16, 16, 16), "latent_channels": 4, "layers_per_block": 1},
    ),
    "kvae": (
        "AutoencoderKLKVAEVideo",
        {"ch": 32, "ch_mult": (1, 1, 1, 1), "num_res_blocks": 1, "z_channels": 4},
    ),
    "svd": (
        "AutoencoderKLTemporalDecoder",
        {"down_block_types": ("DownEncoderBlock2D",) * 4, "block_out_channels": (32, 32, 32, 32)},
    ),
    "ltx": ("AutoencoderKLLTXVideo", LTX),
    "ltx-2": (
        "AutoencoderKLLTX2Video",
        {
            "latent_channels": 8,
            "block_out_channels": FOUR,
            "decoder_block_out_channels": (8, 16, 32),
            "layers_per_block": (1, 1, 1, 1, 1),
            "decoder_layers_per_block": (1, 1, 1, 1),
        },
    ),
    "ltx-noise": (
        "AutoencoderKLLTXVideo",
        {
            **LTX,
            "timestep_conditioning": True,
            "decoder_inject_noise": (True, True, True, True, True),
            "scaling_factor": 0.5,
        },
    ),
    "mochi": (
        "AutoencoderKLMochi",
        {
            "encoder_block_out_channels": (32, 32, 32, 32),
            "decoder_block_out_channels": (32, 32, 32, 32),
            "layers_per_block": (1, 1, 1, 1, 1),
        },
    ),
    "cosmos": (
        "AutoencoderKLCosmos",
        {"encoder_block_out_channels": FOUR, "decode_block_out_channels": FOUR, "num_layers": 1},
    ),
    "allegro": (
        "AutoencoderKLAllegro",
        {
            "block_out_channels": FOUR,
            "latent_channels": 4,
            "layers_per_block": 1,
            "norm_num_groups": 2,
            "sample_size": 128,
        },
    ),
    "magvit": (
        "AutoencoderKLMagvit",
        {"block_out_channels": FOUR, "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 2},
    ),
    "vidtok-kl": ("AutoencoderVidTok", VIDTOK),
    "vidtok-fsq": (
        "AutoencoderVidTok",
        {**VIDTOK, "z_channels": 3, "double_z": False, "regularizer": "fsq", "codebook_size": 512},
    ),
    "vidtok-not-causal": ("AutoencoderVidTok", {**VIDTOK, "is_causal": False}),
}


def small_autoencoder(name: str) -> Any:
    """The one called `name`, with random weights, for inference."""
    torch.manual_seed(0)
    kind, config = SMALL[name]
    return getattr(diffusers, kind)(**config).eval()
