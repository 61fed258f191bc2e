"""diffusers' own pipeline and model tests, unchanged, on our pipelines, generators, tokenizers and text encoder.

Adaptations, each because our contract says more than diffusers': a model's `forward` gives a plain tensor, so a
subclass wraps it in a tuple; `output_type="latent"` gives `Latents`, of which a subclass shows the raw tensor;
`video_tokenizer` is a tokenizer of videos, so it stays where the suite takes "tokenizers" away to test text alone.
"""
# ruff: noqa: E402

import functools
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

CHECKOUT = os.environ.get("DIFFUSERS_REPO")
if not CHECKOUT:
    pytest.skip("set DIFFUSERS_REPO to a checkout of huggingface/diffusers to run its suite", allow_module_level=True)
if not (Path(CHECKOUT) / "tests" / "pipelines" / "testing_utils" / "common.py").is_file():
    raise FileNotFoundError(f"DIFFUSERS_REPO={CHECKOUT} holds no tests/pipelines/testing_utils; give a checkout's root")
# `tests.…` must be the checkout's package; its `src` stays out of the path, the installed diffusers is what is tested.
sys.path.insert(0, str(Path(CHECKOUT).resolve()))
sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

import diffusers.pipelines
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from tests.models.testing_utils import (
    BaseModelTesterConfig,
    FirstBlockCacheTesterMixin,
    MagCacheTesterMixin,
    MemoryTesterMixin,
    ModelTesterMixin,
    PyramidAttentionBroadcastTesterMixin,
    TaylorSeerCacheTesterMixin,
    TrainingTesterMixin,
)
from tests.pipelines.testing_utils import BasePipelineTesterConfig, PipelineTesterMixin
from tests.pipelines.testing_utils import MemoryTesterMixin as PipelineMemoryTesterMixin
from tiny_models import clip, pipeline, shake

from vidgen.conditioning import WordTextEncoder
from vidgen.latents import Latents
from vidgen.pipelines import AutoregressiveVideoPipeline, DiffusionVideoPipeline, MaskedVideoPipeline

pytestmark = pytest.mark.external
SIZE = (5, 16, 16)


# -------------------------------------------------------------------------------------------------------- pipelines


def showing_raw_latents(kind: type) -> type:
    """The pipeline, whose "latent" output is the tensor inside the `Latents`."""

    @functools.wraps(kind.__call__)
    def call(self, *args: Any, **kwargs: Any) -> Any:
        output = kind.__call__(self, *args, **kwargs)
        if isinstance(output[0], Latents):
            return (output[0].tokens if output[0].ids is None else output[0].ids,)
        return output

    adapted = type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})
    setattr(diffusers.pipelines, kind.__name__, adapted)  # the suite reads the source of encode_prompt from there
    return adapted


class PipelineConfig(BasePipelineTesterConfig):
    family: str
    bottleneck: str
    optional_input_params = frozenset(
        ["num_inference_steps", "num_videos_per_prompt", "generator", "latents", "output_type", "return_dict"]
    )
    required_input_params_in_call_signature = frozenset(
        [
            "prompt",
            "negative_prompt",
            "height",
            "width",
            "num_frames",
            "guidance_scale",
            "prompt_embeds",
            "negative_prompt_embeds",
            "callback_on_step_end",
            "callback_on_step_end_tensor_inputs",
        ]
    )
    batch_input_params = frozenset(["prompt", "negative_prompt"])
    callback_cfg_params = frozenset(["prompt_embeds"])
    output_shape = (SIZE[0], 3, *SIZE[1:])

    def get_dummy_components(self) -> dict[str, Any]:
        components = dict(pipeline(self.family, self.bottleneck).components)
        torch.manual_seed(0)  # one prompt of the suite has 101 words
        components["text_encoder"] = WordTextEncoder(width=16, layers=1, heads=2, buckets=64, max_words=128).eval()
        return components

    def get_dummy_inputs(self) -> dict[str, Any]:
        return {
            "prompt": "a red circle",
            "negative_prompt": "a blue star",
            "generator": self.get_generator(0),
            "num_frames": SIZE[0],
            "height": SIZE[1],
            "width": SIZE[2],
            "num_inference_steps": 2,
            "guidance_scale": 3.0,
            "output_type": "pt",
        }

    def get_pipeline(self, **components: Any) -> Any:
        if components and components["video_tokenizer"] is None:
            components["video_tokenizer"] = self.get_dummy_components()["video_tokenizer"]
        return super().get_pipeline(**components)  # pyright: ignore[reportAttributeAccessIssue]


