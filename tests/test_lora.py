"""Are LoRA adapters small, exact when merged, and what a training run with `lora_rank` makes?"""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_pipelines import distance, each_family, latents_of
from test_training_generator import tiny_pipeline, tiny_run
from tiny_models import pipeline, shake

import vidgen
from vidgen.pipelines.lora import WEIGHTS
from vidgen.training import train_generator
from vidgen.training.lora import add_lora, merged


def adapted(family: str):
    """A tiny pipeline whose adapter does something."""
    pipe = pipeline(family, "kl")
    add_lora(pipe.transformer, rank=2)
    for name, weight in pipe.transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    return pipe


@each_family
def test_a_fresh_adapter_changes_nothing_and_alone_is_trained(family):
    pipe = pipeline(family, "kl")
    before = latents_of(pipe).tokens
    add_lora(pipe.transformer, rank=2)
    assert torch.equal(latents_of(pipe).tokens, before)
    trained = [name for name, weight in pipe.transformer.named_parameters() if weight.requires_grad]
    assert trained
    assert all(".lora_" in name and name.startswith("transformer_blocks.") for name in trained)


@each_family
def test_merged_equals_unmerged_and_a_file_brings_the_adapter_back(family, tmp_path):
    pipe = adapted(family)
    plain, worn = latents_of(pipeline(family, "kl")).tokens, latents_of(pipe).tokens
    assert distance(plain, worn) > 1e-3
    pipe.save_lora_weights(tmp_path)
    fresh = pipeline(family, "kl")
    fresh.load_lora_weights(tmp_path)
    assert distance(latents_of(fresh).tokens, worn) <= 1e-6
    fresh.fuse_lora()
    assert distance(latents_of(fresh).tokens, worn) <= 1e-3
    fresh.unfuse_lora()
    fresh.unload_lora_weights()
    assert distance(latents_of(fresh).tokens, plain) <= 1e-3
    whole = merged(pipe.transformer)
    assert set(whole.state_dict()) == set(fresh.transformer.state_dict())


def test_a_lora_of_another_model_or_none_is_refused(tmp_path):
    adapted("masked").save_lora_weights(tmp_path)
    with pytest.raises(ValueError, match="for another transformer"):
        tiny_pipeline("flow").load_lora_weights(tmp_path)
    with pytest.raises(ValueError, match="there is no LoRA in"):
        pipeline().load_lora_weights(tmp_path / "nothing")


def test_a_run_with_a_rank_trains_the_adapter_alone_and_exports_it_merged_and_apart(tmp_path):
    base = tiny_pipeline("masked")
    shake(base.transformer)
    base.save_pretrained(tmp_path / "base")
    start: Any = vidgen.load(tmp_path / "base")
    folder = train_generator(tiny_run(tmp_path / "run", lora_rank=2, known_frames=0.0), pipeline=start)
    trained: Any = vidgen.load(folder)
    again: Any = vidgen.load(tmp_path / "base")
    assert len(load_file(folder / WEIGHTS)) > 0
    again.load_lora_weights(folder)
    sample = {"num_frames": 5, "height": 16, "width": 16, "num_inference_steps": 2}
    for pipe in (trained, again):
        pipe.set_progress_bar_config(disable=True)
    assert distance(*(latents_of(pipe, **sample).tokens for pipe in (trained, again))) <= 1e-3
    before, after = (vidgen.load(path).transformer.state_dict() for path in (tmp_path / "base", folder))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("transformer_blocks.") for name in changed)


def test_adapters_need_a_model_to_adapt(tmp_path):
    with pytest.raises(ValueError, match="--init-from"):
        train_generator(tiny_run(tmp_path, preset="shapes-masked", lora_rank=2))
