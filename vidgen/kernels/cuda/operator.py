"""The CUDA attention as an operator of PyTorch: opaque to torch.compile, without graph breaks; forward only."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vidgen.kernels.cuda.compile import architecture_of
from vidgen.kernels.cuda.launch import prepare, readable, submit
from vidgen.kernels.flat_spec import spec_of


@torch.library.custom_op("vidgen::cuda_attention", mutates_args=())
def attention(q: Tensor, k: Tensor, v: Tensor, spec: Sequence[int], scale: float) -> tuple[Tensor, Tensor]:
    """q `b h n d`, k and v `b g m d`, the spec as `numbers_of` gives it -> output `b h n d`, log-sum-exp `b h n`."""
    q, k, v = readable(q), readable(k), readable(v)
    output = q.new_empty(q.shape)
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    architecture = architecture_of(q.device)
    launch = prepare(q, k, v, output, lse, spec_of(tuple(spec)), scale=scale, architecture=architecture)
    submit(launch, q.device)
    return output, lse


@attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, spec: Sequence[int], scale: float) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32)
