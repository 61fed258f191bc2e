"""Which backend `auto` takes, and why the others were passed over."""

import torch
from torch import Tensor

from vidgen.kernels.backends import BACKENDS
from vidgen.kernels.boxes import BoxPlan, plan_boxes
from vidgen.kernels.cost import dense_cost, windows_cost
from vidgen.kernels.flat_spec import constants_of, spec_of
from vidgen.kernels.spec import AttentionSpec
from vidgen.kernels.windows import separate_windows

# `auto` takes the first that can serve and pays: no mask at all, then the work that is visible and little else, then
# the dense mask, and the reference for what nothing else returns.
CPU_ORDER = ("matmul", "sdpa_reshape", "halo", "sdpa_dense", "reference")
GPU_ORDER = ("sdpa_reshape", "triton", "flex", "sdpa_dense", "reference")
# Below this many keys one dense masked call, which returns no log-sum-exp, is as fast as a kernel that is compiled for
# each pattern.
COMPILED = ("triton", "flex")
COMPILED_SMALLEST_KEYS = 1024


def order_of(device: torch.device) -> tuple[str, ...]:
    """The backends in the order in which `auto` asks them."""
    return CPU_ORDER if device.type == "cpu" else GPU_ORDER


def choose(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, *, return_lse: bool) -> str:
    """The name of the backend that `auto` takes."""
    for name in order_of(q.device):
        if passed_over(name, q, k, v, spec, return_lse=return_lse) is None:
            return name
    raise AssertionError("the reference backend serves everything")


def passed_over(name: str, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, *, return_lse: bool) -> str | None:
    """Why `auto` does not take a backend when it is asked: it cannot serve, or it would not pay; None when it does."""
    reason = BACKENDS[name].unsupported(q, k, v, spec, return_lse=return_lse)
    if reason is None and name in COMPILED and not return_lse and spec.num_keys < COMPILED_SMALLEST_KEYS:
        return f"{spec.num_keys} keys are fewer than {COMPILED_SMALLEST_KEYS}, where compiling it starts to pay"
    if reason is None and name == "halo" and not return_lse:
        share = _halo_over_dense(constants_of(spec))
        if share >= 1:
            return f"estimated to cost {share:.2f} times the dense mask"
    return reason


@torch.compiler.assume_constant_result
def _halo_over_dense(numbers: tuple[int, ...]) -> float:
    spec = spec_of(numbers)
    return cpu_cost("halo", spec) / cpu_cost("sdpa_dense", spec)


def cpu_cost(name: str, spec: AttentionSpec) -> float:
    """Estimated cost of a backend that can serve the pattern on a CPU; `vidgen.kernels.cost` has the unit."""
    if name == "halo":
        plan = plan_boxes(spec)
        assert isinstance(plan, BoxPlan)
        return plan.cost(spec.prefix) + _text_cost(spec)
    if name == "sdpa_reshape" and not (spec.sees_everything or spec.is_linear_causal):
        windows = separate_windows(spec)
        assert not isinstance(windows, str)
        return windows_cost(spec, windows) + _text_cost(spec)
    return dense_cost(spec.num_queries, spec.num_keys, masked=name == "sdpa_dense" and not spec.sees_everything)


def _text_cost(spec: AttentionSpec) -> float:
    seen = spec.num_keys if spec.prefix_mode == "bidir" else spec.prefix
    return dense_cost(spec.query_prefix, seen, masked=False) if spec.query_prefix else 0.0


def report(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, *, return_lse: bool) -> str:
    """The choice in lines of text: what is taken, then every backend with its reason or its estimated cost."""
    order = order_of(q.device)
    chosen = choose(q, k, v, spec, return_lse=return_lse)
    lines = [f"backend {chosen}: the first of {', '.join(order)} that can serve and pays"]
    for name in (*order, *(name for name in BACKENDS if name not in order)):
        reason = passed_over(name, q, k, v, spec, return_lse=return_lse)
        if reason is None:
            reason = "taken" if name == chosen else "could serve"
            reason += ", comes later in the order" if name in order and name != chosen else ""
            reason += "" if name in order else ", only when asked for by name"
            if q.device.type == "cpu" and name in CPU_ORDER and name != "reference":
                share = cpu_cost(name, spec) / dense_cost(spec.num_queries, spec.num_keys, masked=False)
                reason += f"; estimated at {share:.3g} of unmasked dense attention"
        lines.append(f"  {name}: {reason}")
    return "\n".join(lines)
