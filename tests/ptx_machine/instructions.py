"""From an instruction to what it does: memory access, control flow, shuffles and barriers here, the rest elsewhere."""

from collections.abc import Callable

import numpy as np

from ptx_machine.arithmetic import arithmetic, compare, convert, select
from ptx_machine.asynchronous import copy, mbarrier
from ptx_machine.machine import ALL_LANES, LANES, SHARED_WINDOW, Blocked, NamedBarrier, Warp, lanes
from ptx_machine.operands import Handler, Lanes, address_reader, dtype_of, reader, writer
from ptx_machine.program import Instruction, Program
from ptx_machine.tensor_cores import load_matrix, product, warpgroup_product

# ------------------------------------------------------------------------------------------------ memory


def access(program: Program, instruction: Instruction) -> Handler:
    """`ld` and `st`, of one value or a vector."""
    opcode, operands = instruction.opcode, instruction.operands
    space = next((word.split("_")[0] for word in opcode if word.split("_")[0] in ("global", "shared", "param")), None)
    assert space is not None, f"generic addresses are not needed yet: {opcode}"
    dtype = dtype_of(opcode)
    size = np.uint64(np.dtype(dtype).itemsize)
    is_load = opcode[0] == "ld"
    address = address_reader(program, operands[1] if is_load else operands[0])
    values = operands[0] if is_load else operands[1]
    items = values if isinstance(values, tuple) else (values,)
    whole = np.uint64(len(items)) * size
    if is_load:
        writes = [writer(program, item) for item in items]

        def load(warp: Warp, active: Lanes) -> None:
            memory, addresses = warp.cta.machine.space(warp, space), address(warp)
            assert not (addresses[active] % whole).any(), "a vector load is misaligned"
            for i, write in enumerate(writes):
                loaded = np.zeros(LANES, dtype)
                loaded[active] = memory.load(addresses[active] + np.uint64(i) * size, dtype)
                write(warp, loaded, active)

        return load
    reads = [reader(program, item, dtype) for item in items]

    def store(warp: Warp, active: Lanes) -> None:
        memory, addresses = warp.cta.machine.space(warp, space), address(warp)
        assert not (addresses[active] % whole).any(), "a vector store is misaligned"
        for i, read in enumerate(reads):
            memory.store(addresses[active] + np.uint64(i) * size, np.ascontiguousarray(read(warp)[active]))

    return store


def convert_address(program: Program, instruction: Instruction) -> Handler:
    """`cvta`: global addresses are generic addresses; the other spaces have windows."""
    opcode = instruction.opcode
    window = {"shared": SHARED_WINDOW, "param": 0, "global": 0}[
        next(w for w in opcode if w in ("shared", "param", "global"))
    ]
    read, write = reader(program, instruction.operands[1], "uint64"), writer(program, instruction.operands[0])
    shift = np.uint64((-window if "to" in opcode else window) % 2**64)
    return lambda warp, active: write(warp, read(warp) + shift, active)


def shuffle(program: Program, instruction: Instruction) -> Handler:
    """`shfl.sync.mode.b32 d[|p], a, b, c, mask` over whole warps (c covers all lanes)."""
    target, _, valid = str(instruction.operands[0]).partition("|")
    writes = writer(program, target), writer(program, valid or "_")
    value, by, mask = (reader(program, instruction.operands[i], "uint32") for i in (1, 2, 4))
    mode = instruction.opcode[2]
    lane = np.arange(LANES)

    def run(warp: Warp, active: Lanes) -> None:
        assert (mask(warp)[active] == 0xFFFFFFFF).all() and active is ALL_LANES, "a shuffle among a part of the warp"
        offset = by(warp).astype(int)
        source = {"bfly": lane ^ offset, "idx": offset, "up": lane - offset, "down": lane + offset}[mode]
        inside = (source >= 0) & (source < LANES)
        source = np.where(inside, source, lane)
        writes[0](warp, value(warp)[source], active)
        writes[1](warp, inside, active)

    return run


def elect(program: Program, instruction: Instruction) -> Handler:
    """`elect.sync d|p, mask`: p is true in one lane, here the first."""
    target, _, chosen = str(instruction.operands[0]).partition("|")
    writes = writer(program, target), writer(program, chosen)

    def run(warp: Warp, active: Lanes) -> None:
        leader = np.flatnonzero(active)[0]
        writes[0](warp, np.full(LANES, leader, np.uint32), active)
        writes[1](warp, np.arange(LANES) == leader, active)

    return run


