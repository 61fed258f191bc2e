"""`modulate` and `gated_residual`: norm, scale, shift and gate of a diffusion transformer, one pass over the tokens."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vidgen.kernels.ops.dispatch import takes_triton

Norm = Literal["layer", "rms"]


def modulate(x: Tensor, shift: Tensor, scale: Tensor, *, norm: Norm = "layer", eps: float = 1e-6) -> Tensor:
    """norm(x)·(1 + scale) + shift (adaLN, DiT, arXiv 2212.09748), the norm without weights of its own.

    `x` is `b n d`; shift and scale are `b m d` with m dividing n: n/m tokens in a row share a modulation. m = 1: one
    for the clip; m = frames: one for each frame (tokens in raster order); m = n: one for each token.
    Returns `b n d` in the dtype that the three promote to.
    ValueError: shapes that do not fit, an unknown norm.
    """
    _check(x, {"shift": shift, "scale": scale})
    if norm not in ("layer", "rms"):
        raise ValueError(f'norm must be "layer" or "rms", got {norm!r}')
    if takes_triton(x):
        return _modulate(x, shift, scale, norm == "layer", eps)
    return modulate_reference(x, shift, scale, norm=norm, eps=eps)


def gated_residual(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    """x + gate·branch: `b n d`, `b n d`, and `b m d` shared by n/m tokens in a row as in `modulate`."""
    _check(x, {"gate": gate})
    if branch.shape != x.shape:
        raise ValueError(f"expected a branch of the shape of x, {tuple(x.shape)}, got {tuple(branch.shape)}")
    if takes_triton(x):
        return _gated_residual(x, branch, gate)
    return gated_residual_reference(x, branch, gate)


def modulate_reference(x: Tensor, shift: Tensor, scale: Tensor, *, norm: Norm, eps: float) -> Tensor:
    normalise = F.layer_norm if norm == "layer" else F.rms_norm
    normal = normalise(x, x.shape[-1:], eps=eps)
    return torch.addcmul(_per_token(shift, x), normal, 1 + _per_token(scale, x))


def gated_residual_reference(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    return torch.addcmul(x, _per_token(gate, x), branch)


def _per_token(modulation: Tensor, x: Tensor) -> Tensor:
    """`b m d` as it broadcasts to the tokens of x."""
    shared = x.shape[1] // modulation.shape[1]
    if modulation.shape[1] == 1 or shared == 1:
        return modulation
    return modulation.repeat_interleave(shared, dim=1)


def _check(x: Tensor, modulations: dict[str, Tensor]) -> None:
    if x.ndim != 3:
        raise ValueError(f"expected x `b n d`, got shape {tuple(x.shape)}")
    for name, modulation in modulations.items():
        fits = modulation.ndim == 3 and modulation.shape[0] == x.shape[0] and modulation.shape[2] == x.shape[2]
        if not fits or modulation.shape[1] == 0 or x.shape[1] % modulation.shape[1]:
            raise ValueError(
                f"expected {name} of shape ({x.shape[0]}, m, {x.shape[2]}) with m a divisor of {x.shape[1]} tokens, "
                f"got {tuple(modulation.shape)}"
            )


# registration: what torch.compile and autograd need to know about the kernels


@torch.library.custom_op("vidgen::modulate", mutates_args=())
def _modulate(x: Tensor, shift: Tensor, scale: Tensor, centred: bool, eps: float) -> Tensor:
    from vidgen.kernels.ops.triton.modulation import modulate_forward

    out = torch.empty(x.shape, device=x.device, dtype=_result_type(x, shift, scale))
    modulate_forward(x.contiguous(), _dense(shift), _dense(scale), out, eps=eps, centred=centred)
    return out


@_modulate.register_fake
def _(x: Tensor, shift: Tensor, scale: Tensor, centred: bool, eps: float) -> Tensor:
    return x.new_empty(x.shape, dtype=_result_type(x, shift, scale))


@torch.library.custom_op("vidgen::modulate_backward", mutates_args=())
def _modulate_backward(
    grad: Tensor, x: Tensor, shift: Tensor, scale: Tensor, centred: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    from vidgen.kernels.ops.triton.modulation import modulate_backward

    grad_x = torch.empty(x.shape, device=x.device, dtype=x.dtype)
    grad_shift, grad_scale = modulate_backward(
        grad.contiguous(), x.contiguous(), _dense(scale), grad_x, eps=eps, centred=centred
    )
    return grad_x, grad_shift.to(shift.dtype), grad_scale.to(scale.dtype)


@_modulate_backward.register_fake
def _(
    grad: Tensor, x: Tensor, shift: Tensor, scale: Tensor, centred: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), shift.new_empty(shift.shape), scale.new_empty(scale.shape)


def _keep_modulate(ctx, inputs: tuple, output: Tensor) -> None:
    x, shift, scale, ctx.centred, ctx.eps = inputs
    ctx.save_for_backward(x, shift, scale)


def _differentiate_modulate(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_modulate_backward(grad, *ctx.saved_tensors, ctx.centred, ctx.eps), None, None


_modulate.register_autograd(_differentiate_modulate, setup_context=_keep_modulate)


@torch.library.custom_op("vidgen::gated_residual", mutates_args=())
def _gated_residual(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    from vidgen.kernels.ops.triton.modulation import gated_residual_forward

    out = torch.empty(x.shape, device=x.device, dtype=_result_type(x, branch, gate))
    gated_residual_forward(x.contiguous(), branch.contiguous(), _dense(gate), out)
    return out


@_gated_residual.register_fake
def _(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    return x.new_empty(x.shape, dtype=_result_type(x, branch, gate))


@torch.library.custom_op("vidgen::gated_residual_backward", mutates_args=())
def _gated_residual_backward(grad: Tensor, branch: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    from vidgen.kernels.ops.triton.modulation import gated_residual_backward

    grad_branch = torch.empty(branch.shape, device=branch.device, dtype=branch.dtype)
    grad_gate = gated_residual_backward(grad.contiguous(), branch.contiguous(), _dense(gate), grad_branch)
    return grad_branch, grad_gate.to(gate.dtype)


@_gated_residual_backward.register_fake
def _(grad: Tensor, branch: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    return branch.new_empty(branch.shape), gate.new_empty(gate.shape)


def _keep_gated(ctx, inputs: tuple, output: Tensor) -> None:
    x, branch, gate = inputs
    ctx.save_for_backward(branch, gate)
    ctx.dtype = x.dtype


def _differentiate_gated(ctx, grad: Tensor) -> tuple[Tensor, ...]:
    return grad.to(ctx.dtype), *_gated_residual_backward(grad, *ctx.saved_tensors)


_gated_residual.register_autograd(_differentiate_gated, setup_context=_keep_gated)


def _result_type(one: Tensor, two: Tensor, three: Tensor) -> torch.dtype:
    return torch.promote_types(one.dtype, torch.promote_types(two.dtype, three.dtype))


def _dense(modulation: Tensor) -> Tensor:
    """The kernels stride over batch and groups, so a slice of a joint `b m 6 d` modulation needs no copy."""
    return modulation if modulation.stride(-1) == 1 else modulation.contiguous()
