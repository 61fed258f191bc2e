"""Does bf16 training on this machine's CPU end with "Illegal instruction"? Found out before a run begins."""

import os
import signal
import subprocess
import sys

import torch

CAP = "ONEDNN_MAX_CPU_ISA"
PROBE = (
    "import torch; x = torch.randn(2, 16, 8, 8).bfloat16().requires_grad_(); "
    "torch.nn.functional.conv2d(x, torch.randn(16, 16, 3, 3).bfloat16(), stride=2).sum().backward()"
)


def check_amx() -> None:
    """Try in a process of its own what kills this one on some virtual machines: oneDNN's AMX kernels.

    They announce AMX and stop at its `tilezero`, in the backward pass of a strided bf16 convolution among others
    (torch 2.14 and 2.15). Other processors, and those whose instructions are capped already, are not tried.

    Raises:
        ValueError: the trial was killed so; the message names the variable to set.
    """
    if CAP in os.environ or not torch.cpu._is_amx_tile_supported():
        return
    if subprocess.run([sys.executable, "-c", PROBE], capture_output=True, check=False).returncode == -signal.SIGILL:
        raise ValueError(
            "bf16 on this CPU ends with 'Illegal instruction': torch uses its AMX unit, which does not work here "
            f"(seen on virtual machines); set {CAP}=AVX512_CORE_FP16 in the environment, or use --precision fp32"
        )
