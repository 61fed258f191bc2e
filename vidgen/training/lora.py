"""LoRA in training: adapters on a frozen transformer, and the merged model at export."""

import copy
from typing import Any

LAYERS = ("to_qkv", "to_q", "to_kv", "to_out", "to_hidden")  # attention and feed-forward of every transformer block


def add_lora(transformer: Any, rank: int) -> None:
    """Freeze the transformer and give its blocks adapters of `rank`, which start as no change at all."""
    from peft import LoraConfig

    transformer.requires_grad_(False)
    pattern = rf"transformer_blocks\..*\.({'|'.join(LAYERS)})"
    transformer.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=pattern))


def merged(transformer: Any) -> Any:
    """A copy of the transformer with its adapters added to its weights."""
    whole = copy.deepcopy(transformer)
    whole.fuse_lora()
    whole.unload_lora()
    return whole
