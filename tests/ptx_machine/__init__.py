"""A machine that executes PTX on the CPU, so that a CUDA kernel's arithmetic can be proven where there is no GPU.

It runs what NVRTC (or Triton) really emits, warp by warp in lockstep on numpy arrays of 32 lanes, divergence included:
fragment layouts of `mma.sync` and `wgmma`, shared-memory descriptors and swizzles, tensor maps, asynchronous copies,
mbarriers and named barriers, all after the PTX ISA manual. Asynchronous work happens as early or as late as the manual
allows, and warps take turns in random order: a kernel that does not wait for what it needs gives wrong results.

Order of the files: program, memory, machine, operands, then arithmetic, asynchronous, tensor_cores, then instructions.
"""

from ptx_machine.instructions import compile_instruction
from ptx_machine.machine import Machine, TensorMap, Timing
from ptx_machine.program import parse

__all__ = ["Machine", "TensorMap", "load"]


def load(ptx: str, *, timing: Timing = "late", seed: int = 0) -> Machine:
    """A machine with the one kernel of a PTX module in it."""
    program = parse(ptx)
    code = [compile_instruction(program, instruction) for instruction in program.instructions]
    return Machine(program, code, timing=timing, seed=seed)
