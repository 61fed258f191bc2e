"""Do the Triton attention kernels compile for every GPU we promise, and within its registers and shared memory?

Ahead of time and without a GPU; tests/triton_resources.py does it in a process of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
# Shared memory that one block may take, bytes.
SHARED_MEMORY = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
# Bytes of registers that a kernel may spill before and after its loops …
SPILLED = 288
# … and the loads and stores of spilled registers that an innermost loop may hold: next to none.
LOOP_SPILLS = {"bf16": 4, "fp16": 8, "fp32": 16}
# What multiplies the matrices in 16 bits.
MULTIPLIER = {80: "mma", 86: "mma", 90: "wgmma", 100: "tcgen05"}
OTHER_TRITON = "3.6.0"  # beside torch 2.11; allocates registers a little worse
OTHER_SPILLED = 288
OTHER_LOOP_SPILLS = {"everything": 64}  # a pattern that nobody asks for


def resources(*cases: str, path: str = "") -> list[dict]:
    pytest.importorskip("triton")
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, [path, str(HERE.parent)])),
    }
    command = [sys.executable, str(HERE / "triton_resources.py"), *cases]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(kernels: list[dict]) -> None:
    for kernel in kernels:
        assert kernel["shared"] <= SHARED_MEMORY[kernel["arch"]], kernel
        assert kernel["stack"] <= SPILLED and kernel["local"] == 0, kernel
        assert kernel["loop_spills"] <= LOOP_SPILLS[kernel["dtype"]], kernel
        if kernel["kernel"] != "delta" and kernel["dtype"] != "fp32":
            assert kernel[MULTIPLIER[kernel["arch"]]] > 0, kernel
            assert (kernel["tma"] > 0) == (kernel["arch"] >= 90), kernel


def test_the_hopper_kernel_uses_its_tensor_cores_and_memory_engine_without_spills() -> None:
    (kernel,) = resources("90-128-bf16-sliding_tile-forward")
    check([kernel])
    assert kernel["stack"] == 0


@pytest.mark.slow
def test_the_backward_kernels_of_hopper_do_so_too() -> None:
    kernels = resources("90-128-bf16-sliding_tile")
    assert [kernel["kernel"] for kernel in kernels] == ["forward", "delta", "backward_keys", "backward_queries"]
    check(kernels)
    assert kernels[3]["stack"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 86, 90, 100])
def test_every_shipped_configuration_compiles_within_the_limits_of_its_chip(arch: int) -> None:
    """32 and 96 stand beside 128 and 64; float16 and bfloat16 share a configuration, and fp32 is one for all chips."""
    cases = ["128-bf16-frame_causal", "96-fp16-neighborhood-forward", "64-bf16-neighborhood", "32-bf16-frame_causal"]
    if arch in (80, 90):
        cases += ["128-fp32-frame_causal", "64-fp32-frame_causal", "32-fp32-frame_causal-forward"]
    check(resources(*(f"{arch}-{case}" for case in cases)))


@pytest.mark.slow
def test_the_kernels_also_compile_with_the_triton_of_older_pytorch(pytestconfig: pytest.Config) -> None:
    kernels = resources(
        "90-128-bf16-sliding_tile", "80-64-bf16-frame_causal", "90-96-fp16-everything", path=other_triton(pytestconfig)
    )
    assert {kernel["triton"] for kernel in kernels} == {OTHER_TRITON}
    for kernel in kernels:
        assert kernel["shared"] <= SHARED_MEMORY[kernel["arch"]], kernel
        assert kernel["stack"] <= OTHER_SPILLED and kernel["local"] == 0, kernel
        assert kernel["loop_spills"] <= OTHER_LOOP_SPILLS.get(kernel["case"].split("-")[3], 8), kernel


def other_triton(config: pytest.Config) -> str:
    """A folder that holds the other version, installed once beside pytest's cache."""
    folder = config.cache.mkdir(f"triton-{OTHER_TRITON}")  # pyright: ignore[reportOptionalMemberAccess]
    if not (folder / "triton" / "__init__.py").exists():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", f"triton=={OTHER_TRITON}"]
        done = subprocess.run([*command, "--target", str(folder)], capture_output=True, text=True)
        if done.returncode != 0:
            reason = f"triton {OTHER_TRITON} could not be installed: {done.stderr.strip()[-500:]}"
            if os.environ.get("CI", "").lower() == "true":
                pytest.fail(reason)
            pytest.skip(reason)
    return str(folder)
