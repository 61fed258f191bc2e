"""Named tokenizer configurations; each has a tiny twin of the same architecture for tests."""

from dataclasses import dataclass, replace
from typing import Any

from vidgen.tokenizers.base import Tokenizer
from vidgen.tokenizers.causal_conv import CausalConvTokenizer
from vidgen.tokenizers.coordinate_planes import CoordinatePlanesTokenizer
from vidgen.tokenizers.diffusion_decoder import DiffusionDecoderTokenizer
from vidgen.tokenizers.factorised_vit import FactorisedViTTokenizer
from vidgen.tokenizers.frame_causal_vit import FrameCausalViTTokenizer
from vidgen.tokenizers.guided_decoder import GuidedDecoderTokenizer
from vidgen.tokenizers.holistic import HolisticTokenizer
from vidgen.tokenizers.keyframe_motion import KeyframeMotionTokenizer
from vidgen.tokenizers.multi_scale import MultiScaleTokenizer
from vidgen.tokenizers.patchwise import PatchwiseTokenizer
from vidgen.tokenizers.structure_dynamics import StructureDynamicsTokenizer
from vidgen.tokenizers.tubelet_vit import SIZES, TubeletViTTokenizer


@dataclass(frozen=True, kw_only=True)
class TokenizerPreset:
    """A model class with its configuration.

    Args:
        about: one line for people.
        model: the class.
        config: its constructor's arguments.
        small: what the tiny twin has instead.
    """

    about: str
    model: type[Tokenizer]
    config: dict[str, Any]
    small: dict[str, Any]

    def build(self) -> Tokenizer:
        """The model, freshly initialised from the global generator."""
        return self.model(**self.config)

    def tiny(self) -> "TokenizerPreset":
        """The same architecture, small enough to train in a test."""
        return replace(self, about=f"tiny twin: {self.about}", config={**self.config, **self.small})


def causal_conv(about: str, *, small_widths: int = 3, **config: Any) -> TokenizerPreset:
    small = {"widths": (16,) * small_widths, "depth": 1, "decoder_depth": 1}
    return TokenizerPreset(about=about, model=CausalConvTokenizer, config=config, small=small)


SHAPES = {
    "stride": (4, 8, 8),
    "patch": 4,
    "widths": (48, 96, 192),
    "depth": 1,
    "decoder_depth": 2,
    "squared_weight": 4.0,
}
EIGHT_IDS = {
    **SHAPES,
    "stride": (4, 16, 16),
    "token_patch": 2,
    "bottleneck_type": "product",
    "bottleneck_options": {"inner": "fsq", "options": {"levels": [8, 8]}, "count": 8},
}
BASE = {"stride": (4, 8, 8), "patch": 2, "widths": (96, 192, 384), "depth": 2, "decoder_depth": 3}
# Two million parameters, for CPUs; --data is a folder of real clips (tokenizers/README.md).
REAL = {"stride": (4, 8, 8), "patch": 4, "widths": (64, 128, 160), "depth": 1, "decoder_depth": 2}
DEEP = {"stride": (8, 16, 16), "patch": 2, "widths": (96, 192, 384, 384), "depth": 2, "decoder_depth": 3}
# Pixel terms are means here and KL is a mean over tokens. VidTok and VidTwin sum pixels over a frame, and they and
# OmniTokenizer sum KL over a clip: their weights are converted at 17×128×128 (VidTwin: 16×224×224) pixels, KL 1e-6
# (VidTwin: 1e-3) times tokens a clip, all of VidTok's and VidTwin's over the numbers of a frame.
# VidTok's blocks have four convolutions in space or in time, ours two, and its networks two blocks of full 3D ones in
# the middle: at these depths both halves have as many weights as its halves, to 5 %.
VIDTOK = {"stride": (4, 8, 8), "patch": 1, "widths": (128, 256, 512, 512), "depth": 8, "decoder_depth": 12}
COSMOS = {"front": "haar", "patch": 4, "patch_frames": 4, "depth": 2, "decoder_depth": 3}
EPSILON = {
    "_class_name": "CausalConvTokenizer",
    "bottleneck_type": "kl",
    "bottleneck_options": {"channels": 8, "weight": 1e-6},
    **BASE,
}
# Whole clips in few tokens for a denoiser: Divot's transformer (4 layers) and resampler (6) on the frames of two
# seconds, and the encoder of Semanticist-L ("Principal Components"). Their denoisers are of public latents, not ours.
DIVOT = {
    "_class_name": "HolisticTokenizer",
    "bottleneck_type": "ae",
    "bottleneck_options": {"channels": 256},
    "queries": 64,
    "stride": (1, 16, 16),
    "train_size": (5, 256, 256),
    "width": 1024,
    "heads": 16,
    "layers": 10,
    "prior_weight": 0.0,
}
SEMANTICIST = {
    "_class_name": "HolisticTokenizer",
    "bottleneck_type": "ae",
    "bottleneck_options": {"channels": 16},
    "queries": 256,
    "stride": (4, 16, 16),
    "train_size": (16, 256, 256),
    "tail_drop": True,
    "causal_queries": True,
    "prior_weight": 0.0,
}

