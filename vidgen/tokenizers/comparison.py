"""What `tokenizers/compare.py` trains: all bottlenecks on one trunk, all trunks on one bottleneck; base beside Wan.

All take clips of 17×64×64 pixels; names are `TRUNK/BOTTLENECK`. The small ones have about two million parameters and,
but for the trunks that choose their tokens otherwise, 320 tokens of 10 bits.
"""

from typing import Any

from vidgen.tokenizers.causal_conv import CausalConvTokenizer
from vidgen.tokenizers.coordinate_planes import CoordinatePlanesTokenizer
from vidgen.tokenizers.diffusers_autoencoder import DiffusersAutoencoderTokenizer
from vidgen.tokenizers.diffusion_decoder import DiffusionDecoderTokenizer
from vidgen.tokenizers.factorised_vit import FactorisedViTTokenizer
from vidgen.tokenizers.frame_causal_vit import FrameCausalViTTokenizer
from vidgen.tokenizers.holistic import HolisticTokenizer
from vidgen.tokenizers.keyframe_motion import KeyframeMotionTokenizer
from vidgen.tokenizers.multi_scale import MultiScaleTokenizer
from vidgen.tokenizers.patchwise import PatchwiseTokenizer
from vidgen.tokenizers.presets import (
    SHAPES,
    TINY_FACTORISED,
    TINY_HOLISTIC,
    TINY_PATCHWISE,
    TOKENIZER_PRESETS,
    TokenizerPreset,
)
from vidgen.tokenizers.structure_dynamics import StructureDynamicsTokenizer
from vidgen.tokenizers.tubelet_vit import TubeletViTTokenizer

FSQ = {"bottleneck_type": "fsq", "bottleneck_options": {"levels": [8, 5, 5, 5]}}
VQ = {"codes": 1024, "channels": 8}
EUCLIDEAN = {**VQ, "cosine": False}

# name -> type in `BOTTLENECKS` and its options; all of them on the trunk of the `shapes-*` presets
COMPARED_BOTTLENECKS: dict[str, tuple[str, dict[str, Any]]] = {
    "ae": ("ae", {"channels": 8}),
    "kl": ("kl", {"channels": 8, "weight": 1e-4}),
    "kl-fixed-variance": ("kl", {"channels": 8, "weight": 1e-4, "deviation": 0.3}),
    "vq-plain": ("vq", {**EUCLIDEAN, "restart_below": 0.0}),
    "vq": ("vq", VQ),
    "vq-kmeans-rotation": ("vq", {**EUCLIDEAN, "kmeans_steps": 10, "rotation": True}),
    "vq-balanced": ("vq", {**VQ, "balance": 0.05}),
    "simvq": ("simvq", VQ),
    "stochastic-vq": ("stochastic-vq", VQ),
    "joint-vq": ("joint-vq", {"codes": 1024, "semantic_channels": 8, "pixel_channels": 8}),
    "gumbel": ("gumbel", VQ),
    "fsq": ("fsq", {"levels": [8, 5, 5, 5]}),
    "fsq-entropy": ("fsq", {"levels": [8, 5, 5, 5], "entropy": 0.1}),
    "fsq-16-bits": ("fsq", {"levels": [8, 8, 8, 5, 5, 5]}),
    "lfq": ("lfq", {"bits": 10}),
    "lfq-18-bits": ("lfq", {"bits": 18}),
    "bsq": ("bsq", {"bits": 10}),
    "bsq-18-bits": ("bsq", {"bits": 18}),
    "residual-vq": ("residual", {"inner": "vq", "options": EUCLIDEAN, "count": 4, "dropout": 0.25}),
    "residual-fsq": (
        "residual",
        {"inner": "fsq", "options": {"levels": [8, 5, 5, 5]}, "count": 4, "dropout": 0.25},
    ),
    "residual-lfq": ("residual", {"inner": "lfq", "options": {"bits": 10}, "count": 4, "dropout": 0.25}),
    "product-vq": ("product", {"inner": "vq", "options": VQ, "count": 2, "disentangle": 0.1}),
    "adacode": ("adacode", {"codes": 1024, "channels": 8, "count": 4, "dropout": 0.25}),
}

WIDTHS = {"width": 128, "heads": 4, "squared_weight": 4.0}
HOLISTIC = {"queries": 320, "train_size": (16, 64, 64), **WIDTHS, "layers": 4}
PRIOR = {"prior_width": 128, "prior_heads": 4, "prior_layers": 2}
PLANES = {"patch": (4, 8, 8), **WIDTHS, "encoder_layers": 4, "decoder_layers": 4, "sampled_patches": 256}
SMALL_TRANSFORMER, LARGE_TRANSFORMER = (96, 3, 3), (192, 4, 6)  # width, layers, heads
TINY_CONV = {"widths": (16, 16, 16), "decoder_depth": 1}
TINY_VIT = {"width": 16, "heads": 2}
TINY_PLANES = {**TINY_VIT, "encoder_layers": 1, "decoder_layers": 1, "patch_layers": 1, "sampled_patches": 8}
TINY_TRANSFORMERS = {"encoder": (16, 1, 2), "decoder": (16, 1, 2)}


def tubelets(encoder: tuple[int, int, int], decoder: tuple[int, int, int]) -> tuple[type, dict, dict]:
    config = {"encoder": encoder, "decoder": decoder, "squared_weight": 4.0}
    return TubeletViTTokenizer, config, TINY_TRANSFORMERS


def planes(*stride: int) -> tuple[type, dict, dict]:
    return CoordinatePlanesTokenizer, {"stride": stride, **PLANES}, TINY_PLANES


