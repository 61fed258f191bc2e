"""Autoregressive systems by name (LlamaGen, LARP, Toto, MAGVIT-v2, BSQ-ViT, PAR, NBP, Divot).

LlamaGen's and LARP's have as many weights as published; of the others the way of generating is theirs.
"""

from typing import Any

from vidgen.generators import LlamaTransformer
from vidgen.pipelines.preset import UCF_CLASSES, PipelinePreset

TEXT = {"width": 512, "layers": 4, "heads": 8, "buckets": 16384, "max_words": 120}
SIZE = {"num_frames": 17, "height": 128, "width": 128}
WHOLE_CLIP = {**SIZE, "num_frames": 16}
B = {"width": 768, "layers": 12, "heads": 12}
L = {"width": 1024, "layers": 24, "heads": 16}


def llama(
    about: str, *, tokenizer: str, config: dict[str, Any], defaults: dict[str, Any], classes: tuple[str, ...] = ()
) -> PipelinePreset:
    return PipelinePreset(
        about=about,
        tokenizer=tokenizer,
        generator=LlamaTransformer,
        config=config,
        text=TEXT,
        classes=classes,
        defaults=defaults,
    )


AUTOREGRESSIVE_PRESETS: dict[str, PipelinePreset] = {
    "llamagen-b": llama(
        "next token, 12 Llama blocks of width 768 (LlamaGen-B)",
        tokenizer="base-vq",
        config=B,
        defaults={**SIZE, "guidance_scale": 7.5},
    ),
    "llamagen-l": llama(
        "next token, 24 Llama blocks of width 1,024 (LlamaGen-L)",
        tokenizer="base-vq",
        config=L,
        defaults={**SIZE, "guidance_scale": 7.5},
    ),
    "larp-ar": llama(
        "next token over learned queries, positions along the sequence (LARP-L-long's generator)",
        tokenizer="larp",
        config={"width": 1280, "layers": 30, "heads": 20, "rotary_axes": 1},
        defaults={**WHOLE_CLIP, "guidance_scale": 1.25},
        classes=UCF_CLASSES,
    ),
    "toto": llama(
        "next token along the sequence, without guidance (Toto's kind)",
        tokenizer="base-vq",
        config={**B, "rotary_axes": 1},
        defaults={**SIZE, "guidance_scale": 1.0},
    ),
    "magvit-v2-lm": llama(
        "next token of 2^18 codes in two factors (MAGVIT-v2's language model)",
        tokenizer="base-lfq",
        config=L,
        defaults={**SIZE, "guidance_scale": 2.0},
    ),
    "bsq-prior": llama(
        "prior over 2^18 binary codes, their two halves one after the other (BSQ-ViT's coder)",
        tokenizer="bsq-vit",
        config={**B, "layers": 24, "head_type": "depth"},
        defaults={**SIZE, "guidance_scale": 1.0},
    ),
    "residual-ar": llama(
        "4 ids a token, coarse to fine by a transformer in depth (RQ-Transformer)",
        tokenizer="base-residual-vq",
        config={**L, "head_type": "depth"},
        defaults={**SIZE, "guidance_scale": 2.0},
    ),
    "par": llama(
        "4 regions of the frame side by side (PAR-4x, XL)",
        tokenizer="base-vq",
        config={"width": 1280, "layers": 36, "heads": 20, "group": "regions"},
        classes=UCF_CLASSES,
        defaults={**SIZE, "guidance_scale": 2.0},
    ),
    "nbp": llama(
        "next row of tokens, all at once (NBP, 0.7 B)",
        tokenizer="omnitokenizer-vq",
        config={"width": 1536, "layers": 24, "heads": 16, "group": "row"},
        defaults={**SIZE, "guidance_scale": 2.0},
    ),
    "next-frame": llama(
        "next frame of tokens, all at once (NBP's largest block)",
        tokenizer="base-vq",
        config={**L, "group": "frame"},
        defaults={**SIZE, "guidance_scale": 2.0},
    ),
    "divot": llama(
        "next real token from a mixture of 16 Gaussians (Divot's head)",
        tokenizer="base-kl",
        config={**L, "head_type": "mixture"},
        defaults={**SIZE, "guidance_scale": 2.0},
    ),
}
