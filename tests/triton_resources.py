"""Compile the Triton attention kernels ahead of time, without a GPU, and print what they need, one JSON a line.

`python tests/triton_resources.py ARCH-HEAD-DTYPE-PATTERN[-KERNEL] …` or `… ARCH-atomic`. Kernels are compiled as they
would be launched: the launching functions run on meta tensors, and what they hand to Triton is recorded instead of
run. A program of its own, because a Triton of another version is compared through PYTHONPATH, and because kernels can
be compiled only where TRITON_INTERPRET is not set.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from vidgen.kernels import AttentionSpec
from vidgen.kernels.triton import launch
from vidgen.kernels.triton.configs import CONFIGS, padded_head

NAMES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int32: "i32",
    torch.int64: "i64",
}
DTYPES = {name: dtype for dtype, name in NAMES.items()}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
KERNELS = {
    "forward": "attention_forward",
    "delta": "attention_delta",
    "backward_keys": "attention_backward_keys",
    "backward_queries": "attention_backward_queries",
}
PATTERNS = {
    "frame_causal": AttentionSpec.frame_causal((21, 30, 52), prefix=77),
    "sliding_tile": AttentionSpec.sliding_tile((30, 48, 80), (18, 24, 24), tile=(6, 8, 8)),
    "neighborhood": AttentionSpec.neighborhood((16, 16, 16), (8, 9, 9), causal=(True, False, False)),
    # nearly every clause of the rule at once: nobody asks for it, it bounds what the others need
    "everything": AttentionSpec(
        grid=(9, 30, 52),
        window=((4, 0), (3, 3), (4, 0)),
        granularity=(2, 1, 2),
        dilation=(1, 2, 1),
        shift=(0, 0, 1),
        causal=(True, False, True),
        causal_group=2,
        prefix=77,
        prefix_mode="causal",
        sink_frames=1,
        q_frame_offset=2,
        kv_frames=11,
    ),
}


@triton.jit
def adds_in_any_order(values, total):
    """What no shipped kernel does, compiled as the case `ARCH-atomic` to show that it would be seen."""
    tl.atomic_add(total, tl.load(values + tl.program_id(0)))


Launch = tuple[Any, tuple[Any, ...], dict[str, Any]]


def recorded(run: Callable[[], Any]) -> list[Launch]:
    """What `run` would hand to Triton: kernel, arguments, keywords."""
    calls: list[Launch] = []
    real = triton.JITFunction.__getitem__
    triton.JITFunction.__getitem__ = lambda kernel, grid: (
        lambda *args, **keywords: calls.append((kernel, args, keywords))
    )
    run()
    triton.JITFunction.__getitem__ = real
    return calls


def compile_launch(kernel: Any, args: tuple[Any, ...], keywords: dict[str, Any], arch: int) -> Any:
    """The kernel compiled for these arguments as Triton would specialise it at its launch."""
    constants = {(kernel.arg_names.index(name),): value for name, value in keywords.items() if name not in OPTIONS}
    attributes: dict[tuple[int, ...], list] = {}

    def type_of(value: Any, *path: int) -> Any:
        if isinstance(value, tuple):
            return tuple(type_of(item, *path, i) for i, item in enumerate(value))
        if isinstance(value, TensorDescriptor):
            return f"tensordesc<{NAMES[value.base.dtype]}{value.block_shape}>"
        if isinstance(value, Tensor):
            attributes[path] = [["tt.divisibility", 16]]
            return f"*{NAMES[value.dtype]}"
        if isinstance(value, float):
            return "fp32"
        if value is None or value == 1:
            constants[path] = value
            return "constexpr"
        if value % 16 == 0:
            attributes[path] = [["tt.divisibility", 16]]
        return "i32" if value < 2**31 else "i64"

    signature = {
        name: "constexpr" if (number,) in constants else type_of(args[number], number)
        for number, name in enumerate(kernel.arg_names)
    }
    options = {name: keywords[name] for name in OPTIONS if name in keywords}
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def launches(arch: int, head: int, dtype: str, pattern: str) -> dict[str, Launch]:
    """Everything that one forward and backward pass launches, by kernel."""
    spec, real = PATTERNS[pattern], DTYPES[dtype]
    config = CONFIGS[arch, padded_head(head), real.itemsize]
    q = torch.empty(1, 24, spec.num_queries, head, dtype=real, device="meta")
    k = torch.empty(1, 12, spec.num_keys, head, dtype=real, device="meta")

    def run() -> None:
        output, lse = launch.forward(q, k, k, spec, scale=0.1, config=config)
        launch.backward(q, k, k, output, lse, output, lse, spec, scale=0.1, config=config)

    by_name = {call[0].__name__: call for call in recorded(run)}
    return {name: by_name[kernel] for name, kernel in KERNELS.items()}


def report(compiled: Any) -> dict[str, Any]:
    """Resources, spills inside loops, atomics, and the instructions that make a kernel fast."""
    ptx, code = compiled.asm["ptx"], instructions(compiled.asm["cubin"])
    return {
        "triton": triton.__version__,
        "shared": compiled.metadata.shared,
        **resources(compiled.asm["cubin"]),
        "loop_spills": loop_spills(code),
        "atomics": atomics(code),
        "wgmma": ptx.count("wgmma.mma_async"),
        "mma": ptx.count("mma.sync"),
        "tcgen05": ptx.count("tcgen05.mma"),
        "tma": ptx.count("cp.async.bulk.tensor"),
    }


def resources(cubin: bytes) -> dict[str, int]:
    """Registers, stack and local memory (bytes) of the one kernel in a cubin."""
    text = _disassembler("cuobjdump", "--dump-resource-usage", cubin)
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return {"registers": found["REG"], "stack": found["STACK"], "local": found["LOCAL"]}


def instructions(cubin: bytes) -> str:
    """What the chip executes (SASS), one instruction a line."""
    return _disassembler("nvdisasm", "-c", cubin)


def atomics(code: str) -> list[str]:
    """Instructions that add to memory in an order of their own: atomics and reductions into shared or global memory.

    Looked for in the SASS, because "shared.global" in PTX looks like one. Not counted: REDUX, which adds up the lanes
    of a warp, and the bits in shared memory by which Blackwell shares out its tensor memory (ATOMS.OR, ATOMS.AND).
    """
    return sorted(set(re.findall(r"\b(?:ATOMG?|ATOMS(?!\.(?:AND|OR)\b)|RED[GS]?|UTMAREDG|UBLKRED)\b[.\w]*", code)))


def loop_spills(code: str) -> int:
    """Most loads and stores of spilled registers in one innermost loop that multiplies matrices."""
    lines = code.splitlines()
    labels = {line.strip()[:-1]: i for i, line in enumerate(lines) if re.match(r"\.L_x_\d+:", line.strip())}
    jumps = [(i, re.search(r"BRA.*`\((\.L_x_\d+)\)", line)) for i, line in enumerate(lines)]
    loops = [(labels[jump[1]], i) for i, jump in jumps if jump and labels.get(jump[1], i) < i]
    innermost = [(a, b) for a, b in loops if not any(a < other and end < b for other, end in loops)]
    counts = [0]
    for first, last in innermost:
        body = "\n".join(lines[first:last])
        if re.search(r"MMA|FFMA", body):
            counts.append(len(re.findall(r"\b(?:LDL|STL)\b", body)))
    return max(counts)


def _disassembler(tool: str, option: str, cubin: bytes) -> str:
    """What one of the programs that Triton brings says of a cubin."""
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([program, option, file.name], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    for case in sys.argv[1:]:
        if case.endswith("-atomic"):
            arch, dtype, names = case.split("-")[0], "fp32", []
            one = torch.empty(1, device="meta")
            calls = {"atomic": recorded(lambda: adds_in_any_order[(1,)](one, one))[0]}  # noqa: B023
        else:
            arch, head, dtype, pattern, *names = case.split("-")
            calls = launches(int(arch), int(head), dtype, pattern)
        for name in names or calls:
            found = report(compile_launch(*calls[name], arch=int(arch)))
            print(json.dumps({"case": case, "kernel": name, "arch": int(arch), "dtype": dtype, **found}), flush=True)
