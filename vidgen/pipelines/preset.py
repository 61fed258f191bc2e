"""`PipelinePreset`: which tokenizer, network, text encoder and scheduler make a pipeline, and a call's defaults."""

from dataclasses import dataclass, field, replace
from typing import Any

from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from vidgen.conditioning import ClassEncoder, TextEncoder, WordTextEncoder
from vidgen.generators import (
    AutoregressiveTransformer,
    DiffusionTransformer,
    EfficientMaskedTransformer,
    FrameMaskedTransformer,
    Generator,
    LlamaTransformer,
    MaskedTransformer,
    PrefixMaskedTransformer,
)
from vidgen.generators.head_choice import head_types
from vidgen.pipelines.autoregressive import AutoregressiveVideoPipeline
from vidgen.pipelines.base import VideoPipeline
from vidgen.pipelines.diffusion import DiffusionVideoPipeline
from vidgen.pipelines.masked import MaskedVideoPipeline
from vidgen.schedulers import AutoregressiveScheduler, MaskedTokenScheduler
from vidgen.tokenizers import Tokenizer
from vidgen.tokenizers.presets import TOKENIZER_PRESETS, TokenizerPreset

FAMILIES: dict[type[Generator], tuple[type[VideoPipeline], type]] = {
    MaskedTransformer: (MaskedVideoPipeline, MaskedTokenScheduler),
    EfficientMaskedTransformer: (MaskedVideoPipeline, MaskedTokenScheduler),
    FrameMaskedTransformer: (MaskedVideoPipeline, MaskedTokenScheduler),
    PrefixMaskedTransformer: (MaskedVideoPipeline, MaskedTokenScheduler),
    DiffusionTransformer: (DiffusionVideoPipeline, FlowMatchEulerDiscreteScheduler),
    AutoregressiveTransformer: (AutoregressiveVideoPipeline, AutoregressiveScheduler),
    LlamaTransformer: (AutoregressiveVideoPipeline, AutoregressiveScheduler),
}
TINY_CALL = {"num_frames": 5, "height": 16, "width": 16, "num_inference_steps": 3, "num_candidates": 1}
UCF_CLASSES = tuple(f"class {label}" for label in range(101))  # of UCF-101, which published models are told


@dataclass(frozen=True, kw_only=True)
class PipelinePreset:
    """Components of a pipeline by class and configuration.

    Args:
        about: one line for people.
        tokenizer: name of the tokenizer (preset or built-in model) that makes its tokens.
        generator: the class of the network.
        config: constructor's arguments of the network, without `latent_spec` and `text_width`. A head that is for ids
            alone, or for reals alone, gives way to the automatic one on a tokenizer of the other kind.
        text: constructor's arguments of the built-in text encoder.
        classes: names of the classes that the model is told in place of text.
        class_separator: parts those names into what classes share, each with a state of its own.
        scheduler: constructor's arguments of the scheduler.
        scheduler_class: another scheduler than the family's own.
        defaults: values for arguments that a call leaves out.
        matcher: name of the built-in matcher by which the built-in model of this name chooses between candidates.
        is_tiny: the tokenizer's tiny twin is meant.
    """

    about: str
    tokenizer: str
    generator: type[Generator]
    config: dict[str, Any]
    text: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    class_separator: str | None = None
    scheduler: dict[str, Any] = field(default_factory=dict)
    scheduler_class: type | None = None
    defaults: dict[str, Any] = field(default_factory=dict)
    matcher: str | None = None
    is_tiny: bool = False

    @property
    def tokenizer_preset(self) -> TokenizerPreset:
        preset = TOKENIZER_PRESETS[self.tokenizer]
        return preset.tiny() if self.is_tiny else preset

    def build(self, tokenizer: Tokenizer | None = None, text_encoder: TextEncoder | None = None) -> VideoPipeline:
        """The pipeline, freshly initialised from the global generator, around the given parts if there are any."""
        tokenizer = tokenizer or self.tokenizer_preset.build()
        text_encoder = text_encoder or self.build_text_encoder()
        pipeline, scheduler = FAMILIES[self.generator]
        scheduler = self.scheduler_class or scheduler
        config = self.config
        if config.get("head_type", "auto") not in head_types(tokenizer.spec):
            config = {name: value for name, value in config.items() if not name.startswith("head_")}
        arguments = {"latent_spec": tokenizer.spec.to_json(), "text_width": text_encoder.width, **config}
        network = self.generator(**arguments)
        arguments = {
            "video_tokenizer": tokenizer.eval(),
            "text_encoder": text_encoder,
            "transformer": network,
            "scheduler": scheduler(**self.scheduler),
            "defaults": self.defaults,
        }
        return pipeline(**arguments)

    def build_text_encoder(self) -> TextEncoder:
        if self.classes:
            return ClassEncoder(self.classes, width=self.text["width"], separator=self.class_separator)
        return WordTextEncoder(**self.text)

    def tiny(self) -> "PipelinePreset":
        """The same architecture, small enough to train in a test."""
        single = {"single_layers": 1} if "single_layers" in self.config else {}
        return replace(
            self,
            about=f"tiny twin: {self.about}",
            config={**self.config, "width": 32, "layers": 2, "heads": 2, **single},
            text={"width": 16, "layers": 1, "heads": 2, "buckets": 64},
            defaults={**self.defaults, **TINY_CALL},
            is_tiny=True,
        )
