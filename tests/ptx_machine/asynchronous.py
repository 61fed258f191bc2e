"""Copies that run in the background and the barriers that tell when they are done: cp.async, TMA, mbarriers."""

from typing import Any

import numpy as np

from ptx_machine.machine import Mbarrier, TensorMap, Warp
from ptx_machine.memory import Memory
from ptx_machine.operands import Handler, address_reader, reader, writer
from ptx_machine.program import Instruction, Program


def copy(program: Program, instruction: Instruction) -> Handler:
    """`cp.async` in its three forms, and `cp.async.bulk.tensor`."""

    opcode, operands = instruction.opcode, instruction.operands
    if "bulk" in opcode:
        return tensor_copy(program, instruction)
    if opcode[2] == "commit_group":
        return lambda warp, active: warp.copies.append([])
    if opcode[2] == "wait_all":
        return lambda warp, active: (warp.copies.append([]), warp.finish(warp.copies, 0))
    if opcode[2] == "wait_group":
        pending = reader(program, operands[0], "uint32")
        return lambda warp, active: warp.finish(warp.copies, int(pending(warp)[0]))
    return plain_copy(program, instruction)


def plain_copy(program: Program, instruction: Instruction) -> Handler:
    """`cp.async.c{a,g}.shared.global [to], [from], size[, bytes to copy, the rest zeros]`."""

    operands = instruction.operands
    target, source = address_reader(program, operands[0]), address_reader(program, operands[1])
    size = int(str(operands[2]), 0)
    real = reader(program, operands[3], "uint32") if len(operands) > 3 else None
    places = np.arange(size, dtype=np.uint64)

    def run(warp: Warp, active: np.ndarray) -> None:
        to, origin = target(warp)[active], source(warp)[active]
        count = (np.full(len(to), size) if real is None else real(warp)[active]).astype(np.uint64)
        assert not (to % np.uint64(size)).any() and not (origin % np.uint64(size)).any(), "cp.async is misaligned"
        wanted = places[None, :] < count[:, None]

        def work() -> None:
            values = np.zeros(wanted.shape, np.uint8)
            if wanted.any():
                values[wanted] = warp.cta.machine.memory.load((origin[:, None] + places)[wanted], "uint8")
            warp.cta.shared.store(to[:, None] + places, values)

        if warp.cta.machine.timing == "early":
            work()
        else:
            warp.copies[-1].append(work)

    return run


def mbarrier(program: Program, instruction: Instruction) -> Handler:
    """`mbarrier.init`, `.arrive[.expect_tx]`, `.try_wait.parity` / `.test_wait.parity`."""

    opcode, operands = instruction.opcode, instruction.operands
    kind = opcode[1]
    at = next(i for i, operand in enumerate(operands) if str(operand).startswith("["))
    address = address_reader(program, operands[at])
    argument = reader(program, operands[at + 1], "uint32") if len(operands) > at + 1 else None

    def run(warp: Warp, active: np.ndarray) -> None:
        cta = warp.cta
        for lane in np.flatnonzero(active):
            place = int(address(warp)[lane])
            assert place % 8 == 0, "an mbarrier is misaligned"
            value = 1 if argument is None else int(argument(warp)[lane])
            if kind == "init":
                cta.mbarriers[place] = Mbarrier(value, value)
                continue
            if kind == "inval":
                del cta.mbarriers[place]
                continue
            barrier = cta.mbarriers[place]
            if "expect_tx" in opcode:
                barrier.bytes += value
            if kind == "arrive":
                barrier.pending -= 1 if "expect_tx" in opcode else value
                assert barrier.pending >= 0, "more arrivals at an mbarrier than it expects"
            barrier.settle()
        cta.events += 1

    if kind in ("try_wait", "test_wait"):
        assert "parity" in opcode, "only waits by parity"
        write = writer(program, operands[0])
        assert argument is not None
        parity = argument

        def wait(warp: Warp, active: np.ndarray) -> None:
            lane = int(np.flatnonzero(active)[0])
            complete = warp.cta.mbarriers[int(address(warp)[lane])].phase != int(parity(warp)[lane])
            write(warp, np.full(len(active), complete), active)
            if complete:
                warp.cta.events += 1
            else:
                warp.cta.spinning = True

        return wait
    return run


def tensor_copy(program: Program, instruction: Instruction) -> Handler:
    """`cp.async.bulk.tensor.Nd.shared.global.mbarrier [to], [map, {coordinates}], [barrier]` with 128-byte swizzle."""

    to, source, barrier_at = instruction.operands[:3]
    target, barrier_address = address_reader(program, to), address_reader(program, barrier_at)
    assert isinstance(source, str)
    name, _, coordinates = source[1:-1].partition(",")
    map_address = reader(program, name.strip(), "uint64")
    places = [reader(program, text.strip(), "int32") for text in coordinates.strip(" {}").split(",")]

    def run(warp: Warp, active: np.ndarray) -> None:
        cta = warp.cta
        for lane in np.flatnonzero(active):
            tensor_map = cta.machine.tensor_maps[int(map_address(warp)[lane])]
            corner = [int(place(warp)[lane]) for place in places]
            start, barrier = int(target(warp)[lane]), cta.mbarriers[int(barrier_address(warp)[lane])]

            def work(
                tensor_map: TensorMap = tensor_map, corner: list = corner, start: int = start, barrier: Any = barrier
            ) -> None:
                values = read_box(cta.machine.memory, tensor_map, corner)
                assert start % 128 == 0, "the target of a tensor copy is misaligned"
                offsets = np.uint64(start) + np.arange(values.size, dtype=np.uint64) * np.uint64(2)
                cta.shared.store(swizzle(offsets), values.ravel())
                barrier.bytes -= 2 * values.size
                barrier.settle()
                cta.events += 1

            cta.events += 1
            if cta.machine.timing == "early":
                work()
            else:
                cta.transfers.append(work)

    return run


def swizzle(addresses: np.ndarray) -> np.ndarray:
    """128-byte swizzle: bits 4-6 of an address are exclusive-ored with bits 7-9."""
    return addresses ^ ((addresses >> np.uint64(7) & np.uint64(7)) << np.uint64(4))


def read_box(memory: Memory, tensor_map: TensorMap, corner: list[int]) -> np.ndarray:
    """The elements (2 bytes each) of a box, slowest dimension first; outside of the tensor there are zeros."""
    assert tensor_map.box[0] * 2 == 128, "the 128-byte swizzle needs rows of 128 bytes"
    address, inside = np.uint64(tensor_map.address), np.ones(1, bool)
    strides = (2, *tensor_map.strides)
    assert len(corner) == len(tensor_map.dimensions) and not any(stride % 16 for stride in tensor_map.strides)
    for dimension in reversed(range(len(corner))):
        at = corner[dimension] + np.arange(tensor_map.box[dimension])
        inside = inside[..., None] & (at >= 0) & (at < tensor_map.dimensions[dimension])
        address = np.asarray(address)[..., None] + (at * strides[dimension]).astype(np.uint64)
    address, inside = np.broadcast_to(address, inside.shape), inside
    values = np.zeros(inside.shape, np.uint16)
    if inside.any():
        values[inside] = memory.load(address[inside], "uint16")
    return values
