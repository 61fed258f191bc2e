"""What an instruction's operands mean: immediates, registers, special registers, names, addresses."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ptx_machine.machine import ALL_LANES, LANES, PARAMETER_WINDOW, Warp
from ptx_machine.program import Program

Operand = str | tuple[str, ...]
Lanes = np.ndarray
Handler = Callable[[Warp, Lanes], Any]
"""What an instruction does in the active lanes of a warp."""

DTYPES = {
    **{f"b{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"u{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    "f16": "float16",
    "f32": "float32",
    "f64": "float64",
    "pred": "bool",
}


def dtype_of(opcode: tuple[str, ...]) -> str:
    """The dtype that the last part of an opcode names."""
    return DTYPES[opcode[-1]]


def number(text: str, dtype: str) -> np.generic | None:
    """An immediate operand, or None."""
    if text[:2] in ("0f", "0F"):
        return np.array([int(text[2:], 16)], np.uint32).view(np.float32).astype(dtype)[0]
    if text[:2] in ("0d", "0D"):
        return np.array([int(text[2:], 16)], np.uint64).view(np.float64).astype(dtype)[0]
    try:
        value = int(text.rstrip("U"), 0)
    except ValueError:
        return None
    if dtype == "bool":
        return np.bool_(value)
    bits = 8 * np.dtype(dtype).itemsize
    return np.array([value % 2**bits], f"uint{bits}").view(dtype)[0]


def special(name: str) -> Callable[[Warp], Any] | None:
    """Special registers."""
    axis = "xyz".find(name[-1])
    if name.startswith("%tid."):
        return lambda warp: warp.lanes if axis == 0 else np.zeros(LANES, np.uint32)
    if name.startswith("%ctaid."):
        return lambda warp: np.uint32(warp.cta.place[axis])
    if name.startswith("%ntid."):
        return lambda warp: np.uint32(warp.cta.threads if axis == 0 else 1)
    if name.startswith("%nctaid."):
        return lambda warp: np.uint32(warp.cta.machine.grid[axis])
    if name == "%laneid":
        return lambda warp: np.arange(LANES, dtype=np.uint32)
    if name in ("%cluster_ctarank", "%cluster_ctaid.x"):
        return lambda warp: np.uint32(0)
    return None


def reader(program: Program, operand: Operand, dtype: str) -> Callable[[Warp], Lanes]:
    """A function that gives the operand's value in every lane."""
    assert isinstance(operand, str), operand
    if operand.startswith("!"):
        inner = reader(program, operand[1:], dtype)
        return lambda warp: ~inner(warp)
    if (value := number(operand, dtype)) is not None:
        constant = np.full(LANES, value, dtype)
        return lambda warp: constant
    if (function := special(operand)) is not None:
        return lambda warp: np.broadcast_to(function(warp), LANES).astype(dtype)
    if operand in program.parameters:
        constant = np.full(LANES, PARAMETER_WINDOW + program.parameters[operand], dtype)
        return lambda warp: constant
    if operand in program.shared:
        constant = np.full(LANES, program.shared[operand], dtype)
        return lambda warp: constant
    stored = program.dtype_of(operand)
    bits = f"uint{8 * np.dtype(dtype).itemsize}" if dtype != "bool" else "bool"
    if stored == bits:
        return lambda warp: read_register(warp, operand, stored).view(dtype)
    return lambda warp: read_register(warp, operand, stored).astype(bits).view(dtype)  # ld.u8 and the like


def read_register(warp: Warp, name: str, dtype: str) -> Lanes:
    """A register that was never written holds rubbish: all ones, which is NaN."""
    if name not in warp.registers:
        warp.registers[name] = np.full(LANES, True if dtype == "bool" else np.iinfo(dtype).max, dtype)
    return warp.registers[name]


def writer(program: Program, operand: Operand) -> Callable[[Warp, Lanes, Lanes], None]:
    """A function that stores values into the active lanes of a register."""
    assert isinstance(operand, str), operand
    if operand == "_":
        return lambda warp, values, active: None
    stored = program.dtype_of(operand)

    def write(warp: Warp, values: Lanes, active: Lanes) -> None:
        if values.dtype != stored:
            same_size = values.dtype.itemsize == np.dtype(stored).itemsize and stored != "bool"
            values = values.view(stored) if same_size else values.astype(stored)
        warp.registers[operand] = (
            values if active is ALL_LANES else np.where(active, values, read_register(warp, operand, stored))
        )

    return write


def address_reader(program: Program, operand: Operand) -> Callable[[Warp], Lanes]:
    """The addresses of `[register + offset]`, uint64."""
    assert isinstance(operand, str) and operand.startswith("["), operand
    base, _, offset = operand[1:-1].replace(" ", "").partition("+")
    shift = np.uint64(int(offset or "0", 0) % 2**64)
    if base in program.parameters:
        constant = np.full(LANES, PARAMETER_WINDOW + program.parameters[base], np.uint64) + shift
        return lambda warp: constant
    is_wide = base in program.shared or number(base, "uint64") is not None or program.dtype_of(base) == "uint64"
    value = reader(program, base, "uint64" if is_wide else "uint32")
    return lambda warp: value(warp).astype(np.uint64) + shift
