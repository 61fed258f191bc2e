"""Is the PTX machine right? It executes what another compiler emits for kernels that are known to work on GPUs."""

import os
import struct

import numpy as np
import pytest
import torch
from needed import IN_CI
from ptx_machine import TensorMap, load
from ptx_machine.arithmetic import to_bf16
from torch import Tensor

if not IN_CI:
    pytest.importorskip("triton", reason="Triton's compiler is the other compiler")

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

BLOCK, KEYS = 64, 192


@triton.jit
def products_through_descriptors(q, k, v, out, count, BLOCK: tl.constexpr, HEAD: tl.constexpr):
    """out = (q kᵀ) v over all blocks of keys: WGMMA on operands that TMA brings."""
    queries = q.load([0, 0])
    sums = tl.zeros((BLOCK, HEAD), tl.float32)
    for start in range(0, count, BLOCK):
        scores = tl.dot(queries, k.load([start, 0]).T)
        sums = tl.dot(scores.to(tl.bfloat16), v.load([start, 0]), sums)
    tl.store(out + tl.arange(0, BLOCK)[:, None] * HEAD + tl.arange(0, HEAD)[None, :], sums)


@triton.jit
def products_through_pointers(q, k, v, out, count, BLOCK: tl.constexpr, HEAD: tl.constexpr):
    """The same with cp.async, ldmatrix and mma.sync."""
    places = tl.arange(0, BLOCK)[:, None] * HEAD + tl.arange(0, HEAD)[None, :]
    queries = tl.load(q + places)
    sums = tl.zeros((BLOCK, HEAD), tl.float32)
    for start in range(0, count, BLOCK):
        scores = tl.dot(queries, tl.load(k + places + start * HEAD).T)
        sums = tl.dot(scores.to(tl.bfloat16), tl.load(v + places + start * HEAD), sums)
    tl.store(out + places, sums)


def compile_ptx(architecture: int, head_size: int) -> str:
    hopper = architecture == 90
    tensor = f"tensordesc<bf16[{BLOCK}, {head_size}]>" if hopper else "*bf16"
    signature = {"q": tensor, "k": tensor, "v": tensor, "out": "*fp32", "count": "i32"}
    source = ASTSource(
        products_through_descriptors if hopper else products_through_pointers,
        {**signature, "BLOCK": "constexpr", "HEAD": "constexpr"},
        constexprs={(5,): BLOCK, (6,): head_size},
        attrs={(i,): [["tt.divisibility", 16]] for i in ((3,) if hopper else range(4))},
    )
    options = {"num_warps": 4, "num_stages": 2, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options).asm["ptx"]


def arguments(tensors: list[Tensor], output: Tensor, *, descriptors: bool) -> tuple[list[bytes], dict]:
    """Triton's calling convention: a descriptor is a tensor map, sizes and strides; two scratch pointers come last."""
    parameters, maps = [], {}
    for tensor in tensors:
        rows, channels = tensor.shape
        if descriptors:
            box = (64, BLOCK)  # 128 bytes of channels
            maps[len(parameters), 0] = TensorMap(tensor.data_ptr(), (channels, rows), (channels * 2,), box)
            parameters += [bytes(128), *map(struct.Struct("<i").pack, (rows, channels))]
            parameters += map(struct.Struct("<q").pack, (channels, 1))
        else:
            parameters.append(struct.pack("<Q", tensor.data_ptr()))
    return [*parameters, struct.pack("<Q", output.data_ptr()), struct.pack("<i", KEYS), bytes(8), bytes(8)], maps


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton interprets here instead of compiling")
@pytest.mark.parametrize("timing", ["early", "late"])
@pytest.mark.parametrize(("architecture", "instruction"), [(80, "mma"), (90, "wgmma")])
def test_it_executes_tensor_core_code_of_another_compiler(architecture: int, instruction: str, timing: str):
    head_size = 128  # two panels of the swizzle, so that every field of a matrix descriptor counts
    generator = torch.Generator().manual_seed(0)
    shapes = [(BLOCK, head_size), (KEYS, head_size), (KEYS, head_size)]
    q, k, v = (torch.randn(shape, generator=generator).bfloat16() for shape in shapes)
    output = torch.full((BLOCK, head_size), torch.nan)
    machine = load(compile_ptx(architecture, head_size), timing=timing)  # type: ignore[arg-type]
    for tensor in (q, k, v, output):
        machine.memory.add_process_memory(tensor.data_ptr(), tensor.numel() * tensor.element_size())
    parameters, maps = arguments([q, k, v], output, descriptors=architecture == 90)
    machine.launch((1, 1, 1), 128, parameters=parameters, tensor_maps=maps, dynamic_shared=160 * 1024)
    expected = (q.float() @ k.float().T).bfloat16().float() @ v.float()
    torch.testing.assert_close(output, expected, atol=1e-3, rtol=1e-4)
    assert machine.counts[instruction] > 100


def test_rounding_to_bf16_is_pytorchs():
    bits = np.random.default_rng(0).integers(0, 2**32, 4096, dtype=np.uint32)
    values = bits.view(np.float32)
    expected = torch.from_numpy(values).bfloat16()
    rounded = torch.from_numpy(to_bf16(values).view(np.int16)).view(torch.bfloat16)
    assert torch.equal(rounded.isnan(), expected.isnan())
    assert torch.equal(rounded.nan_to_num(0), expected.nan_to_num(0))


ADD_ONE_TO_ODD_LANES = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry kernel(.param .u64 out)
{
    .reg .pred %p<3>;
    .reg .b32 %r<5>;
    .reg .b64 %rd<4>;
    mov.u32 %r1, %tid.x;
    and.b32 %r2, %r1, 1;
    setp.eq.s32 %p1, %r2, 0;
    mov.u32 %r3, %r1;
    @%p1 bra $even;
    mov.u32 %r4, %r1;
$again:
    add.s32 %r3, %r3, 1;
    sub.s32 %r4, %r4, 1;
    setp.gt.s32 %p2, %r4, 0;
    @%p2 bra $again;
$even:
    ld.param.u64 %rd1, [out];
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd3, %rd1, %rd2;
    st.global.u32 [%rd3], %r3;
    ret;
}
"""


def test_lanes_that_diverge_run_apart_and_meet_again():
    out = np.zeros(64, np.uint32)
    machine = load(ADD_ONE_TO_ODD_LANES)
    machine.memory.add_process_memory(out.ctypes.data, out.nbytes)
    machine.launch((1, 1, 1), 64, parameters=[struct.pack("<Q", out.ctypes.data)])
    thread = np.arange(64)
    assert (out == np.where(thread % 2, 2 * thread, thread)).all()
    assert machine.counts["st"] == 2  # once for each whole warp


def test_memory_that_no_tensor_owns_is_out_of_bounds():
    out = np.zeros(63, np.uint32)
    machine = load(ADD_ONE_TO_ODD_LANES)
    machine.memory.add_process_memory(out.ctypes.data, out.nbytes)
    with pytest.raises(AssertionError, match="global access outside of memory"):
        machine.launch((1, 1, 1), 64, parameters=[struct.pack("<Q", out.ctypes.data)])
