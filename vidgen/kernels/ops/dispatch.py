"""Which form of an op a tensor gets: the Triton kernel on a GPU (or in Triton's interpreter), else plain torch."""

import importlib.util
import os

import torch
from torch import Tensor

TRITON = importlib.util.find_spec("triton") is not None
# Triton reads the switch when a kernel is defined, so it holds for the whole process.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def takes_triton(x: Tensor) -> bool:
    return TRITON and (x.is_cuda or INTERPRETED) and x.dtype in DTYPES
