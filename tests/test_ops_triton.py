"""Do the Triton kernels of the ops compute what their torch forms do, and do they compile for every GPU we promise?"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from needed import needs_triton
from test_triton_compile import OTHER_TRITON, other_triton

HERE = Path(__file__).resolve().parent
# Shared memory that one block may take (bytes), and spills that we accept: a few registers at the widest rows.
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
SPILLED = 64
# One case of each op.
COMMON = ["rope128", "modulation1152", "silu128", "code8"]


def run(*command: str, interpret: bool, path: str = "") -> str:
    """Output of a Python process; Triton reads its switch when a kernel is defined, so it cannot be set in this one.

    `path`: a folder with another Triton, to be found first.
    """
    needs_triton()
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1" if interpret else "0",
        "PYTHONPATH": os.pathsep.join(filter(None, [path, str(HERE.parent)])),
    }
    done = subprocess.run([sys.executable, *command], cwd=HERE.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


def checks(*options: str) -> list[str]:
    return ["-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "triton_ops_checks.py"), *options]


def test_kernels_equal_their_torch_forms_in_the_interpreter():
    run(*checks("-k", "not opcheck and not graph_break"), interpret=True)


@pytest.mark.slow
def test_registered_ops_pass_opcheck_and_compile_without_graph_breaks():
    run(*checks("-k", "opcheck or graph_break"), interpret=True)


@pytest.mark.gpu
def test_kernels_equal_their_torch_forms_on_the_gpu():
    run(*checks("-n", str(min(8, (os.cpu_count() or 2) // 2))), interpret=False)


def compiled(arch: int, *cases: str, path: str = "") -> list[dict]:
    lines = run(str(HERE / "triton_ops_resources.py"), str(arch), *cases, interpret=False, path=path).splitlines()
    return [json.loads(line) for line in lines]


def check_resources(kernels: list[dict]) -> None:
    for kernel in kernels:
        assert kernel["shared"] <= SHARED_MEMORY[kernel["arch"]], kernel
        assert kernel["stack"] <= SPILLED and kernel["local"] == 0, kernel
        assert kernel["atomics"] == [], kernel
        if kernel["kernel"] != "nearest_code_kernel":  # the others are bound by memory: 16 bytes a load
            assert kernel["widest_load"] == 128, kernel


def test_common_sizes_compile_for_a_hopper_gpu_without_one():
    kernels = compiled(90, *COMMON)
    assert len(kernels) == 9
    check_resources(kernels)


@pytest.mark.slow
@pytest.mark.parametrize("arch", list(SHARED_MEMORY))
def test_every_shipped_size_compiles_for_every_architecture(arch):
    check_resources(compiled(arch, "all"))


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "cases"), [(80, ["all"]), (90, ["all"]), (100, COMMON)])
def test_the_kernels_also_compile_with_the_triton_of_older_pytorch(arch, cases, pytestconfig: pytest.Config):
    kernels = compiled(arch, *cases, path=other_triton(pytestconfig))
    assert {kernel["triton"] for kernel in kernels} == {OTHER_TRITON}
    check_resources(kernels)
