"""Instructions that compute registers from registers: arithmetic, comparisons, conversions."""

from collections.abc import Callable

import numpy as np

from ptx_machine.machine import Warp
from ptx_machine.operands import DTYPES, Handler, Lanes, dtype_of, reader, writer
from ptx_machine.program import Instruction, Program

WIDER = {"u16": "uint32", "s16": "int32", "u32": "uint64", "s32": "int64"}


def shift_left(value: Lanes, by: Lanes) -> Lanes:
    bits = 8 * value.dtype.itemsize
    return np.where(by >= bits, 0, value << np.minimum(by, bits - 1).astype(value.dtype)).astype(value.dtype)


def shift_right(value: Lanes, by: Lanes) -> Lanes:
    bits = 8 * value.dtype.itemsize
    shifted = value >> np.minimum(by, bits - 1).astype(value.dtype)
    return shifted if value.dtype.kind == "i" else np.where(by >= bits, 0, shifted).astype(value.dtype)


def truncated_quotient(a: Lanes, b: Lanes) -> Lanes:
    if a.dtype.kind == "f":
        return a / b
    quotient = np.abs(a.astype(object)) // np.abs(b.astype(object))
    return np.where((a < 0) != (b < 0), -quotient, quotient).astype(a.dtype)


def high_product(a: Lanes, b: Lanes) -> Lanes:
    bits = 8 * a.dtype.itemsize
    return np.array([int(x) * int(y) >> bits for x, y in zip(a, b)]).astype(a.dtype)


BINARY: dict[str, Callable[[Lanes, Lanes], Lanes]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": truncated_quotient,
    "rem": np.fmod,
    "min": np.fmin,
    "max": np.fmax,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}
UNARY: dict[str, Callable[[Lanes], Lanes]] = {
    "mov": lambda a: a,
    "not": np.invert,
    "neg": np.negative,
    "abs": np.abs,
    "ex2": np.exp2,
    "lg2": np.log2,
    "rcp": np.reciprocal,
    "sqrt": np.sqrt,
}
COMPARE: dict[str, Callable[[Lanes, Lanes], Lanes]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}


def arithmetic(program: Program, instruction: Instruction) -> Handler | None:
    """Instructions that compute one register from others of one type."""
    opcode, operands = instruction.opcode, instruction.operands
    name = opcode[0]
    if name not in BINARY and name not in UNARY and name not in ("mad", "fma", "shl", "shr", "bfi", "bfe"):
        return None
    dtype = dtype_of(opcode)
    write = writer(program, operands[0]) if isinstance(operands[0], str) else None
    if (name == "mov" and write is None) or isinstance(operands[1], tuple):
        return repack(program, instruction)
    assert write is not None
    inputs = [reader(program, operand, dtype) for operand in operands[1:]]
    if name in ("shl", "shr"):
        by = reader(program, operands[2], "uint32")
        shift = shift_left if name == "shl" else shift_right
        return lambda warp, active: write(warp, shift(inputs[0](warp), by(warp)), active)
    if name in ("bfi", "bfe"):
        return bit_field(program, instruction, dtype)
    if name in ("mul", "mad") and "wide" in opcode:
        wide = WIDER[opcode[-1]]
        last = reader(program, operands[3], wide) if name == "mad" else None
        return lambda warp, active: write(
            warp,
            inputs[0](warp).astype(wide) * inputs[1](warp).astype(wide) + (last(warp) if last else wide_zero(wide)),
            active,
        )
    product = high_product if "hi" in opcode and name in ("mul", "mad") else np.multiply
    if name == "mul":
        return lambda warp, active: write(warp, product(inputs[0](warp), inputs[1](warp)), active)
    if name == "mad":
        return lambda warp, active: write(warp, product(inputs[0](warp), inputs[1](warp)) + inputs[2](warp), active)
    if name == "fma":
        return lambda warp, active: write(
            warp,
            (inputs[0](warp).astype("float64") * inputs[1](warp) + inputs[2](warp)).astype(dtype),
            active,
        )
    if name in BINARY:
        binary = BINARY[name]
        if len(inputs) == 3:  # max.f32 of three
            return lambda warp, active: write(
                warp, binary(binary(inputs[0](warp), inputs[1](warp)), inputs[2](warp)), active
            )
        return lambda warp, active: write(warp, binary(inputs[0](warp), inputs[1](warp)), active)
    unary = UNARY[name]
    return lambda warp, active: write(warp, unary(inputs[0](warp)), active)


def wide_zero(dtype: str) -> np.generic:
    return np.zeros(1, dtype)[0]


