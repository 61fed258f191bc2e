"""Do the Triton attention kernels compile for every GPU we promise, and within its registers and shared memory?

Ahead of time and without a GPU; tests/triton_resources.py does it in a process of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from needed import absent, needs_triton

from vidgen.kernels.backends.triton import HEAD_SIZES
from vidgen.kernels.triton.configs import CONFIGS, padded_head

HERE = Path(__file__).resolve().parent
# Shared memory that one block may take, bytes.
SHARED_MEMORY = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
# What multiplies the matrices in 16 bits.
MULTIPLIER = {80: "mma", 86: "mma", 90: "wgmma", 100: "tcgen05"}
OTHER_TRITON = "3.6.0"  # beside torch 2.11; allocates registers a little worse

# The slow tier compiles all kernels of these for each architecture. float16 and bfloat16 share a configuration and the
# instructions, so that each head size stands for both in one of them; fp32 has one configuration for all chips.
IN_16_BITS = ["32-bf16-frame_causal", "64-bf16-neighborhood", "96-fp16-neighborhood", "128-bf16-frame_causal"]
IN_FP32 = [f"{head}-fp32-frame_causal" for head in HEAD_SIZES]

# Spilled registers that are allowed: bytes, and loads and stores in an innermost loop. The larger of what was measured
# with Triton 3.8 and 3.9, and below with the other one. All other kernels spill nothing.
SPILLED = {
    "80-32-bf16-backward_keys": (16, 0),
    "80-64-fp32-backward_keys": (16, 0),
    "80-96-fp16-backward_queries": (8, 0),
    "80-96-fp32-forward": (16, 0),
    "86-64-bf16-forward": (16, 0),
    "86-64-bf16-backward_keys": (8, 0),
    "90-32-fp32-backward_keys": (8, 1),
    "90-96-fp16-backward_keys": (80, 0),
    "90-96-fp32-forward": (128, 48),
    "90-128-bf16-backward_keys": (120, 11),
    "100-96-fp32-forward": (136, 46),
}
OTHER_SPILLED = {
    "80-64-bf16-backward_keys": (40, 0),
    "90-96-fp16-forward": (80, 7),  # the pattern with nearly every clause of the rule, which nobody asks for
    "90-96-fp16-backward_keys": (264, 55),  # likewise
    "90-128-bf16-backward_keys": (120, 5),
}


def resources(*cases: str, path: str = "") -> list[dict]:
    needs_triton()
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, [path, str(HERE.parent)])),
    }
    command = [sys.executable, str(HERE / "triton_resources.py"), *cases]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(kernels: list[dict], spilled: dict[str, tuple[int, int]]) -> None:
    for kernel in kernels:
        limits = SHARED_MEMORY.values() if kernel["dtype"] == "fp32" else [SHARED_MEMORY[kernel["arch"]]]
        assert kernel["shared"] <= min(limits), kernel
        architecture, head, dtype, *_ = kernel["case"].split("-")
        stack, in_loop = spilled.get(f"{architecture}-{head}-{dtype}-{kernel['kernel']}", (0, 0))
        assert kernel["stack"] <= stack and kernel["loop_spills"] <= in_loop and kernel["local"] == 0, kernel
        assert kernel["atomics"] == [], kernel  # sums in one order: the same bits in every run
        if kernel["kernel"] != "delta" and kernel["dtype"] != "fp32":
            assert kernel[MULTIPLIER[kernel["arch"]]] > 0, kernel
            assert (kernel["tma"] > 0) == (kernel["arch"] >= 90), kernel


def test_the_hopper_kernel_uses_its_tensor_cores_and_memory_engine_without_spills() -> None:
    """What the default tier compiles; all the rest is slow."""
    check(resources("90-128-bf16-sliding_tile-forward"), {})


def test_the_cases_hold_every_head_size_and_every_row_of_the_table() -> None:
    cases = [case.split("-") for case in IN_16_BITS + IN_FP32]
    assert [int(head) for head, *_ in cases] == [*HEAD_SIZES, *HEAD_SIZES]
    rows = {(padded_head(int(head)), 4 if dtype == "fp32" else 2) for head, dtype, _ in cases}
    assert {(arch, *row) for arch in SHARED_MEMORY for row in rows} == set(CONFIGS)
    assert all(config == CONFIGS[80, head, 4] for (_, head, size), config in CONFIGS.items() if size == 4)


@pytest.mark.slow
def test_the_backward_kernels_of_hopper_do_so_too() -> None:
    kernels = resources("90-128-bf16-sliding_tile")
    assert [kernel["kernel"] for kernel in kernels] == ["forward", "delta", "backward_keys", "backward_queries"]
    check(kernels, SPILLED)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 86, 90, 100])
def test_every_shipped_configuration_compiles_within_the_limits_of_its_chip(arch: int) -> None:
    """All four kernels of every case; fp32 for 86 is what it is for 80."""
    cases = IN_16_BITS if arch == 86 else [*IN_16_BITS, *IN_FP32]
    check(resources(*(f"{arch}-{case}" for case in cases)), SPILLED)


@pytest.mark.slow
def test_an_atomic_addition_would_be_seen() -> None:
    assert all("ADD" in kernel["atomics"][0] for kernel in resources(*(f"{arch}-atomic" for arch in SHARED_MEMORY)))


@pytest.mark.slow
def test_the_kernels_also_compile_with_the_triton_of_older_pytorch(pytestconfig: pytest.Config) -> None:
    """Some of the cases above, two for each architecture, and the pattern with nearly every clause of the rule."""
    cases = [
        "80-64-bf16-frame_causal",
        "90-128-bf16-sliding_tile",
        "90-96-fp16-everything",
        "90-64-fp32-frame_causal",
        "100-128-bf16-frame_causal",
        "100-96-fp16-neighborhood",
    ]
    kernels = resources(*cases, path=other_triton(pytestconfig))
    assert {kernel["triton"] for kernel in kernels} == {OTHER_TRITON}
    check(kernels, OTHER_SPILLED)


def other_triton(config: pytest.Config) -> str:
    """A folder that holds the other version, installed once beside pytest's cache."""
    folder = config.cache.mkdir(f"triton-{OTHER_TRITON}")  # pyright: ignore[reportOptionalMemberAccess]
    if not (folder / "triton" / "__init__.py").exists():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", f"triton=={OTHER_TRITON}"]
        done = subprocess.run([*command, "--target", str(folder)], capture_output=True, text=True)
        if done.returncode != 0:
            absent(f"triton {OTHER_TRITON} could not be installed: {done.stderr.strip()[-500:]}")
    return str(folder)