class MaskedVideoPipelineConfig(PipelineConfig):
    pipeline_class = showing_raw_latents(MaskedVideoPipeline)
    family, bottleneck = "masked", "fsq"


class DiffusionVideoPipelineConfig(PipelineConfig):
    pipeline_class = showing_raw_latents(DiffusionVideoPipeline)
    family, bottleneck = "diffusion", "kl"


class AutoregressiveVideoPipelineConfig(PipelineConfig):
    pipeline_class = showing_raw_latents(AutoregressiveVideoPipeline)
    family, bottleneck = "autoregressive", "fsq"


# ----------------------------------------------------------------------------------------------------------- models


def giving_tuples(kind: type) -> type:
    """The model, whose `forward` gives a tuple or output object and takes `return_dict`, as diffusers' do."""

    def forward(self, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        output = kind.forward(self, *args, **kwargs)
        tensor = output if isinstance(output, torch.Tensor) else output.states
        return Transformer2DModelOutput(sample=tensor) if return_dict else (tensor,)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


class ModelConfig(BaseModelTesterConfig):
    family = "masked"
    bottleneck = "fsq"
    component = "transformer"
    output_shape = (8, 32)

    @property
    def model_class(self) -> type:
        return giving_tuples(type(getattr(pipeline(self.family, self.bottleneck), self.component)))

    def get_init_dict(self) -> dict[str, Any]:
        model = getattr(pipeline(self.family, self.bottleneck), self.component)
        return {name: value for name, value in model.config.items() if not name.startswith("_")}

    def condition(self) -> dict[str, Any]:
        states = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1))
        spec = pipeline(self.family, self.bottleneck).video_tokenizer.spec
        return {
            "coordinates": spec.coordinates(SIZE),
            "encoder_hidden_states": states,
            "encoder_attention_mask": torch.ones(2, 3, dtype=torch.bool),
        }


class MaskedTransformerConfig(ModelConfig):
    def get_dummy_inputs(self) -> dict[str, Any]:
        masked = torch.arange(16).reshape(2, 8) % 3 > 0
        return {"tokens": torch.arange(16).reshape(2, 8, 1), "masked": masked, **self.condition()}


class AutoregressiveTransformerConfig(ModelConfig):
    family = "autoregressive"

    def get_dummy_inputs(self) -> dict[str, Any]:
        return {"previous": torch.arange(14).reshape(2, 7, 1), **self.condition()}


class DiffusionTransformerConfig(ModelConfig):
    family, bottleneck = "diffusion", "kl"
    output_shape = (8, 4)

    def get_dummy_inputs(self) -> dict[str, Any]:
        noise = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))
        grid = pipeline(self.family, self.bottleneck).video_tokenizer.spec.grid(SIZE)
        return {"hidden_states": noise, "timestep": torch.tensor([300.0, 700.0]), "grid": grid, **self.condition()}


class AwakeDiffusionTransformerConfig(DiffusionTransformerConfig):
    """A fresh transformer says nothing (adaLN-zero), so that skipped blocks would change nothing."""

    @property
    def model_class(self) -> type:
        kind = super().model_class

        def awake(self, **arguments: Any) -> None:
            kind.__init__(self, **arguments)
            shake(self)

        return type(kind.__name__, (kind,), {"__init__": awake, "__module__": kind.__module__})


class WordTextEncoderConfig(ModelConfig):
    component = "text_encoder"
    output_shape = (4, 16)

    def get_dummy_inputs(self) -> dict[str, Any]:
        return {"rows": torch.arange(16).reshape(2, 4, 2), "mask": torch.ones(2, 4, dtype=torch.bool)}


