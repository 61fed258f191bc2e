"""The identity of a model: hashes of its configuration and of its weights."""

import hashlib
import json
from typing import Any

import torch
from torch import nn


def weights_sha256(module: nn.Module, *, without: tuple[str, ...] = ()) -> str:
    """Of all parameters and buffers that are saved, but those whose names start with one of `without`: their names,
    types, shapes and bytes.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if name.startswith(without):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def config_sha256(model: Any) -> str:
    """Of a model's class and configuration, without names that begin with an underscore (where it was loaded from)."""
    config = {name: value for name, value in model.config.items() if not name.startswith("_")}
    described = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(f"{type(model).__name__} {described}".encode()).hexdigest()
