"""CTAs and warps: which lanes execute what, who waits for whom, and when asynchronous work happens."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ptx_machine.memory import Memory
from ptx_machine.program import Program

LANES = 32
SHARED_WINDOW = 0x7F00_0000_0000  # where shared memory and parameters lie in generic addresses
PARAMETER_WINDOW = 0x7E00_0000  # fits a 32-bit register, which Triton takes addresses of parameters into

ALL_LANES = np.ones(LANES, bool)  # compared by identity where speed matters

Timing = Literal["early", "late"]


@dataclass(frozen=True)
class TensorMap:
    """What a CUtensorMap says of a tensor of 2-byte elements, fastest dimension first; strides in bytes."""

    address: int
    dimensions: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]


@dataclass
class Mbarrier:
    """A barrier in shared memory that counts arrivals and bytes."""

    arrivals: int
    pending: int
    bytes: int = 0
    phase: int = 0

    def settle(self) -> None:
        """Completes the phase when nothing is missing."""
        if self.pending == 0 and self.bytes == 0:
            self.phase ^= 1
            self.pending = self.arrivals


@dataclass
class NamedBarrier:
    """One of the sixteen barriers of a CTA."""

    arrived: int = 0
    generation: int = 0


Group = tuple[int, np.ndarray]
"""Lanes of a warp that are at one place of the program."""
Step = Callable[["Warp", int, np.ndarray], list[Group]]
"""An instruction: (warp, its own place, lanes) -> where which lanes go on."""


def lanes(mask: np.ndarray) -> np.ndarray:
    """The mask, as `ALL_LANES` itself if it is full."""
    return ALL_LANES if mask.all() else mask


class Blocked(Exception):
    """The instruction has to be tried again later."""


class Warp:
    """32 lanes with one program counter for each group of lanes that has diverged."""

    def __init__(self, cta: "Cta", index: int) -> None:
        self.cta = cta
        self.index = index
        self.lanes = index * LANES + np.arange(LANES, dtype=np.uint32)
        self.registers: dict[str, np.ndarray] = {}
        self.groups: list[Group] = [(0, ALL_LANES)]
        self.waiting_for: int | None = None  # generation of a named barrier
        self.copies: list[list[Callable[[], None]]] = [[]]  # cp.async groups, the last one open
        self.products: list[list[Callable[[], None]]] = [[]]  # wgmma groups, the last one open

    def run(self) -> None:
        """Until every lane has returned, or something has to be waited for."""
        code = self.cta.machine.code
        self.cta.spinning = False
        while self.groups and not self.cta.spinning:
            if len(self.groups) > 1:
                self.meet()
            at, mask = self.groups.pop(0)
            try:
                self.groups += code[at](self, at, mask)
            except Blocked:
                self.groups.append((at, mask))
                return

    def meet(self) -> None:
        """Joins groups that are at one place, and puts the rearmost group first, so that others can meet it."""
        joined: dict[int, np.ndarray] = {}
        for place, mask in self.groups:
            joined[place] = joined[place] | mask if place in joined else mask
        self.groups = [(place, lanes(joined[place])) for place in sorted(joined)]

    def finish(self, groups: list[list[Callable[[], None]]], pending: int) -> None:
        """Does the work of all closed groups but the last `pending`."""
        while len(groups) - 1 > pending:
            for work in groups.pop(0):
                work()


@dataclass
class Cta:
    """The warps of one block of the grid, their shared memory and barriers."""

    machine: "Machine"
    place: tuple[int, int, int]
    threads: int
    shared_bytes: int
    barriers: dict[int, NamedBarrier] = field(default_factory=dict)
    mbarriers: dict[int, Mbarrier] = field(default_factory=dict)
    transfers: list[Callable[[], None]] = field(default_factory=list)
    events: int = 0
    spinning: bool = False

    def __post_init__(self) -> None:
        self.shared = Memory("shared")
        content = np.full(self.shared_bytes, 0xFF, np.uint8)  # NaN in every type: nothing may rely on what lies there
        self.shared.add(0, content)
        self.content = content
        self.warps = [Warp(self, i) for i in range(self.threads // LANES)]

    def run(self) -> None:
        """To the end; warps take turns in random order."""
        alive = list(self.warps)
        while alive:
            before = self.events
            for i in self.machine.random.permutation(len(alive)):
                alive[i].run()
            ended = [warp for warp in alive if not warp.groups]
            alive = [warp for warp in alive if warp.groups]
            if self.events == before and not ended:
                assert self.transfers, f"deadlock in CTA {self.place}: every warp waits"
                self.transfers.pop(int(self.machine.random.integers(len(self.transfers))))()
        assert not self.transfers, "the CTA ended while TMA was still writing to its shared memory"


class Machine:
    """Executes a kernel for every CTA of a grid."""

    def __init__(self, program: Program, code: list[Step], *, timing: Timing, seed: int) -> None:
        self.program = program
        self.timing = timing
        self.random = np.random.default_rng(seed)
        self.memory = Memory("global")
        self.parameters = Memory("parameter")
        self.tensor_maps: dict[int, TensorMap] = {}
        self.code = [*code, lambda warp, at, mask: []]  # falling off the end returns
        self.counts: Counter[str] = Counter()

    def launch(
        self,
        grid: tuple[int, int, int],
        threads: int,
        *,
        parameters: list[bytes],
        tensor_maps: dict[tuple[int, int], TensorMap] | None = None,
        dynamic_shared: int = 0,
    ) -> None:
        """Runs the grid. `tensor_maps` are found at (number of the parameter, byte offset in it)."""
        assert [len(value) for value in parameters] == self.program.parameter_sizes, self.program.parameter_sizes
        content = np.zeros(sum(map(len, parameters)) + 64 * len(parameters), np.uint8)
        offsets = list(self.program.parameters.values())
        for offset, value in zip(offsets, parameters):
            content[offset : offset + len(value)] = np.frombuffer(value, np.uint8)
        self.parameters.ranges.clear()
        self.parameters.add(PARAMETER_WINDOW, content)
        self.tensor_maps = {
            PARAMETER_WINDOW + offsets[number] + offset: tensor_map
            for (number, offset), tensor_map in (tensor_maps or {}).items()
        }
        shared_bytes = self.program.static_shared + dynamic_shared
        for z in range(grid[2]):
            for y in range(grid[1]):
                for x in range(grid[0]):
                    self.grid = grid
                    with np.errstate(all="ignore"):  # infinities and NaN are values like any other here
                        Cta(self, (x, y, z), threads, shared_bytes).run()

    def space(self, warp: Warp, name: str) -> Memory:
        """The memory of a state space."""
        spaces: dict[str, Any] = {"global": self.memory, "shared": warp.cta.shared, "param": self.parameters}
        return spaces[name]