# Autoencoders of images: PUT's of single patches, and one of Stable Diffusion's kind, whose latents ToonCrafter takes.
PUT = {
    "_class_name": "PatchwiseTokenizer",
    "bottleneck_type": "vq",
    "bottleneck_options": {"codes": 1024, "channels": 256, "cosine": False},
}
IMAGES = {
    "_class_name": "CausalConvTokenizer",
    "bottleneck_type": "kl",
    "bottleneck_options": {"channels": 4, "weight": 1e-6},
    "stride": (1, 8, 8),
    "patch": 1,
    "widths": (128, 256, 512, 512),
    "depth": 2,
    "decoder_depth": 3,
}

# Pyramids: SPAE's six layers, words of a frozen language model as codes; ImageFolder's ten scales, two sub-codes.
SPAE = {
    "_class_name": "CausalConvTokenizer",
    "bottleneck_type": "simvq",
    "bottleneck_options": {"codes": 65536, "channels": 8},
    **BASE,
}
IMAGEFOLDER = {
    "_class_name": "FrameCausalViTTokenizer",
    "bottleneck_type": "product",
    "bottleneck_options": {
        "inner": "vq",
        "options": {"codes": 4096, "channels": 32, "cosine": False},
        "count": 2,
    },
    "stride": (1, 16, 16),
}

TINY_PATCHWISE = {"width": 16, "layers": 1, "decoder_layers": 1}
TINY_GUIDE = {"width": 16, "depth": 1, "heads": 2}
TINY_FACTORISED = {"width": 16, "heads": 2, "windows": (0, 2), "time_layers": 1, "past": 3, "block_frames": 8}
TINY_TUBELET = {"encoder": (16, 1, 2), "decoder": (24, 2, 2)}
TINY_FRAMES = {"width": 16, "heads": 2, "layers": 1, "past": 3}
TINY_HOLISTIC = {
    "train_size": (8, 16, 16),
    "width": 16,
    "heads": 2,
    "layers": 1,
    "prior_width": 16,
    "prior_heads": 2,
    "prior_layers": 1,
}

