"""The table of attention backends; a new backend is one file and one line here."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from vidgen.kernels.backends import cuda, flex, halo, matmul, natten, reference, sdpa, triton


@dataclass(frozen=True)
class Backend:
    """One way to compute `attention3d`; tensors come as q `b h n d`, k and v `b g m d` with g dividing h."""

    name: str
    unsupported: Callable[..., str | None]
    """(q, k, v, spec, *, return_lse) -> why it cannot serve this call, or None when it can."""
    attend: Callable[..., tuple[Tensor, Tensor | None]]
    """(q, k, v, spec, *, scale, return_lse) -> output `b h n d`, log-sum-exp `b h n` or None."""


BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("reference", reference.unsupported, reference.attend),
        Backend("sdpa_dense", sdpa.dense_unsupported, sdpa.dense_attend),
        Backend("sdpa_reshape", sdpa.reshape_unsupported, sdpa.reshape_attend),
        Backend("matmul", matmul.unsupported, matmul.attend),
        Backend("halo", halo.unsupported, halo.attend),
        Backend("triton", triton.unsupported, triton.attend),
        Backend("cuda", cuda.unsupported, cuda.attend),
        Backend("flex", flex.unsupported, flex.attend),
        Backend("natten", natten.unsupported, natten.attend),
    )
}
