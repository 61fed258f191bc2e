"""PTX text to a list of instructions, with the registers, labels, parameters and shared variables that they name."""

import re
from dataclasses import dataclass, field

REGISTER_DTYPES = {"pred": "bool", "b16": "uint16", "b32": "uint32", "b64": "uint64"}
SIZES = {"8": 1, "16": 2, "32": 4, "64": 8}


@dataclass(frozen=True)
class Instruction:
    """`@predicate opcode operands`; operands are text, those in braces lists of text."""

    opcode: tuple[str, ...]
    operands: tuple[str | tuple[str, ...], ...]
    predicate: str | None


@dataclass
class Program:
    """One kernel."""

    name: str = ""
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    registers: dict[str, str] = field(default_factory=dict)
    """Prefix or full name of registers -> numpy dtype."""
    parameters: dict[str, int] = field(default_factory=dict)
    """Name -> offset."""
    parameter_sizes: list[int] = field(default_factory=list)
    shared: dict[str, int] = field(default_factory=dict)
    """Name -> address; the array of dynamic size comes last."""
    static_shared: int = 0

    def dtype_of(self, register: str) -> str:
        """The dtype of a register such as `%r12` or `%p3` or a name declared in a block of inline assembly."""
        if register in self.registers:
            return self.registers[register]
        return self.registers[register.rstrip("0123456789")]


def parse(text: str) -> Program:
    """The only kernel of a PTX module."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.S)
    text = re.sub(r"^\s*\.(loc|file)\b[^\n]*", "", text.split(".section")[0], flags=re.M)  # debug information
    program = Program()
    head, body = text.split(".entry", 1)
    dynamic = re.findall(r"\.extern\s+\.shared\s+\.align\s+\d+\s+\.b8\s+(\w+)\[\]", head)
    for align, name, size in re.findall(r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d+)\]", text):
        _place(program, name, int(size), int(align))
    for name in dynamic:
        _place(program, name, 0, 1024)
    signature, body = body.split(")", 1)
    program.name = signature.split("(")[0].strip()
    _read_parameters(program, signature.split("(", 1)[1])
    _Reader(program).read(body[body.index("{") + 1 : body.rindex("}")])
    return program


def _place(program: Program, name: str, size: int, align: int) -> None:
    address = -(-program.static_shared // align) * align
    program.shared[name] = address
    program.static_shared = address + size


def _read_parameters(program: Program, text: str) -> None:
    offset = 0
    for declaration in text.split(","):
        words = declaration.replace("[", " ").replace("]", " ").split()
        align = int(words[words.index(".align") + 1]) if ".align" in words else 0
        bits = next(re.sub(r"\D", "", word) for word in words if re.fullmatch(r"\.[busf]\d+", word))
        array = words[-1].isdigit()
        size = SIZES[bits] * (int(words[-1]) if array else 1)
        align = align if array and align else SIZES[bits]
        offset = -(-offset // align) * align
        program.parameters[words[-2] if array else words[-1]] = offset
        program.parameter_sizes.append(size)
        offset += size


class _Reader:
    """Walks over the statements of a body; names declared in inner blocks are made unique."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.scopes: list[dict[str, str]] = [{}]
        self.blocks = 0

    def read(self, body: str) -> None:
        position = 0
        while match := re.compile(r"\s*(\{|\}|[$\w]+:|[^;]+;)").match(body, position):
            self.statement(match.group(1).strip())
            position = match.end()
        assert not body[position:].strip(), body[position:][:200]

    def statement(self, text: str) -> None:
        if text == "{":
            self.scopes.append({})
            self.blocks += 1
        elif text == "}":
            self.scopes.pop()
        elif text.endswith(":"):
            self.program.labels[self.unique(text[:-1])] = len(self.program.instructions)
        elif text.startswith(".reg"):
            self.declare(text.rstrip(";").split(maxsplit=2))
        elif not text.startswith("."):
            self.program.instructions.append(self.instruction(text.rstrip(";").strip()))

    def declare(self, words: list[str]) -> None:
        kind = words[1][1:]
        dtype = REGISTER_DTYPES["pred" if kind == "pred" else "b" + kind[1:]]
        for name in words[2].split(","):
            name = re.sub(r"<\d+>", "", name.strip())
            self.program.registers[self.unique(name)] = dtype

    def unique(self, name: str) -> str:
        """Declares a name in the current block."""
        self.scopes[-1][name] = name if len(self.scopes) == 1 else f"{name}#{self.blocks}"
        return self.scopes[-1][name]

    def instruction(self, text: str) -> Instruction:
        predicate = None
        if text.startswith("@"):
            predicate, text = text[1:].split(maxsplit=1)
            predicate = self.rename(predicate)
        opcode, _, rest = text.partition(" ") if " " in text.split("\t")[0] else text.partition("\t")
        parts = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", rest)
        operands = tuple(
            tuple(self.rename(item.strip()) for item in part[1:-1].split(","))
            if part.startswith("{")
            else self.rename(part.strip())
            for part in parts
        )
        return Instruction(tuple(opcode.strip().replace("::", "_").split(".")), operands, predicate)

    def rename(self, operand: str) -> str:
        def unique(match: re.Match[str]) -> str:
            return next((scope[match[0]] for scope in reversed(self.scopes) if match[0] in scope), match[0])

        return re.sub(r"[%$\w.]+", unique, operand)
