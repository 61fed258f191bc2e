"""Matrix products as the PTX manual lays them out in registers and shared memory: ldmatrix, mma.sync, wgmma."""

from functools import lru_cache

import numpy as np

from ptx_machine.machine import ALL_LANES, Warp
from ptx_machine.operands import Handler, address_reader, reader, writer
from ptx_machine.program import Instruction, Program

LANES = np.arange(32)
GROUP, MEMBER = LANES // 4, LANES % 4  # in a fragment a group of four lanes holds a row


def elements(bits: np.ndarray, kind: str) -> np.ndarray:
    """16-bit patterns of `bf16` or `f16` as float32."""
    if kind == "bf16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(bits).view(np.float16).astype(np.float32)


# Which half of which register of which lane holds each element of an operand, as places in `lanes registers 2`.
# Left, 16x16: register 0 has rows g, 1 rows g + 8, 2 and 3 the same eight columns further; each columns 2t, 2t + 1.
# Right, 16x8: register 0 has rows 2t, 2t + 1, register 1 eight rows further; columns g.
LEFT, RIGHT = np.empty((16, 16), int), np.empty((16, 8), int)
for register in range(4):
    for half in range(2):
        place = LANES * 8 + register * 2 + half
        LEFT[GROUP + register % 2 * 8, register // 2 * 8 + 2 * MEMBER + half] = place
for register in range(2):
    for half in range(2):
        RIGHT[register * 8 + 2 * MEMBER + half, GROUP] = LANES * 4 + register * 2 + half


def operand(registers: list[np.ndarray], places: np.ndarray) -> np.ndarray:
    """The bits of an operand's elements, from registers that hold two each."""
    return np.stack(registers, 1).view(np.uint16).ravel()[places]


def accumulate(matrix: np.ndarray, scale: bool, registers: list[np.ndarray]) -> list[np.ndarray]:
    """Adds 16 rows of any number of columns to fragments of accumulators: rows g, g + 8, columns 8j + 2t, + 1."""
    i = np.arange(len(registers))[:, None]
    sums = matrix[GROUP + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * MEMBER + i % 2]
    if scale:
        sums = sums + np.stack(registers)
    return list(sums.astype(np.float32))


def product(program: Program, instruction: Instruction) -> Handler:
    """`mma.sync.aligned.m16n8k16.row.col.f32.T.T.f32 d, a, b, c`."""

    opcode = instruction.opcode
    assert opcode[3:6] == ("m16n8k16", "row", "col") and opcode[6] == opcode[9] == "f32", opcode
    kind = opcode[7]
    d, a, b, c = instruction.operands
    writes = [writer(program, register) for register in d]
    left, right = ([reader(program, register, "uint32") for register in side] for side in (a, b))
    old = [reader(program, register, "float32") for register in c]

    def run(warp: Warp, active: np.ndarray) -> None:
        assert active is ALL_LANES
        first = elements(operand([read(warp) for read in left], LEFT), kind)
        second = elements(operand([read(warp) for read in right], RIGHT), kind)
        results = accumulate(first @ second, True, [read(warp) for read in old])
        for write, values in zip(writes, results, strict=True):
            write(warp, values, active)

    return run


def load_matrix(program: Program, instruction: Instruction) -> Handler:
    """`ldmatrix.sync.aligned.m8n8.xN[.trans].shared.b16 {…}, [row address]`."""

    opcode, (targets, place) = instruction.opcode, instruction.operands
    transposed = "trans" in opcode
    writes = [writer(program, target) for target in targets]
    address = address_reader(program, place)

    def run(warp: Warp, active: np.ndarray) -> None:
        assert active is ALL_LANES
        rows = address(warp)
        assert not (rows % np.uint64(16)).any(), "a row of ldmatrix is misaligned"
        for i, write in enumerate(writes):
            places = rows[8 * i : 8 * i + 8, None] + np.arange(8, dtype=np.uint64) * np.uint64(2)
            matrix = warp.cta.shared.load(places, "uint16")
            matrix = matrix.T if transposed else matrix
            pair = np.stack([matrix[GROUP, 2 * MEMBER], matrix[GROUP, 2 * MEMBER + 1]], 1)
            write(warp, np.ascontiguousarray(pair).view(np.uint32)[:, 0], active)

    return run


# ------------------------------------------------------------------------------------------------ wgmma


@lru_cache(maxsize=4096)
def described_addresses(descriptor: int, rows: int, transposed: bool) -> np.ndarray:
    """Addresses of the `rows 16` elements of a matrix descriptor; 16 is the summed dimension.

    Canonical layouts with the 128-byte swizzle, in elements of 2 bytes: summed dimension adjacent, groups of eight rows
    `stride` apart; or (transposed) rows adjacent in panels of 64, `leading` apart, groups of eight of the summed
    dimension `stride` apart.
    """
    start = (descriptor & 0x3FFF) << 4
    leading, stride = (descriptor >> 16 & 0x3FFF) << 4, (descriptor >> 32 & 0x3FFF) << 4
    assert descriptor >> 62 == 1, "only the 128-byte swizzle"
    assert descriptor >> 49 & 7 == 0, "only base offset 0"
    row, depth = np.arange(rows)[:, None], np.arange(16)[None, :]
    if transposed:
        linear = row % 64 * 2 + row // 64 * leading + depth % 8 * 128 + depth // 8 * stride
    else:
        linear = row % 8 * 128 + row // 8 * stride + depth * 2
    addresses = start + linear
    return (addresses ^ (addresses >> 7 & 7) << 4).astype(np.uint64)


def warpgroup_product(program: Program, instruction: Instruction) -> Handler:
    """`wgmma.fence`, `.commit_group`, `.wait_group` and `.mma_async.m64nNk16.f32.T.T`."""

    name = instruction.opcode[1]
    if name == "fence":
        return lambda warp, active: None
    if name == "commit_group":
        return lambda warp, active: warp.products.append([])
    if name == "wait_group":
        pending = reader(program, instruction.operands[0], "uint32")
        return lambda warp, active: warp.finish(warp.products, int(pending(warp)[0]))
    return asynchronous_product(program, instruction)


def asynchronous_product(program: Program, instruction: Instruction) -> Handler:
    """Each warp computes its 16 of the 64 rows; on a GPU the four warps of a warpgroup do so together."""

    opcode, operands = instruction.opcode, instruction.operands
    shape, kind = opcode[4], opcode[6]
    assert shape.startswith("m64n") and shape.endswith("k16") and opcode[5] == "f32", opcode
    columns = int(shape[4:-3])
    accumulators, left, right = operands[:3]
    assert len(accumulators) == columns // 2
    olds = [reader(program, register, "float32") for register in accumulators]
    writes = [writer(program, register) for register in accumulators]
    in_registers = isinstance(left, tuple)
    lefts = [
        reader(program, register, "uint32" if in_registers else "uint64")
        for register in (left if in_registers else [left])
    ]
    descriptor, scale = reader(program, right, "uint64"), reader(program, operands[3], "bool")
    assert operands[4:6] == ("1", "1"), "operands are not negated"
    transposed = [text == "1" for text in operands[6:]]

    def run(warp: Warp, active: np.ndarray) -> None:
        assert active is ALL_LANES
        where, keep = int(descriptor(warp)[0]), bool(scale(warp)[0])
        left_where = None if in_registers else int(lefts[0](warp)[0])

        def work() -> None:
            if left_where is None:
                first = operand([read(warp) for read in lefts], LEFT)
            else:
                rows = described_addresses(left_where, 64, transposed[0])
                first = warp.cta.shared.load(rows[warp.index % 4 * 16 :][:16], "uint16")
            second = warp.cta.shared.load(described_addresses(where, columns, transposed[-1]), "uint16").T
            with np.errstate(invalid="ignore"):
                sums = elements(first, kind) @ elements(second, kind)
            for write, values in zip(writes, accumulate(sums, keep, [read(warp) for read in olds]), strict=True):
                write(warp, values, active)

        if warp.cta.machine.timing == "early":
            work()
        else:
            warp.products[-1].append(work)

    return run
