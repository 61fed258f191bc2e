"""The Triton attention as an operator of PyTorch: differentiable, opaque to torch.compile, without graph breaks."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vidgen.kernels.flat_spec import numbers_of, spec_of
from vidgen.kernels.spec import AttentionSpec
from vidgen.kernels.triton import launch
from vidgen.kernels.triton.configs import config_for


def attention(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, scale: float) -> tuple[Tensor, Tensor]:
    """q `b h n d`, k and v `b g m d` -> output like q, natural log-sum-exp `b h n` in float32; both differentiable."""
    output, lse = _attention(q, k, v, numbers_of(spec), scale)
    return output, lse


@torch.library.custom_op("vidgen::triton_attention", mutates_args=())
def _attention(q: Tensor, k: Tensor, v: Tensor, spec: Sequence[int], scale: float) -> tuple[Tensor, Tensor]:
    return launch.forward(q, k, v, spec_of(tuple(spec)), scale=scale, config=config_for(q))


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, spec: Sequence[int], scale: float) -> tuple[Tensor, Tensor]:
    return launch.result_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("vidgen::triton_attention_backward", mutates_args=())
def _attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,
    lse: Tensor,
    d_output: Tensor,
    d_lse: Tensor,
    spec: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    config = config_for(q)
    return launch.backward(q, k, v, output, lse, d_output, d_lse, spec_of(tuple(spec)), scale=scale, config=config)


@_attention_backward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,
    lse: Tensor,
    d_output: Tensor,
    d_lse: Tensor,
    spec: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return launch.result_like(q), launch.result_like(k), launch.result_like(v)


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.spec, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output)


def _differentiate(ctx: Any, d_output: Tensor | None, d_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, output, lse = ctx.saved_tensors
    d_output = torch.zeros_like(output) if d_output is None else d_output
    d_lse = torch.zeros_like(lse) if d_lse is None else d_lse
    return (*_attention_backward(q, k, v, output, lse, d_output, d_lse, ctx.spec, ctx.scale), None, None)


_attention.register_autograd(_differentiate, setup_context=_keep)