TOKENIZER_PRESETS: dict[str, TokenizerPreset] = {
    "shapes-fsq": causal_conv("8 ids of 64 codes at 4×16×16 for the shapes world", **EIGHT_IDS),
    "worlds-fsq": causal_conv(
        "4,096 codes at 4×8×8 for the shapes world and moving digits",
        bottleneck_type="fsq",
        bottleneck_options={"levels": [8, 8, 8, 8]},
        **SHAPES,
    ),
    "shapes-vq": causal_conv(
        "1,024 learned codes at 4×8×8 for the shapes world",
        bottleneck_type="vq",
        bottleneck_options={"codes": 1024, "channels": 8},
        **SHAPES,
    ),
    "shapes-kl": causal_conv(
        "8 real channels at 4×8×8 for the shapes world",
        bottleneck_type="kl",
        bottleneck_options={"channels": 8, "weight": 1e-4},
        **SHAPES,
    ),
    "real-fsq": causal_conv(
        "64,000 codes at 4×8×8 for real video, small enough to be built in",
        bottleneck_type="fsq",
        bottleneck_options={"levels": [8, 8, 8, 5, 5, 5]},
        **REAL,
    ),
    "real-kl": causal_conv(
        "16 real channels at 4×8×8 for real video, small enough to be built in",
        bottleneck_type="kl",
        bottleneck_options={"channels": 16, "weight": 1e-6},
        **REAL,
    ),
    "digits-fsq": causal_conv("8 ids of 64 codes at 4×16×16 for the moving digits", **EIGHT_IDS),
    "digits-kl": causal_conv(
        "8 real channels at 4×8×8 for the moving digits",
        bottleneck_type="kl",
        bottleneck_options={"channels": 8, "weight": 1e-4},
        **SHAPES,
    ),
    "base-fsq": causal_conv(
        "64,000 codes at 4×8×8 for real video",
        bottleneck_type="fsq",
        bottleneck_options={"levels": [8, 8, 8, 5, 5, 5]},
        **BASE,
    ),
    "base-vq": causal_conv(
        "8,192 learned codes at 4×8×8 for real video",
        bottleneck_type="vq",
        bottleneck_options={"codes": 8192, "channels": 8},
        **BASE,
    ),
    "base-kl": causal_conv(
        "16 real channels at 4×8×8 for real video",
        bottleneck_type="kl",
        bottleneck_options={"channels": 16, "weight": 1e-6},
        **BASE,
    ),
    "base-ae": causal_conv(
        "16 real channels at 4×8×8 for real video, without noise or prior (Cosmos' kind)",
        bottleneck_type="ae",
        bottleneck_options={"channels": 16},
        **BASE,
    ),
    "base-simvq": causal_conv(
        "65,536 codes that move together at 4×8×8 for real video",
        bottleneck_type="simvq",
        bottleneck_options={"codes": 65536, "channels": 8},
        **BASE,
    ),
    "base-stochastic-vq": causal_conv(
        "8,192 codes drawn by similarity in training at 4×8×8 for real video (LARP's quantizer)",
        bottleneck_type="stochastic-vq",
        bottleneck_options={"codes": 8192, "channels": 16},
        **BASE,
    ),
    "base-joint-vq": causal_conv(
        "32,768 pairs of a semantic and a pixel code at 4×8×8 for real video (TokenFlow's quantizer)",
        bottleneck_type="joint-vq",
        bottleneck_options={"codes": 32768, "semantic_channels": 32, "pixel_channels": 8},
        **BASE,
    ),
    "base-lfq": causal_conv(
        "2^18 codes, the signs of 18 channels, at 4×8×8 for real video (MAGVIT-v2's quantizer)",
        bottleneck_type="lfq",
        bottleneck_options={"bits": 18},
        **BASE,
    ),
    "base-bsq": causal_conv(
        "2^18 codes on the unit sphere at 4×8×8 for real video (BSQ-ViT's quantizer)",
        bottleneck_type="bsq",
        bottleneck_options={"bits": 18},
        **BASE,
    ),
    "base-adacode": causal_conv(
        "4 ids of 1,024 codes and their weights, few or many of them kept, at 4×8×8 for real video (M-AdaCode)",
        bottleneck_type="adacode",
        bottleneck_options={"codes": 1024, "channels": 16, "count": 4, "levels": 8, "dropout": 0.5},
        **BASE,
    ),
    "base-residual-vq": causal_conv(
        "4 ids of 2,048 codes a token, coarse to fine, at 4×8×8 for real video",
        bottleneck_type="residual",
        bottleneck_options={
            "inner": "vq",
            "options": {"codes": 2048, "channels": 8, "cosine": False},
            "count": 4,
            "dropout": 0.25,
        },
        **BASE,
    ),
    "base-residual-fsq": causal_conv(
        "4 ids of 1,000 codes a token, coarse to fine, at 4×8×8 for real video",
        bottleneck_type="residual",
        bottleneck_options={"inner": "fsq", "options": {"levels": [8, 5, 5, 5]}, "count": 4, "dropout": 0.25},
        **BASE,
    ),
    "base-product-vq": causal_conv(
        "2 ids of 8,192 codes a token, side by side, at 4×8×8 for real video (FQGAN's quantizer)",
        bottleneck_type="product",
        bottleneck_options={
            "inner": "vq",
            "options": {"codes": 8192, "channels": 8},
            "count": 2,
            "disentangle": 0.1,
        },
        **BASE,
    ),
    "deep-kl": causal_conv(
        "16 real channels at 8×16×16 for real video (Step-Video's ratio)",
        bottleneck_type="kl",
        bottleneck_options={"channels": 16, "weight": 1e-6},
        small_widths=4,
        **DEEP,
    ),
    # Open-MAGVIT2 has four blocks a level of two full 3D convolutions, each with the weights of 4.5 blocks here; its
    # decoder is the larger half: 144.9 and 225.7 million parameters.
    "magvit-v2": causal_conv(
        "2^18 codes, the signs of 18 channels, at 4×8×8 from full-resolution convolutions (MAGVIT-v2's kind)",
        bottleneck_type="lfq",
        bottleneck_options={"bits": 18},
        small_widths=4,
        stride=(4, 8, 8),
        patch=1,
        widths=(128, 256, 512, 512),
        depth=18,
        decoder_depth=31,
    ),
    # As many weights as DALL·E's encoder and decoder; the codes are shorter, so that the twin has all of them.
    "beit-dvae": TokenizerPreset(
        about="8,192 codes at 1×8×8, drawn by Gumbel noise in training (DALL·E's dVAE, BEiT's targets)",
        model=CausalConvTokenizer,
        config={
            "bottleneck_type": "gumbel",
            "bottleneck_options": {"codes": 8192, "channels": 16, "cooling_steps": 150_000},
            "stride": (1, 8, 8),
            "patch": 1,
            "widths": (256, 512, 512, 1024),
            "depth": 2,
            "decoder_depth": 2,
        },
        small={"widths": (4, 4, 4, 4), "depth": 1, "decoder_depth": 1},
    ),
    "motionaura-tokenizer": causal_conv(  # widths and depths of its code, which has no codebook to read the size from
        "8,192 codes at 4×8×8, inverted bottlenecks, train with --frame-masking 0.25 (MotionAura's 3D-MBQ-VAE)",
        bottleneck_type="vq",
        bottleneck_options={"codes": 8192, "channels": 16},
        small_widths=4,
        stride=(4, 8, 8),
        patch=1,
        widths=(128, 256, 256, 512),
        depth=3,
        decoder_depth=3,
        block="inverted",
    ),
    "vidtok-kl": causal_conv(
        "4 real channels at 4×8×8 from full-resolution convolutions (VidTok's widths)",
        bottleneck_type="kl",
        bottleneck_options={"channels": 4, "weight": 2.6e-8},
        small_widths=4,
        **VIDTOK,
    ),
    "vidtok-fsq-8x8x8": causal_conv(
        "32,768 codes at 8×8×8 from full-resolution convolutions (VidTok's widths)",
        bottleneck_type="fsq",
        bottleneck_options={"levels": [8, 8, 8, 8, 8], "commitment": 5.1e-6, "entropy": 2.0e-6, "entropy_boost": 3.0},
        small_widths=4,
        **{**VIDTOK, "stride": (8, 8, 8)},
    ),
    "vidtok-kl-4x16x16": causal_conv(
        "16 real channels at 4×16×16 from full-resolution convolutions (VidTok's widths)",
        bottleneck_type="kl",
        bottleneck_options={"channels": 16, "weight": 6.5e-9},
        small_widths=5,
        **{
            **VIDTOK,
            "stride": (4, 16, 16),
            "widths": (128, 256, 512, 512, 512),
            "depth": 7,
            "decoder_depth": 10,
        },
    ),
    "wf-vae": causal_conv(
        "16 real channels at 4×8×8 from the bands of a Haar wavelet (WF-VAE's kind)",
        bottleneck_type="kl",
        bottleneck_options={"channels": 16, "weight": 1e-6},
        **{**BASE, "front": "haar", "patch_frames": 2},
    ),
    "cosmos-8x8x8": causal_conv(
        "16 real channels at 8×8×8 from two levels of a Haar wavelet (Cosmos CV8x8x8's kind)",
        bottleneck_type="ae",
        bottleneck_options={"channels": 16},
        small_widths=2,
        **{**COSMOS, "stride": (8, 8, 8), "widths": (256, 512)},
    ),
    "cosmos-8x16x16": causal_conv(
        "16 real channels at 8×16×16 from two levels of a Haar wavelet (Cosmos CV8x16x16's kind)",
        bottleneck_type="ae",
        bottleneck_options={"channels": 16},
        **{**COSMOS, "stride": (8, 16, 16), "widths": (256, 512, 512)},
    ),
    "epsilon-vae": TokenizerPreset(
        about="8 real channels at 4×8×8, decoded by flow matching in a few steps (ε-VAE's kind)",
        model=DiffusionDecoderTokenizer,
        config={"encoder_config": EPSILON},
        small={
            "encoder_config": {**EPSILON, "widths": (16, 16, 16), "depth": 1, "decoder_depth": 1},
            "width": 16,
            "depth": 1,
        },
    ),
    "divot-tokenizer": TokenizerPreset(
        about="64 tokens of 256 real channels a clip, decoded by flow matching (Divot's kind)",
        model=DiffusionDecoderTokenizer,
        config={"encoder_config": DIVOT},
        small={"encoder_config": {**DIVOT, **TINY_HOLISTIC}, "width": 16, "depth": 1},
    ),
    "semanticist": TokenizerPreset(
        about="256 tokens of 16 real channels a clip, any prefix of which flow matching decodes (Semanticist-L's kind)",
        model=DiffusionDecoderTokenizer,
        config={"encoder_config": SEMANTICIST},
        small={"encoder_config": {**SEMANTICIST, **TINY_HOLISTIC}, "width": 16, "depth": 1},
    ),
    "omnitokenizer-vq": TokenizerPreset(
        about="8,192 codes at 4×8×8, attention in space and causal in time (OmniTokenizer)",
        model=FactorisedViTTokenizer,
        config={"bottleneck_type": "vq", "bottleneck_options": {"codes": 8192, "channels": 8}},
        small=TINY_FACTORISED,
    ),
    "omnitokenizer-kl": TokenizerPreset(
        about="8 real channels at 4×8×8, attention in space and causal in time (OmniTokenizer)",
        model=FactorisedViTTokenizer,
        config={"bottleneck_type": "kl", "bottleneck_options": {"channels": 8, "weight": 1.3e-3}},
        small=TINY_FACTORISED,
    ),
    "c-vivit": TokenizerPreset(
        about="8,192 codes at 2×8×8, attention in space and causal in time (Phenaki's C-ViViT)",
        model=FactorisedViTTokenizer,
        config={
            "bottleneck_type": "vq",
            "bottleneck_options": {"codes": 8192, "channels": 32},
            "stride": (2, 8, 8),
            "windows": (0, 0, 0, 0),
        },
        small={**TINY_FACTORISED, "windows": (0,)},
    ),
    "bsq-vit": TokenizerPreset(
        about="2^18 codes at 1×8×8, frame-block-causal attention (BSQ-ViT)",
        model=FrameCausalViTTokenizer,
        config={"bottleneck_type": "bsq", "bottleneck_options": {"bits": 18}},
        small={"width": 32, "heads": 2, "layers": 2, "past": 3, "block_frames": 4},
    ),
    "bsq-vit-36": TokenizerPreset(
        about="two ids of 2^18 codes at 1×8×8, frame-block-causal attention (BSQ-ViT, 36 bits)",
        model=FrameCausalViTTokenizer,
        config={"bottleneck_type": "bsq", "bottleneck_options": {"bits": 36, "groups": 2}},
        small={"width": 32, "heads": 2, "layers": 2, "past": 3, "block_frames": 4},
    ),
    "vq-kd": TokenizerPreset(
        about="8,192 codes at 1×16×16 for a teacher's features: --pixel-loss l1 --pixel-weight 0 "
        "--distillation-weight 1 (VQ-KD, BEiT v2, E-ViLM)",
        model=FrameCausalViTTokenizer,
        config={
            "bottleneck_type": "vq",
            "bottleneck_options": {"codes": 8192, "channels": 32, "kmeans_steps": 10},
            "stride": (1, 16, 16),
        },
        small=TINY_FRAMES,
    ),
    "imagefolder": TokenizerPreset(
        about="ten scales of 2 ids of 4,096 codes, the finest at 1×16×16, the first ids for a teacher's features: "
        "--distillation-weight 0.1 --distillation-channels 32 (ImageFolder)",
        model=MultiScaleTokenizer,
        config={"trunk_config": IMAGEFOLDER, "scales": (16, 16, 8, 6, 6, 4, 3, 2, 2, 1), "dropout": 0.1},
        small={"trunk_config": {**IMAGEFOLDER, **TINY_FRAMES}},
    ),
    "spae": TokenizerPreset(
        about="six scales of 65,536 codes, the finest at 4×8×8; SimVQ.adopt(embeddings) makes words of them (SPAE)",
        model=MultiScaleTokenizer,
        config={"trunk_config": SPAE, "scales": (16, 8, 4, 2, 1, 1)},
        small={"trunk_config": {**SPAE, "widths": (16, 16, 16), "depth": 1, "decoder_depth": 1}},
    ),
    "ccvit-centroids": TokenizerPreset(
        about="8,192 centroids of patches at 1×8×8, pixels alone and nearly nothing to train (CCViT's)",
        model=PatchwiseTokenizer,
        config={
            "bottleneck_type": "vq",
            "bottleneck_options": {
                "codes": 8192,
                "channels": 192,
                "cosine": False,
                "commitment": 0.0,
                "kmeans_steps": 20,
            },
            "layers": 0,
            "decoder_layers": 0,
        },
        small={},
    ),
    "put-tokenizer": TokenizerPreset(
        about="1,024 codes at 1×8×8, each patch by itself, decoded beside what surrounds a hole (PUT's P-VQVAE)",
        model=GuidedDecoderTokenizer,
        config={"encoder_config": PUT},
        small={"encoder_config": {**PUT, **TINY_PATCHWISE}, **TINY_GUIDE},
    ),
    "tooncrafter-decoder": TokenizerPreset(
        about="4 real channels at 1×8×8, decoded beside the first and the last frame (ToonCrafter's decoder, its kind)",
        model=GuidedDecoderTokenizer,
        config={"encoder_config": IMAGES},
        small={
            "encoder_config": {**IMAGES, "widths": (16, 16, 16, 16), "depth": 1, "decoder_depth": 1},
            **TINY_GUIDE,
        },
    ),
    "vitok-s-b": TokenizerPreset(
        about="16 real channels at 4×8×8, small encoder, base decoder, whole clips (ViTok S-B/4x8)",
        model=TubeletViTTokenizer,
        config={"bottleneck_options": {"channels": 16, "weight": 1e-3}, "encoder": SIZES["S"], "decoder": SIZES["B"]},
        small=TINY_TUBELET,
    ),
    "vitok-s-l": TokenizerPreset(
        about="16 real channels at 4×8×8, small encoder, large decoder, chunks of 16 frames (ViTok S-L/4x8)",
        model=TubeletViTTokenizer,
        config={
            "bottleneck_options": {"channels": 16, "weight": 1e-3},
            "encoder": SIZES["S"],
            "decoder": SIZES["L"],
            "block_frames": 16,
        },
        small={**TINY_TUBELET, "block_frames": 8},
    ),
    "larp": TokenizerPreset(
        about="1,024 tokens of 8,192 codes a clip, in an order that a small prior finds easy (LARP-L-long)",
        model=HolisticTokenizer,
        config={
            "bottleneck_type": "stochastic-vq",
            "bottleneck_options": {"codes": 8192, "channels": 16},
            "prior_weight": 0.06,  # beside the perceptual and adversarial terms of the recipe of this name
        },
        small={**TINY_HOLISTIC, "prior_weight": 0.01},
    ),
    "one-d-piece": TokenizerPreset(
        about="256 tokens of 4,096 codes a clip, any prefix of which decodes (One-D-Piece's tail drop)",
        model=HolisticTokenizer,
        config={
            "bottleneck_type": "vq",
            "bottleneck_options": {"codes": 4096, "channels": 12},
            "queries": 256,
            "tail_drop": True,
            "prior_weight": 0.0,
        },
        small=TINY_HOLISTIC,
    ),
    "coordtok": TokenizerPreset(
        about="three planes of 8 real channels, 1,280 tokens for 128×128×128 pixels (CoordTok)",
        model=CoordinatePlanesTokenizer,
        # Its widths and patches; 40 joint layers for its 8 over patches and 24 that queries look at them from.
        config={
            "bottleneck_type": "ae",
            "bottleneck_options": {"channels": 8},
            "patch": (8, 16, 16),
            "width": 1024,
            "heads": 16,
            "encoder_layers": 40,
            "decoder_layers": 24,
        },
        small={
            "patch": (8, 8, 8),
            "width": 32,
            "heads": 2,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "patch_layers": 1,
            "sampled_patches": 16,
        },
    ),
    "vidtwin": TokenizerPreset(
        about="structure and dynamics apart, 0.20 % of the numbers of 16×224×224 pixels (VidTwin)",
        model=StructureDynamicsTokenizer,
        config={
            "bottleneck_type": "kl",
            "bottleneck_options": {"channels": 4, "weight": 5.2e-6},
            "dynamics_options": {"channels": 8, "weight": 1.5e-6},
        },
        small={"width": 16, "heads": 2, "layers": 1, "query_layers": 1},
    ),
    "video-lavit": TokenizerPreset(
        about="64,000 codes for every 8th frame, 225 block motions between (Video-LaVIT's kind)",
        model=KeyframeMotionTokenizer,
        config={"bottleneck_type": "fsq", "bottleneck_options": {"levels": [8, 8, 8, 5, 5, 5]}},
        small={"width": 16, "heads": 2, "windows": (0,), "refiner_width": 8, "refiner_layers": 1},
    ),
}
