"""Presets of the diffusion family, one for each published system; sizes are theirs where they are published."""

from typing import Any

from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from vidgen.generators import DiffusionTransformer
from vidgen.pipelines.preset import UCF_CLASSES, PipelinePreset

TEXT = {"width": 512, "layers": 4, "heads": 8, "buckets": 16384, "max_words": 128}
CLASS: dict[str, Any] = {"text": {"width": 1152}, "classes": UCF_CLASSES}
XL = {"width": 1152, "layers": 28, "heads": 16}
L = {"width": 1024, "layers": 24, "heads": 16}
PATCH = {"patch": (1, 2, 2)}
CLASS_BY_ADALN = {"text_path": "modulation", "shared_modulation": False}
LINEAR_BETAS = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
DDPM = {"objective": "epsilon", "noise_schedule": LINEAR_BETAS}
UNCLIPPED = {**LINEAR_BETAS, "clip_sample": False}  # latents do not end at 1
SIZE = {"num_frames": 17, "height": 128, "width": 128}
FLOW_CALL = {**SIZE, "num_inference_steps": 50}

DIFFUSION_PRESETS: dict[str, PipelinePreset] = {
    "latte-xl-2": PipelinePreset(
        about="attention within frames and along time in turn, class by adaLN-zero, 674 million weights (Latte-XL/2)",
        tokenizer="base-kl",
        generator=DiffusionTransformer,
        config={**XL, **PATCH, **CLASS_BY_ADALN, **DDPM, "attention": "interleaved"},
        **CLASS,
        scheduler=UNCLIPPED,
        scheduler_class=DDPMScheduler,
        defaults={**SIZE, "num_inference_steps": 250, "guidance_scale": 7.0},
    ),
    "latte-t2v": PipelinePreset(
        about="attention within frames and along time in turn, text by cross-attention (Latte's text-to-video model)",
        tokenizer="base-kl",
        generator=DiffusionTransformer,
        config={**XL, **PATCH, **DDPM, "attention": "interleaved"},
        text=TEXT,
        scheduler=UNCLIPPED,
        scheduler_class=DDIMScheduler,
        defaults={**FLOW_CALL, "guidance_scale": 7.5},
    ),
    "vdt-l": PipelinePreset(
        about="along time, then within frames, in each block; known tokens in the input (VDT-L)",
        tokenizer="base-kl",
        generator=DiffusionTransformer,
        config={
            **XL,
            **PATCH,
            **CLASS_BY_ADALN,
            **DDPM,
            "attention": "sequential",
            "attention_options": {"temporal_first": True},
        },
        **CLASS,
        scheduler=UNCLIPPED,
        scheduler_class=DDPMScheduler,
        defaults={**SIZE, "num_inference_steps": 250, "guidance_scale": 1.0},
    ),
    "stiv-m": PipelinePreset(
        about="within frames, then along time, frames replaced by known ones, 8.7 billion weights (STIV-M)",
        tokenizer="base-kl",
        generator=DiffusionTransformer,
        config={
            "width": 3072,
            "layers": 46,
            "heads": 48,
            **PATCH,
            "attention": "sequential",
            "sandwich_norm": True,
        },
        text=TEXT,
        defaults={**FLOW_CALL, "guidance_scale": 7.5},
    ),
    "step-video": PipelinePreset(
        about="full attention on tokens of 8×16×16 pixels, 30 billion weights (Step-Video-T2V)",
        tokenizer="deep-kl",
        generator=DiffusionTransformer,
        config={"width": 6144, "layers": 48, "heads": 48},
        text={**TEXT, "width": 1024},
        scheduler={"shift": 13.0},
        defaults={**FLOW_CALL, "guidance_scale": 9.0},
    ),
    "lingen-4b": PipelinePreset(
        about="state-space scans and windows, cost linear in tokens, 4 billion weights (LinGen-4B)",
        tokenizer="base-kl",
        generator=DiffusionTransformer,
        config={
            "width": 2560,
            "layers": 28,
            "heads": 20,
            **PATCH,
            "attention": "linear",
            "attention_options": {"review": (4, 8, 8)},
        },
        text=TEXT,
        defaults={**FLOW_CALL, "guidance_scale": 7.5},
    ),
    "open-sora": PipelinePreset(
        about="two streams, then one, levels shifted by resolution, 12 billion weights (Open-Sora 2, Flux's blocks)",
        tokenizer="base-kl",
        generator=DiffusionTransformer,
        config={
            "width": 3072,
            "layers": 19,
            "single_layers": 38,
            "heads": 24,
            **PATCH,
            "text_path": "joint",
            "shift_base_tokens": 1024,
        },
        text=TEXT,
        defaults={**FLOW_CALL, "guidance_scale": 7.5},
    ),
    "mm-dit": PipelinePreset(
        about="text and video in one attention (MVDiT of OpenVid-1M, DiTCtrl's kind of model)",
        tokenizer="base-kl",
        generator=DiffusionTransformer,
        config={**XL, **PATCH, "text_path": "joint"},
        text=TEXT,
        defaults={**FLOW_CALL, "guidance_scale": 7.0},
    ),
    "vid-gpt": PipelinePreset(
        about="frames see the past alone: chunk after chunk with the clean frames cached (ViD-GPT)",
        tokenizer="base-kl",
        generator=DiffusionTransformer,
        config={
            **XL,
            **PATCH,
            "attention": "frame-causal",
            "attention_options": {"past_frames": 16, "sink_frames": 1},
            "level_frames": 1,
        },
        text=TEXT,
        defaults={**FLOW_CALL, "guidance_scale": 7.5},
    ),
    "seedvr": PipelinePreset(
        about="shifted windows that shrink at ragged borders: any size and length (SeedVR's attention)",
        tokenizer="base-kl",
        generator=DiffusionTransformer,
        config={
            "width": 2560,
            "layers": 36,
            "heads": 20,
            **PATCH,
            "attention": "windows",
            "attention_options": {"window": (4, 16, 16)},
        },
        text=TEXT,
        defaults={**FLOW_CALL, "guidance_scale": 5.0},
    ),
    "coordtok-sit": PipelinePreset(
        about="flow on three planes, 1,280 tokens for 128 frames, classes by adaLN (CoordTok)",
        tokenizer="coordtok",
        generator=DiffusionTransformer,
        config={**L, **CLASS_BY_ADALN},
        **CLASS,
        defaults={"num_frames": 128, "height": 128, "width": 128, "num_inference_steps": 50, "guidance_scale": 1.0},
    ),
    "vidtwin-dit": PipelinePreset(
        about="flow on structure and dynamics together, classes by adaLN (VidTwin)",
        tokenizer="vidtwin",
        generator=DiffusionTransformer,
        config={**L, **CLASS_BY_ADALN},
        **CLASS,
        defaults={"num_frames": 16, "height": 224, "width": 224, "num_inference_steps": 50, "guidance_scale": 2.0},
    ),
    "vitok-dit": PipelinePreset(
        about="flow on tokens of whole tubelets, classes by adaLN (ViTok)",
        tokenizer="vitok-s-b",
        generator=DiffusionTransformer,
        config={**L, **CLASS_BY_ADALN},
        **CLASS,
        defaults={"num_frames": 16, "height": 128, "width": 128, "num_inference_steps": 50, "guidance_scale": 2.0},
    ),
    "omnitokenizer-latte": PipelinePreset(
        about="Latte on the real tokens of a causal transformer (OmniTokenizer)",
        tokenizer="omnitokenizer-kl",
        generator=DiffusionTransformer,
        config={**XL, **PATCH, **CLASS_BY_ADALN, **DDPM, "attention": "interleaved"},
        **CLASS,
        scheduler=UNCLIPPED,
        scheduler_class=DDIMScheduler,
        defaults={**FLOW_CALL, "guidance_scale": 7.0},
    ),
}
