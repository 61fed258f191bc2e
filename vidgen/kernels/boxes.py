"""How a windowed pattern is cut into boxes of queries, each with the few keys around it (its halo) that they may see.

Everything here is integers along one axis at a time; the visibility rule is a product over the axes, so the boxes are
products of stretches. The cheapest cut is found by counting, with the constants of `vidgen.kernels.cost`.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from vidgen.kernels.axis import AxisRule
from vidgen.kernels.cost import box_cost
from vidgen.kernels.spec import AttentionSpec

# Lengths of a box along an axis that are tried besides its groups, its causal blocks and the whole axis.
LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)
# Cuts into more stretches than this are not tried: each stretch of time is a call of its own.
MOST_STRETCHES = 128
# The masks of one slab stay below this many elements (64 MiB in float32).
LARGEST_MASK = 2**24


@dataclass(frozen=True)
class Stretch:
    """Positions along one axis: those of a box of queries, and keys that hold all that these queries see."""

    queries: range
    keys: tuple[range, ...]

    @property
    def key_count(self) -> int:
        return sum(map(len, self.keys))

    @property
    def key_positions(self) -> list[int]:
        return [position for keys in self.keys for position in keys]


@dataclass(frozen=True)
class AxisCut:
    """An axis as stretches; `exact` when every query of a stretch sees every key of it."""

    stretches: tuple[Stretch, ...]
    exact: bool

    @property
    def keys(self) -> int:
        return sum(stretch.key_count for stretch in self.stretches)


@dataclass(frozen=True)
class BoxPlan:
    """Slabs of frames, each cut into rows x columns boxes of one size with halos of one size."""

    time: AxisCut
    rows: AxisCut
    columns: AxisCut

    @property
    def boxes(self) -> int:
        """Boxes in a slab."""
        return len(self.rows.stretches) * len(self.columns.stretches)

    @property
    def exact(self) -> bool:
        """No box needs a mask."""
        return self.time.exact and self.rows.exact and self.columns.exact

    def box_area(self) -> int:
        """Queries of a box in one frame."""
        return len(self.rows.stretches[0].queries) * len(self.columns.stretches[0].queries)

    def halo_area(self) -> int:
        """Keys of a box in one frame."""
        return self.rows.stretches[0].key_count * self.columns.stretches[0].key_count

    def largest_mask(self) -> int:
        """Elements of the largest mask of a slab."""
        if self.exact:
            return 0
        frames = max(len(stretch.queries) * stretch.key_count for stretch in self.time.stretches)
        return self.boxes * self.box_area() * self.halo_area() * frames

    def cost(self, prefix: int) -> float:
        """Of one head of one sample, in query-key pairs of a large dense call."""
        calls = len(self.time.stretches)
        keys = self.boxes * (prefix * calls + self.halo_area() * self.time.keys)
        queries = len(self.time.stretches[0].queries) * self.box_area()
        return box_cost(queries, keys, calls=calls, copied=self.boxes > 1, masked=not self.exact)


def plan_boxes(spec: AttentionSpec) -> BoxPlan | str:
    """The cheapest cut of the grid, or the reason why the pattern has none."""
    if spec.sink_frames and not all(spec.axis(axis).window_covers_axis(0, spec.grid[axis] - 1) for axis in (1, 2)):
        return "sink frames are seen whole, and the boxes are windows within the frame"
    return _cheapest_plan(spec)


@lru_cache(maxsize=256)
def _cheapest_plan(spec: AttentionSpec) -> BoxPlan:
    choices = [[_cut(spec, axis, length) for length in _lengths(spec, axis)] for axis in range(3)]
    plans = [BoxPlan(*cuts) for cuts in product(*choices)]
    small = [plan for plan in plans if plan.largest_mask() <= LARGEST_MASK] or plans
    return min(small, key=lambda plan: plan.cost(spec.prefix))


def _lengths(spec: AttentionSpec, axis: int) -> list[int]:
    """The lengths to try, in steps of the dilation; never more than the shortest class of positions holds."""
    rule, size = spec.axis(axis), spec.grid[axis]
    longest = max(1, size // rule.dilation)
    if rule.window is None and not rule.causal:
        return [longest]
    groups = [multiple * group for group in (rule.granularity, rule.causal_group) for multiple in (1, 2, 4)]
    lengths = sorted({length for length in (*LENGTHS, *groups) if length < longest})
    return [length for length in lengths if size <= length * MOST_STRETCHES] + [longest]


def _cut(spec: AttentionSpec, axis: int, length: int) -> AxisCut:
    """An axis in stretches of `length` queries. Those of rows and columns get equally many keys, to share one call."""
    rule = spec.axis(axis)
    first = spec.q_frame_offset if axis == 0 else 0
    queries = []
    for residue in range(min(rule.dilation, spec.grid[axis])):
        places = range(first + residue, first + spec.grid[axis], rule.dilation)
        if axis == 0:
            queries += [places[start : start + length] for start in range(0, len(places), length)]
        else:  # the last one is moved inside and overlaps its neighbour, whose queries are then computed twice
            queries += [places[min(i, len(places) - length) :][:length] for i in range(0, len(places), length)]
    reaches = [_reach(rule, stretch) for stretch in queries]
    if axis == 0:
        stretches = [
            Stretch(places, _with_sinks(spec, rule, places, _positions(rule, places, *reach)))
            for places, reach in zip(queries, reaches)
        ]
    else:
        count = max(stop - start for start, stop in reaches)
        stretches = [
            Stretch(places, _padded(rule, places, start, count)) for places, (start, _) in zip(queries, reaches)
        ]
    sinks = spec.sink_frames if axis == 0 else 0
    return AxisCut(tuple(stretches), all(_is_exact(rule, stretch, sinks) for stretch in stretches))


def _reach(rule: AxisRule, queries: range) -> tuple[int, int]:
    """First and one past the last key that any of these queries of one class sees, in steps of the dilation."""
    first, last = queries[0], queries[-1]
    length = rule.class_length(first)
    start, stop = 0, length
    if rule.window is not None:
        start, stop = rule.window_start(first), rule.window_start(last)
        if rule.clamped:
            start, stop = (max(0, min(edge, length - rule.width)) for edge in (start, stop))
        start, stop = max(0, start), min(length, stop + rule.width)
    if rule.causal:
        last_key = (last // rule.causal_group + 1) * rule.causal_group - 1
        stop = min(stop, (last_key - first % rule.dilation) // rule.dilation + 1)
    return start, stop


def _positions(rule: AxisRule, queries: range, start: int, stop: int) -> range:
    """Steps of the class of these queries as positions."""
    residue = queries[0] % rule.dilation
    return range(residue, rule.size, rule.dilation)[start:stop]


def _padded(rule: AxisRule, queries: range, start: int, count: int) -> tuple[range, ...]:
    """`count` keys from `start` on, moved inside at the border; a class that is one short borrows a hidden key."""
    length = rule.class_length(queries[0])
    start = max(0, min(start, length - count))
    keys = _positions(rule, queries, start, start + count)
    # Only classes other than the first are short, so position 0 is of another class and the rule hides it.
    return (keys,) if len(keys) == count else (keys, range(1))


def _with_sinks(spec: AttentionSpec, rule: AxisRule, queries: range, keys: range) -> tuple[range, ...]:
    if not spec.sink_frames:
        return (keys,)
    stop = min(spec.sink_frames, rule.size)
    if rule.causal:
        stop = min(stop, (queries[-1] // rule.causal_group + 1) * rule.causal_group)
    beyond = keys[sum(position < stop for position in keys) :]
    if not beyond:
        return (range(stop),)
    if beyond[0] == stop and rule.dilation == 1:
        return (range(beyond[-1] + 1),)
    return (range(stop), beyond)


def _is_exact(rule: AxisRule, stretch: Stretch, sinks: int) -> bool:
    """Windows and pasts grow along the axis, so the first and last query and key decide."""
    return all(
        rule.in_past(query, key) and (rule.in_window(query, key) or key < sinks)
        for query in (stretch.queries[0], stretch.queries[-1])
        for keys in stretch.keys
        for key in (keys[0], keys[-1])
    )