# ------------------------------------------------------------------------------------------------ barriers


def named_barrier(program: Program, instruction: Instruction) -> Handler:
    """`bar.sync id[, threads]` and `bar.arrive id, threads`; a warp counts as its 32 threads."""
    number_of = reader(program, instruction.operands[0], "uint32")
    count_of = reader(program, instruction.operands[1], "uint32") if len(instruction.operands) > 1 else None
    waits = "sync" in instruction.opcode

    def run(warp: Warp, active: Lanes) -> None:
        assert active is ALL_LANES, "a barrier in a part of the warp"
        barrier = warp.cta.barriers.setdefault(int(number_of(warp)[0]), NamedBarrier())
        threads = warp.cta.threads if count_of is None else int(count_of(warp)[0])
        if warp.waiting_for is None:
            generation = barrier.generation
            barrier.arrived += LANES
            warp.cta.events += 1
            assert barrier.arrived <= threads, "more threads at a barrier than it expects"
            if barrier.arrived == threads:
                barrier.arrived, barrier.generation = 0, generation + 1
            if not waits:
                return
            warp.waiting_for = generation
        if barrier.generation == warp.waiting_for:
            raise Blocked
        warp.waiting_for = None

    return run


def nothing(warp: Warp, active: Lanes) -> None:
    """Instructions whose effect the machine has no need of."""


# Fences order accesses to memory, which are always in order here: a missing fence goes unnoticed.
WITHOUT_EFFECT = ("setmaxnreg", "fence", "membar", "prefetch", "griddepcontrol", "nanosleep", "discard")


def compile_instruction(program: Program, instruction: Instruction) -> Callable[[Warp, int, Lanes], list]:
    """A function (warp, own place, lanes) -> where which lanes go on."""
    opcode = instruction.opcode
    condition = None if instruction.predicate is None else reader(program, instruction.predicate, "bool")
    if opcode[0] in ("ret", "exit"):
        return lambda warp, at, mask: [] if condition is None else rest_of(at, mask & ~condition(warp))
    if opcode[0] == "bra":
        target = program.labels[str(instruction.operands[0])]

        def branch(warp: Warp, at: int, mask: Lanes) -> list:
            if condition is None:
                return [(target, mask)]
            taken = mask & condition(warp)
            if not taken.any():
                return [(at + 1, mask)]
            if (taken == mask).all():
                return [(target, mask)]
            return [(target, taken), (at + 1, mask & ~taken)]

        return branch
    handler = find_handler(program, instruction)
    name = opcode[0] if opcode[0] != "cp" else ".".join(opcode[:4])

    def execute(warp: Warp, at: int, mask: Lanes) -> list:
        active = mask if condition is None else lanes(mask & condition(warp))
        if active is ALL_LANES or active.any():
            handler(warp, active)
            warp.cta.machine.counts[name] += 1
        return [(at + 1, mask)]

    return execute


def rest_of(at: int, mask: Lanes) -> list:
    return [(at + 1, mask)] if mask.any() else []


def find_handler(program: Program, instruction: Instruction) -> Handler:
    opcode = instruction.opcode
    if (handler := arithmetic(program, instruction)) is not None:
        return handler
    if opcode[0] in WITHOUT_EFFECT:
        return nothing
    if opcode[:2] == ("bar", "warp"):
        return nothing  # a warp runs in lockstep; lanes that have diverged meet again by themselves
    makers: dict[str, Callable[[Program, Instruction], Handler]] = {
        "setp": compare,
        "selp": select,
        "cvt": convert,
        "cvta": convert_address,
        "ld": access,
        "st": access,
        "shfl": shuffle,
        "elect": elect,
        "bar": named_barrier,
        "barrier": named_barrier,
        "cp": copy,
        "mbarrier": mbarrier,
        "wgmma": warpgroup_product,
        "ldmatrix": load_matrix,
        "mma": product,
    }
    if opcode[0] not in makers:
        raise NotImplementedError(f"PTX instruction {'.'.join(opcode)} {instruction.operands}")
    return makers[opcode[0]](program, instruction)
