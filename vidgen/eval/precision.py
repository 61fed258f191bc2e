"""How exactly CUDA computes a score: convolutions in float32, not in TF32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_tf32() -> Iterator[None]:
    """PyTorch lets CUDA convolutions round their input to 10 bits, which published features and scores never saw."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
