"""The identity of a model: a hash of its weights."""

import hashlib

import torch
from torch import nn


def weights_sha256(module: nn.Module) -> str:
    """Of all parameters and buffers that are saved: their names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