def repack(program: Program, instruction: Instruction) -> Handler:
    """`mov` between a register and the smaller ones that make it up."""
    target, source = instruction.operands
    dtype = dtype_of(instruction.opcode)
    if isinstance(source, tuple):
        part = f"uint{8 * np.dtype(dtype).itemsize // len(source)}"
        parts = [reader(program, operand, part) for operand in source]
        write = writer(program, target)
        return lambda warp, active: write(
            warp, np.ascontiguousarray(np.stack([read(warp) for read in parts], 1)).view(dtype)[:, 0], active
        )
    part = f"uint{8 * np.dtype(dtype).itemsize // len(target)}"
    read = reader(program, source, dtype)
    writes = [writer(program, operand) for operand in target]

    def unpack(warp: Warp, active: Lanes) -> None:
        values = np.ascontiguousarray(read(warp))[:, None].view(part)
        for i, store in enumerate(writes):
            store(warp, values[:, i].copy(), active)

    return unpack


def bit_field(program: Program, instruction: Instruction, dtype: str) -> Handler:
    """`bfi` inserts and `bfe` extracts a field (position, length) that lies within the word."""
    operands = instruction.operands
    write = writer(program, operands[0])
    words = [reader(program, operand, dtype) for operand in operands[1:-2]]
    position, length = (reader(program, operand, "uint32") for operand in operands[-2:])
    bits = 8 * np.dtype(dtype).itemsize

    def insert(warp: Warp, active: Lanes) -> None:
        at, count = position(warp).astype(np.uint64), length(warp).astype(np.uint64)
        field = ((np.uint64(1) << count) - np.uint64(1)) << at
        new, old = (word(warp).astype(np.uint64) for word in words)
        write(warp, (old & ~field | new << at & field).astype(dtype), active)

    def extract(warp: Warp, active: Lanes) -> None:
        at, count = position(warp), length(warp)
        assert (at + count <= bits).all() and (count > 0).all()
        moved = shift_left(words[0](warp), bits - count - at)
        write(warp, shift_right(moved, bits - count), active)  # with the sign, if the type has one

    return insert if instruction.opcode[0] == "bfi" else extract


def compare(program: Program, instruction: Instruction) -> Handler:
    """`setp.compare[.combine].type p[|q], a, b[, c]`."""
    _, name, *rest = instruction.opcode
    dtype = dtype_of(instruction.opcode)
    assert isinstance(instruction.operands[0], str)
    first, _, second = instruction.operands[0].partition("|")
    writes = [writer(program, first), writer(program, second or "_")]
    a, b = (reader(program, operand, dtype) for operand in instruction.operands[1:3])
    combine = next((BINARY[word] for word in rest if word in ("and", "or", "xor")), None)
    other = reader(program, instruction.operands[3], "bool") if combine else None
    relation, true_for_nan = COMPARE[name[:2]], len(name) == 3  # equ, ltu…

    def run(warp: Warp, active: Lanes) -> None:
        x, y = a(warp), b(warp)
        truth = relation(x, y)
        if x.dtype.kind == "f":
            unordered = np.isnan(x) | np.isnan(y)
            truth = truth | unordered if true_for_nan else truth & ~unordered
        inverse = ~truth
        if combine is not None and other is not None:
            truth, inverse = combine(truth, other(warp)), combine(inverse, other(warp))
        writes[0](warp, truth, active)
        writes[1](warp, inverse, active)

    return run


def select(program: Program, instruction: Instruction) -> Handler:
    target, yes, no, condition = instruction.operands
    dtype = dtype_of(instruction.opcode)
    write, test = writer(program, target), reader(program, condition, "bool")
    a, b = reader(program, yes, dtype), reader(program, no, dtype)
    return lambda warp, active: write(warp, np.where(test(warp), a(warp), b(warp)), active)


def to_bf16(x: Lanes) -> Lanes:
    """float32 -> bits of the nearest bfloat16, ties to even."""
    bits = x.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(x), 0x7FFF, rounded).astype(np.uint16)


def from_bf16(bits: Lanes) -> Lanes:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def convert(program: Program, instruction: Instruction) -> Handler:
    """`cvt[.round].target.source`."""
    to, source = instruction.opcode[-2:]
    write = writer(program, instruction.operands[0])
    if to in ("bf16x2", "f16x2"):
        half = to_bf16 if to == "bf16x2" else (lambda x: x.astype(np.float16).view(np.uint16))
        high, low = (reader(program, operand, "float32") for operand in instruction.operands[1:3])
        return lambda warp, active: write(
            warp, half(low(warp)).astype(np.uint32) | half(high(warp)).astype(np.uint32) << 16, active
        )
    if to == "bf16":
        value = reader(program, instruction.operands[1], "float32")
        return lambda warp, active: write(warp, to_bf16(value(warp)), active)
    if source == "bf16":
        value = reader(program, instruction.operands[1], "uint16")
        return lambda warp, active: write(warp, from_bf16(value(warp)), active)
    value, dtype = reader(program, instruction.operands[1], DTYPES[source]), DTYPES[to]
    rounding = {"rmi": np.floor, "rpi": np.ceil, "rzi": np.trunc, "rni": np.rint}
    around = next((rounding[word] for word in instruction.opcode if word in rounding), lambda x: x)
    return lambda warp, active: write(warp, around(value(warp)).astype(dtype), active)
