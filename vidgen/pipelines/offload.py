"""Components that wait elsewhere until a pipeline needs them (diffusers' `enable_model_cpu_offload`)."""

from torch import nn


def bring_onto_device(module: nn.Module) -> None:
    """Run the offload hook of a component that is used next: diffusers runs it before `forward` alone."""
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(module)
