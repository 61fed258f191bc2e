"""Named pipelines: those of the built-in models, and one for each published system."""

from dataclasses import replace

from vidgen.generators import AutoregressiveTransformer, DiffusionTransformer, FrameMaskedTransformer, MaskedTransformer
from vidgen.pipelines.autoregressive_presets import AUTOREGRESSIVE_PRESETS
from vidgen.pipelines.diffusion_presets import DIFFUSION_PRESETS
from vidgen.pipelines.masked_presets import MASKED_PRESETS
from vidgen.pipelines.preset import PipelinePreset

__all__ = ["PIPELINE_PRESETS", "PipelinePreset"]

SMALL = {"width": 128, "layers": 6, "heads": 4, "expansion": 3.0}
MANY_IDS = {"head_type": "depth", "head_options": {"inner_width": 64}}  # of a token, drawn one after the other
SMALL_TEXT = {"width": 96, "layers": 1, "heads": 3}
SHAPES_CALL = {"num_frames": 17, "height": 64, "width": 64, "num_candidates": 4}
DIGIT_NAMES = tuple("0123456789") + tuple(f"{one} {other}" for one in range(10) for other in range(one, 10))
BASE = {"width": 768, "layers": 16, "heads": 12}
BASE_TEXT = {"width": 512, "layers": 4, "heads": 8, "buckets": 16384, "max_words": 128}
BASE_SIZE = {"num_frames": 17, "height": 128, "width": 128}

SHAPES_MASKED = PipelinePreset(
    about="masked transformer on 8 ids of 64 codes a token, the shapes world",
    tokenizer="shapes-fsq",
    generator=FrameMaskedTransformer,
    config={**SMALL, **MANY_IDS},
    text=SMALL_TEXT,
    scheduler={"choice_order": "frame", "schedule": "square"},  # what spins has to go on as it began
    defaults={**SHAPES_CALL, "num_inference_steps": 24, "guidance_scale": 2.0},
    matcher="shapes-matcher",
)
SHAPES_FLOW = PipelinePreset(
    about="flow matching on real tokens, the shapes world",
    tokenizer="shapes-kl",
    generator=DiffusionTransformer,
    config={**SMALL, "patch": (1, 2, 2), "token_weight": 1.0, "level_mean": 1.0},  # what goes where is decided in noise
    text=SMALL_TEXT,
    scheduler={"shift": 8.0},
    defaults={**SHAPES_CALL, "num_candidates": 16, "num_inference_steps": 30, "guidance_scale": 3.0},
)
DIGITS_MASKED = replace(
    SHAPES_MASKED,
    about="masked transformer on 8 ids of 64 codes a token, the moving digits",
    tokenizer="digits-fsq",
    matcher=None,
)
DIGITS_FLOW = replace(
    SHAPES_FLOW,
    about="flow matching on real tokens, the moving digits",
    tokenizer="digits-kl",
    defaults={**SHAPES_FLOW.defaults, "num_candidates": 4},
)


def by_digit_class(preset: PipelinePreset) -> PipelinePreset:
    """The preset told a class in place of text."""
    about = f"{preset.about} by class: one digit, or two in any order"
    return replace(preset, about=about, text={"width": SMALL_TEXT["width"]}, classes=DIGIT_NAMES, class_separator=" ")


PIPELINE_PRESETS: dict[str, PipelinePreset] = {
    "shapes-masked": SHAPES_MASKED,
    "shapes-flow": SHAPES_FLOW,
    "shapes-ar": PipelinePreset(
        about="autoregressive transformer on 8 ids of 64 codes a token, the shapes world",
        tokenizer="shapes-fsq",
        generator=AutoregressiveTransformer,
        config={**SMALL, **MANY_IDS},
        text=SMALL_TEXT,
        defaults={**SHAPES_CALL, "num_candidates": 16, "guidance_scale": 2.0},
        matcher="shapes-matcher",
    ),
    "digits-masked": DIGITS_MASKED,
    "digits-flow": DIGITS_FLOW,
    "digits-masked-class": by_digit_class(DIGITS_MASKED),
    "digits-flow-class": by_digit_class(DIGITS_FLOW),
    "base-masked": PipelinePreset(
        about="masked transformer on 64,000 codes, real video",
        tokenizer="base-fsq",
        generator=MaskedTransformer,
        config=BASE,
        text=BASE_TEXT,
        defaults={**BASE_SIZE, "num_inference_steps": 24, "guidance_scale": 3.0},
    ),
    "base-flow": PipelinePreset(
        about="flow matching on real tokens, real video",
        tokenizer="base-kl",
        generator=DiffusionTransformer,
        config={**BASE, "patch": (1, 2, 2)},
        text=BASE_TEXT,
        defaults={**BASE_SIZE, "num_inference_steps": 50, "guidance_scale": 5.0},
    ),
    "base-ar": PipelinePreset(
        about="autoregressive transformer on 64,000 codes, real video",
        tokenizer="base-fsq",
        generator=AutoregressiveTransformer,
        config=BASE,
        text=BASE_TEXT,
        defaults={**BASE_SIZE, "guidance_scale": 2.0},
    ),
    **MASKED_PRESETS,
    **DIFFUSION_PRESETS,
    **AUTOREGRESSIVE_PRESETS,
}
