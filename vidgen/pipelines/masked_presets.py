"""Presets of the masked family: the ten-task models of the built-in worlds, and one for each published system."""

from vidgen.conditioning import TASKS
from vidgen.generators import (
    EfficientMaskedTransformer,
    FrameMaskedTransformer,
    MaskedTransformer,
    PrefixMaskedTransformer,
)
from vidgen.pipelines.preset import UCF_CLASSES, PipelinePreset
from vidgen.schedulers import AbsorbingScheduler

SMALL = {"width": 128, "layers": 6, "heads": 4, "expansion": 3.0}
COMMIT = {"tasks": len(TASKS), "refine_weight": 1.0, "reconstruction_weight": 0.1}
SHAPES_SIZE = {"num_frames": 17, "height": 64, "width": 64}
VIDEO_SIZE = {"num_frames": 17, "height": 128, "width": 128}
PHENAKI_TEXT = {"width": 768, "layers": 6, "heads": 12, "buckets": 16384, "max_words": 128}
B = {"width": 768, "layers": 12, "heads": 12}
L = {"width": 1024, "layers": 24, "heads": 16}
MAGVIT_CALL = {**VIDEO_SIZE, "num_inference_steps": 12}

MASKED_PRESETS: dict[str, PipelinePreset] = {
    "worlds-tasks": PipelinePreset(
        about="ten tasks from one masked transformer on 4,096 codes, shapes and digits by class",
        tokenizer="worlds-fsq",
        generator=MaskedTransformer,
        config={**SMALL, **COMMIT},
        text={"width": 96, "layers": 1, "heads": 3},
        scheduler={"choice_order": "random"},
        defaults={**SHAPES_SIZE, "num_inference_steps": 12, "guidance_scale": 1.5},
    ),
    "shapes-enat": PipelinePreset(
        about="visible tokens are encoded once, masked ones decoded from them, the shapes world",
        tokenizer="worlds-fsq",
        generator=EfficientMaskedTransformer,
        config={**SMALL, "layers": 4, "decoder_layers": 4},
        text={"width": 96, "layers": 1, "heads": 3},
        scheduler={"choice_order": "random"},
        defaults={**SHAPES_SIZE, "num_inference_steps": 24, "guidance_scale": 1.5},
    ),
    "magvit-b": PipelinePreset(
        about="ten tasks, 101 classes, 87 million weights (MAGVIT-B)",
        tokenizer="shapes-vq",
        generator=PrefixMaskedTransformer,
        config={**B, **COMMIT, "reconstruction_weight": 1.0},
        text={"width": 768},
        classes=UCF_CLASSES,
        defaults={**MAGVIT_CALL, "guidance_scale": 1.0},
    ),
    "magvit-l": PipelinePreset(
        about="ten tasks, 101 classes, 306 million weights (MAGVIT-L)",
        tokenizer="shapes-vq",
        generator=PrefixMaskedTransformer,
        config={**L, **COMMIT, "reconstruction_weight": 1.0},
        text={"width": 1024},
        classes=UCF_CLASSES,
        defaults={**MAGVIT_CALL, "guidance_scale": 1.0},
    ),
    "magvit-v2-mlm": PipelinePreset(
        about="2^18 codes in two factors, 101 classes, 307 million weights (MAGVIT-v2)",
        tokenizer="base-lfq",
        generator=PrefixMaskedTransformer,
        config={**L, "tasks": len(TASKS)},
        text={"width": 1024},
        classes=UCF_CLASSES,
        scheduler={"guidance_ramp": "linear"},
        defaults={**VIDEO_SIZE, "num_inference_steps": 24, "guidance_scale": 5.0},
    ),
    "phenaki": PipelinePreset(
        about="text to video on causal tokens with a self-critic (Phenaki)",
        tokenizer="c-vivit",
        generator=MaskedTransformer,
        config={"width": 2048, "layers": 24, "heads": 16, "self_critic_weight": 1.0},
        text=PHENAKI_TEXT,
        scheduler={"choice_temperature": 1.0},
        defaults={"num_frames": 11, "height": 128, "width": 128, "num_inference_steps": 24, "guidance_scale": 3.0},
    ),
    "maskvit": PipelinePreset(
        about="frame prediction, also from actions, in windows: single frames and tall 4×4 columns in turn (MaskViT)",
        tokenizer="base-vq",
        generator=MaskedTransformer,
        config={
            **B,
            "layers": 24,
            "windows": ((1, 16, 16), (0, 4, 4)),
            "smallest_ratio": 0.5,
            "tasks": len(TASKS),
            "action_channels": 4,  # of BAIR's robot
        },
        text={"width": 512, "layers": 2, "heads": 8},
        defaults={**MAGVIT_CALL, "guidance_scale": 1.0},
    ),
    "maskint": PipelinePreset(
        about="interpolates between edited key frames along a video of edges, in windows of 8×8 (MaskINT)",
        tokenizer="base-vq",
        generator=MaskedTransformer,
        config={**B, "windows": ((0, 8, 8), (0, 0, 0)), "tasks": len(TASKS), "control_layers": 2},
        text={"width": 512, "layers": 2, "heads": 8},
        defaults={**VIDEO_SIZE, "num_inference_steps": 32, "guidance_scale": 1.0},
    ),
    "enat": PipelinePreset(
        about="visible tokens are encoded once, masked ones decoded from them (ENAT)",
        tokenizer="base-vq",
        generator=EfficientMaskedTransformer,
        config={**B, "layers": 22, "decoder_layers": 2},
        text={"width": 512, "layers": 2, "heads": 8},
        scheduler={"guidance_ramp": "linear"},
        defaults={**VIDEO_SIZE, "num_inference_steps": 12, "guidance_scale": 3.0},
    ),
    "magi": PipelinePreset(
        about="frame after frame, each in any order, taught from whole frames (MAGI; sizes are ours)",
        tokenizer="base-kl",
        generator=FrameMaskedTransformer,
        config=B,
        text={"width": 512, "layers": 2, "heads": 8},
        scheduler={"choice_order": "frame", "schedule": "linear"},
        defaults={**VIDEO_SIZE, "num_inference_steps": 40, "guidance_scale": 3.0},
    ),
    "motionaura": PipelinePreset(
        about="discrete diffusion over learned codes from text, attention between frequencies (MotionAura)",
        tokenizer="base-vq",
        generator=MaskedTransformer,
        config={**L, "spectral_attention": True},
        text={"width": 512, "layers": 4, "heads": 8, "buckets": 16384, "max_words": 128},
        scheduler={"remask": 0.05},
        scheduler_class=AbsorbingScheduler,
        defaults={**VIDEO_SIZE, "num_inference_steps": 50, "guidance_scale": 3.0},
    ),
}
