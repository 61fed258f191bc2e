"""What a CUDA attention kernel is called with, and the call through the CUDA driver.

`prepare` is plain Python and works on tensors anywhere, so that tests can run a kernel without a GPU; only `submit`
touches the driver.
"""

import ctypes
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vidgen.kernels.cuda.compile import HOPPER, Variant, compile_cubin
from vidgen.kernels.cuda.plan import BLOCK, Plan, Side, make_plan
from vidgen.kernels.spec import AttentionSpec

KERNEL = b"attention"
TENSOR_MAP_BYTES = 128
TENSOR_MAP_ALIGNMENT = 64
DRIVER_VERSION = 12000  # tensor maps came with CUDA 12.0
PANEL_CHANNELS = 64  # channels in the 128 bytes that TMA swizzles


class Strides(ctypes.Structure):
    """As in problem.cuh."""

    _fields_ = (("batch", ctypes.c_int64), ("head", ctypes.c_int64), ("token", ctypes.c_int32))


class Problem(ctypes.Structure):
    """As in problem.cuh, member by member."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "output", "lse")),
        *((f"{name}_strides", Strides) for name in "qkv"),
        *((name, ctypes.c_void_p) for name in ("query_tokens", "key_tokens", "query_origins", "key_origins")),
        *((name, ctypes.c_void_p) for name in ("schedule", "first_entry", "entries", "masks")),
        *((name, ctypes.c_int32) for name in ("heads", "heads_per_group", "queries", "tile_slots")),
        ("scale", ctypes.c_float),
    )


@dataclass(frozen=True)
class TensorMap:
    """The arguments of `cuTensorMapEncodeTiled` for elements of 2 bytes, fastest dimension first; strides in bytes."""

    address: int
    dimensions: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]


@dataclass(frozen=True)
class Launch:
    """A kernel call, complete but for the stream."""

    variant: Variant
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int
    problem: Problem
    tensor_maps: tuple[TensorMap, ...]
    """Of queries, keys and values, each of the grid and of the prefix; Hopper only."""


def prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,
    lse: Tensor,
    spec: AttentionSpec,
    *,
    scale: float,
    architecture: str,
) -> Launch:
    """The call that computes `output` and `lse` (contiguous) from `readable` tensors."""
    plan = make_plan(spec, q.device)
    batch, heads, _, head_size = q.shape
    if architecture == HOPPER:
        stages = 4 if head_size == 64 else 2
        shared_bytes = (1 + 2 * stages) * BLOCK * head_size * 2 + 1024  # to round the first address up
        threads, maps = 384, _tensor_maps(q, k, v, plan)
    else:
        shared_bytes = 2 * BLOCK * head_size * 2
        threads, maps = 128, ()
    return Launch(
        variant=Variant(architecture=architecture, head_size=head_size, dtype=q.dtype),
        grid=(len(plan.schedule), heads, batch),
        threads=threads,
        shared_bytes=shared_bytes,
        problem=_problem(q, k, v, output, lse, plan, scale),
        tensor_maps=maps,
    )


def readable(tensor: Tensor) -> Tensor:
    """The tensor, or a copy where its memory is not what the kernels read.

    They want adjacent channels, rows at multiples of 16 bytes, and the heads of all samples at one distance from each
    other, so that TMA can take them as one dimension.
    """
    batch, heads, _, _ = tensor.shape
    by_sample, by_head, by_token, by_channel = tensor.stride()
    aligned = tensor.data_ptr() % 16 == 0 and not any(stride % 8 for stride in (by_sample, by_head, by_token))
    folds = batch == 1 or heads == 1 or by_sample == heads * by_head
    if by_channel == 1 and aligned and folds:
        return tensor
    # not .contiguous(), which keeps wrong addresses, and odd strides of axes of length 1
    return tensor.clone(memory_format=torch.contiguous_format)


def submit(launch: Launch, device: torch.device) -> None:
    """Queues the call on the device's current stream. RuntimeError: what the driver says."""
    from cuda.bindings import driver

    with torch.cuda.device(device):
        kernel = _loaded(launch.variant, launch.shared_bytes, device)
        # the driver copies the arguments before it returns; until then `maps` and `pointers` have to live
        maps = (ctypes.c_char * (TENSOR_MAP_BYTES * len(launch.tensor_maps) + TENSOR_MAP_ALIGNMENT))()
        first_map = -(-ctypes.addressof(maps) // TENSOR_MAP_ALIGNMENT) * TENSOR_MAP_ALIGNMENT
        for i, tensor_map in enumerate(launch.tensor_maps):
            _encode(tensor_map, launch.variant.dtype, first_map + i * TENSOR_MAP_BYTES)
        pointers = (ctypes.c_void_p * 2)(ctypes.addressof(launch.problem), first_map)
        stream = driver.CUstream(torch.cuda.current_stream(device).cuda_stream)
        block = (launch.threads, 1, 1)
        arguments = (*launch.grid, *block, launch.shared_bytes, stream, ctypes.addressof(pointers), 0)
        _call(driver.cuLaunchKernel, kernel, *arguments)


def _problem(q: Tensor, k: Tensor, v: Tensor, output: Tensor, lse: Tensor, plan: Plan, scale: float) -> Problem:
    tables = (plan.queries.tokens, plan.keys.tokens, plan.queries.origins, plan.keys.origins)
    lists = (plan.schedule, plan.first_entry, plan.entries, plan.masks)
    return Problem(
        *(tensor.data_ptr() for tensor in (q, k, v, output, lse)),
        *(Strides(*tensor.stride()[:3]) for tensor in (q, k, v)),
        *(tensor.data_ptr() for tensor in (*tables, *lists)),
        q.shape[1],
        q.shape[1] // k.shape[1],
        q.shape[2],
        plan.queries.tiling.capacity,
        scale,
    )


def _tensor_maps(q: Tensor, k: Tensor, v: Tensor, plan: Plan) -> tuple[TensorMap, ...]:
    assert plan.queries.tiling.capacity == plan.keys.tiling.capacity  # the kernel expects one number of bytes
    sides = ((q, plan.queries), (k, plan.keys), (v, plan.keys))
    return tuple(part(tensor, side) for tensor, side in sides for part in (_grid_map, _prefix_map))


def _grid_map(tensor: Tensor, side: Side) -> TensorMap:
    """Tiles of (column, row, frame); raster runs are tiles of one long row."""
    frames, rows, columns = side.grid
    if side.tiling.tile is None:
        frames, rows, columns = 1, 1, frames * rows * columns
    tile = side.tiling.tile or (1, 1, side.tiling.capacity)
    start = tensor.data_ptr() + side.prefix * tensor.stride(2) * 2
    return _map(tensor, start, (columns, rows, frames), (tile[2], tile[1], tile[0]))


def _prefix_map(tensor: Tensor, side: Side) -> TensorMap:
    # without a prefix the map is never used, but it has to be a valid one
    return _map(tensor, tensor.data_ptr(), (max(side.prefix, 1), 1, 1), (side.tiling.capacity, 1, 1))


def _map(tensor: Tensor, start: int, tokens: tuple[int, int, int], tile: tuple[int, int, int]) -> TensorMap:
    batch, heads, _, channels = tensor.shape
    by_sample, by_head, by_token = tensor.stride()[:3]
    columns, rows, _ = tokens
    steps = (by_token, by_token * columns, by_token * columns * rows, by_sample if heads == 1 else by_head)
    return TensorMap(
        address=start,
        dimensions=(channels, *tokens, batch * heads),
        strides=tuple(step * 2 for step in steps),
        box=(PANEL_CHANNELS, *tile, 1),
    )


def _encode(tensor_map: TensorMap, dtype: torch.dtype, target: int) -> None:
    """Has the driver write a CUtensorMap to the address `target`."""
    from cuda.bindings import driver

    rank = len(tensor_map.dimensions)
    kinds = driver.CUtensorMapDataType
    is_bf16 = dtype == torch.bfloat16
    status = _encoder()(
        target,
        kinds.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 if is_bf16 else kinds.CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        rank,
        tensor_map.address,
        (ctypes.c_uint64 * rank)(*tensor_map.dimensions),
        (ctypes.c_uint64 * (rank - 1))(*tensor_map.strides),
        (ctypes.c_uint32 * rank)(*tensor_map.box),
        (ctypes.c_uint32 * rank)(*[1] * rank),
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,  # zeros
    )
    if status != 0:
        raise RuntimeError(f"cuTensorMapEncodeTiled failed: {driver.CUresult(status).name} for {tensor_map}")


@lru_cache(maxsize=1)
def _encoder() -> Any:
    """`cuTensorMapEncodeTiled` itself: that of cuda.bindings writes to an object of its own, which is not aligned."""
    from cuda.bindings import driver

    flags = driver.CUdriverProcAddress_flags.CU_GET_PROC_ADDRESS_DEFAULT
    address, _ = _call(driver.cuGetProcAddress, b"cuTensorMapEncodeTiled", DRIVER_VERSION, flags)
    number, pointer = ctypes.c_int, ctypes.c_void_p
    kinds = (pointer, number, ctypes.c_uint32, *[pointer] * 5, *[number] * 4)
    return ctypes.CFUNCTYPE(number, *kinds)(address)


@lru_cache(maxsize=64)
def _loaded(variant: Variant, shared_bytes: int, device: torch.device) -> Any:
    """The kernel's handle in the current context, which is the device's; modules stay loaded."""
    from cuda.bindings import driver

    module = _call(driver.cuModuleLoadData, compile_cubin(variant))
    kernel = _call(driver.cuModuleGetFunction, module, KERNEL)
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    _call(driver.cuFuncSetAttribute, kernel, attribute, shared_bytes)
    return kernel


def _call(function: Any, *arguments: Any) -> Any:
    """The results of a driver call without its status, which is checked."""
    from cuda.bindings import driver

    status, *results = function(*arguments)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"{function.__name__} failed: {status.name}")
    return results[0] if len(results) == 1 else tuple(results)