# name -> class, configuration but for the bottleneck, what the tiny twin has instead; all of them with FSQ
COMPARED_TRUNKS: dict[str, tuple[type, dict[str, Any], dict[str, Any]]] = {
    "conv-haar": (
        CausalConvTokenizer,
        {**SHAPES, "front": "haar", "patch_frames": 2, "widths": (96, 192)},
        {**TINY_CONV, "widths": (16, 16)},
    ),
    "factorised-vit": (
        FactorisedViTTokenizer,
        {"windows": (0, 4), "time_layers": 2, "past": 8, **WIDTHS},
        {**TINY_FACTORISED, "windows": (0,)},
    ),
    "frame-causal-vit": (
        FrameCausalViTTokenizer,
        {"stride": (4, 8, 8), "layers": 4, "past": 8, "block_frames": 16, **WIDTHS},
        {**TINY_VIT, "layers": 1},
    ),
    "tubelet-vit-s-s": tubelets(SMALL_TRANSFORMER, SMALL_TRANSFORMER),
    "tubelet-vit-s-l": tubelets(SMALL_TRANSFORMER, LARGE_TRANSFORMER),
    "tubelet-vit-l-s": tubelets(LARGE_TRANSFORMER, SMALL_TRANSFORMER),
    "tubelet-vit-l-l": tubelets(LARGE_TRANSFORMER, LARGE_TRANSFORMER),
    "holistic-prior": (HolisticTokenizer, {**HOLISTIC, **PRIOR}, TINY_HOLISTIC),
    "holistic-tail-drop": (
        HolisticTokenizer,
        {**HOLISTIC, "tail_drop": True, "prior_weight": 0.0},
        {**TINY_VIT, "layers": 1, "queries": 16},
    ),
    "planes-coarse": planes(8, 16, 16),
    "planes": planes(4, 8, 8),
    "planes-fine": planes(2, 4, 4),
    "structure-dynamics": (
        StructureDynamicsTokenizer,
        {"dynamics_options": {"levels": [8, 5, 5, 5]}, "patch": 8, "queries": 4, "layers": 2, **WIDTHS},
        {**TINY_VIT, "layers": 1, "query_layers": 1},
    ),
    "keyframe-motion": (
        KeyframeMotionTokenizer,
        {"windows": (0, 0, 0, 0), "reach": 4, "refiner_width": 24, **WIDTHS},  # whole frames: a wide one takes an hour
        {**TINY_VIT, "windows": (0,), "refiner_width": 8, "refiner_layers": 1},
    ),
    "patches": (
        PatchwiseTokenizer,
        {"stride": (4, 8, 8), "width": 160, "layers": 4, "decoder_layers": 4, "squared_weight": 4.0},
        TINY_PATCHWISE,
    ),
}

DECODED = {"_class_name": "CausalConvTokenizer", **FSQ, **SHAPES}

COMPARED: dict[str, TokenizerPreset] = {
    **{
        f"conv/{name}": TokenizerPreset(
            about=f"causal convolution with {name}",
            model=CausalConvTokenizer,
            config={"bottleneck_type": kind, "bottleneck_options": options, **SHAPES},
            small=TINY_CONV,
        )
        for name, (kind, options) in COMPARED_BOTTLENECKS.items()
    },
    **{
        f"{name}/fsq": TokenizerPreset(
            about=f"{name} with 1,000 codes", model=model, config={**FSQ, **config}, small=small
        )
        for name, (model, config, small) in COMPARED_TRUNKS.items()
    },
    "diffusion-decoder/fsq": TokenizerPreset(
        about="causal convolution with 1,000 codes, decoded by flow matching",
        model=DiffusionDecoderTokenizer,
        config={"encoder_config": DECODED, "width": 64, "depth": 4},
        small={"encoder_config": {**DECODED, **TINY_CONV}, "width": 16, "depth": 1},
    ),
    "scales/fsq": TokenizerPreset(
        about="causal convolution with 1,000 codes at four scales",
        model=MultiScaleTokenizer,
        config={"trunk_config": DECODED, "scales": (8, 4, 2, 1)},
        small={"trunk_config": {**DECODED, **TINY_CONV}},
    ),
}


def wan_like(about: str, channels: int, **bottleneck: Any) -> TokenizerPreset:
    """Wan 2.1's autoencoder, narrower: 18 million parameters, a fifth more than the base presets have."""
    config = {"_class_name": "AutoencoderKLWan", "base_dim": 36, "z_dim": channels}
    tiny = {**config, "base_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    return TokenizerPreset(
        about=about,
        model=DiffusersAutoencoderTokenizer,
        config={"autoencoder_config": config, "squared_weight": 1.0, **bottleneck},
        small={"autoencoder_config": tiny},
    )


BASE_CODES = TOKENIZER_PRESETS["base-fsq"].config["bottleneck_options"]

# The default presets beside a trunk of full 3D convolutions, after as many steps and after as much time.
BESIDE_WAN: dict[str, TokenizerPreset] = {
    "base/kl": TOKENIZER_PRESETS["base-kl"],
    "base/fsq": TOKENIZER_PRESETS["base-fsq"],
    "wan-like/kl": wan_like("Wan's trunk, 16 real channels", 16),
    "wan-like/fsq": wan_like(
        "Wan's trunk, 64,000 codes",
        len(BASE_CODES["levels"]),
        bottleneck_type="fsq",
        bottleneck_options=BASE_CODES,
    ),
    "base-longer/kl": TOKENIZER_PRESETS["base-kl"],
    "base-longer/fsq": TOKENIZER_PRESETS["base-fsq"],
}
# Steps of a row in those of the others: a step of Wan's trunk takes more than four times as long as one of base.
TIMES_STEPS = {"base-longer/kl": 4, "base-longer/fsq": 4}

CONTESTS: dict[str, dict[str, TokenizerPreset]] = {"parts": COMPARED, "beside-wan": BESIDE_WAN}