class AutoencoderConfig(ModelConfig):
    component = "video_tokenizer"
    output_shape = (3, *SIZE)

    @property
    def model_class(self) -> type:
        kind = type(pipeline(self.family, self.bottleneck).video_tokenizer)

        def forward(self, sample: torch.Tensor, return_dict: bool = True) -> Any:
            video = self.decode(self.encode(sample))
            return Transformer2DModelOutput(sample=video) if return_dict else (video,)

        return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})

    def get_dummy_inputs(self) -> dict[str, Any]:
        return {"sample": clip(batch=2)}


class CausalConvTokenizerKLConfig(AutoencoderConfig):
    bottleneck = "kl"


class CausalConvTokenizerVQConfig(AutoencoderConfig):
    bottleneck = "vq"


class CausalConvTokenizerFSQConfig(AutoencoderConfig):
    bottleneck = "fsq"


# ------------------------------------------------------------------------------- every configuration with every mixin
# A mixin that needs an accelerator skips the whole class it is in, so each gets classes of its own.


class TestMaskedVideoPipeline(MaskedVideoPipelineConfig, PipelineTesterMixin): ...


class TestMaskedVideoPipelineMemory(MaskedVideoPipelineConfig, PipelineMemoryTesterMixin): ...


class TestDiffusionVideoPipeline(DiffusionVideoPipelineConfig, PipelineTesterMixin): ...


class TestDiffusionVideoPipelineMemory(DiffusionVideoPipelineConfig, PipelineMemoryTesterMixin): ...


class TestAutoregressiveVideoPipeline(AutoregressiveVideoPipelineConfig, PipelineTesterMixin): ...


class TestAutoregressiveVideoPipelineMemory(AutoregressiveVideoPipelineConfig, PipelineMemoryTesterMixin): ...


class TestMaskedTransformer(MaskedTransformerConfig, ModelTesterMixin): ...


class TestMaskedTransformerMemory(MaskedTransformerConfig, MemoryTesterMixin): ...


class TestMaskedTransformerTraining(MaskedTransformerConfig, TrainingTesterMixin): ...


class TestDiffusionTransformer(DiffusionTransformerConfig, ModelTesterMixin): ...


class TestDiffusionTransformerMemory(DiffusionTransformerConfig, MemoryTesterMixin): ...


class TestDiffusionTransformerTraining(DiffusionTransformerConfig, TrainingTesterMixin): ...


class TestDiffusionTransformerFirstBlockCache(AwakeDiffusionTransformerConfig, FirstBlockCacheTesterMixin): ...


class TestDiffusionTransformerMagCache(AwakeDiffusionTransformerConfig, MagCacheTesterMixin): ...


class TestDiffusionTransformerAttentionBroadcast(
    AwakeDiffusionTransformerConfig, PyramidAttentionBroadcastTesterMixin
): ...


class TestDiffusionTransformerTaylorSeer(AwakeDiffusionTransformerConfig, TaylorSeerCacheTesterMixin): ...


class TestAutoregressiveTransformer(AutoregressiveTransformerConfig, ModelTesterMixin): ...


class TestAutoregressiveTransformerMemory(AutoregressiveTransformerConfig, MemoryTesterMixin): ...


class TestAutoregressiveTransformerTraining(AutoregressiveTransformerConfig, TrainingTesterMixin): ...


class TestWordTextEncoder(WordTextEncoderConfig, ModelTesterMixin): ...


class TestWordTextEncoderMemory(WordTextEncoderConfig, MemoryTesterMixin): ...


class TestWordTextEncoderTraining(WordTextEncoderConfig, TrainingTesterMixin): ...


class TestCausalConvTokenizerKL(CausalConvTokenizerKLConfig, ModelTesterMixin): ...


class TestCausalConvTokenizerKLMemory(CausalConvTokenizerKLConfig, MemoryTesterMixin): ...


class TestCausalConvTokenizerVQ(CausalConvTokenizerVQConfig, ModelTesterMixin): ...


class TestCausalConvTokenizerVQMemory(CausalConvTokenizerVQConfig, MemoryTesterMixin): ...


class TestCausalConvTokenizerFSQ(CausalConvTokenizerFSQConfig, ModelTesterMixin): ...


class TestCausalConvTokenizerFSQMemory(CausalConvTokenizerFSQConfig, MemoryTesterMixin): ...
