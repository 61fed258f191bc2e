"""What an attention call costs on a CPU, in one unit: the query-key pairs of a large dense call without a mask.

The constants are fitted to PyTorch's fused CPU attention in float32 with heads of 64 channels on one core
(`eval/attention_cpu.py` measures what they predict). Only ratios are used, and only to choose between backends.
"""

from math import prod

from vidgen.kernels.spec import AttentionSpec
from vidgen.kernels.windows import WindowBatch

# A call on few queries reads its keys and values for so many more.
SHORT_CALL = 18
# Copying the keys and values of a box, and adding their gradients back, costs as much as so many more queries.
COPY = 14
# An additive mask makes a pair dearer; a boolean one is turned into an additive one first.
MASKED = 1.1
BOOLEAN_MASKED = 1.25
# Starting the calls of a slab of frames, copying around them included: about 100 microseconds, shared by a few heads.
CALL = 8_000


def box_cost(queries: int, keys: int, *, calls: int, copied: bool, masked: bool) -> float:
    """Boxes of `queries` queries each, which see `keys` keys in all, in so many calls."""
    pairs = queries * (MASKED if masked else 1.0)
    return calls * CALL + keys * (pairs + SHORT_CALL + (COPY if copied else 0))


def dense_cost(queries: int, keys: int, *, masked: bool) -> float:
    """One call over everything."""
    return keys * (queries * (BOOLEAN_MASKED if masked else 1.0) + SHORT_CALL)


def windows_cost(spec: AttentionSpec, windows: tuple[WindowBatch, ...]) -> float:
    """Separate windows, each an attention of its own over its tokens and the prefix."""
    cost = 0.0
    for batch in windows:
        whole = [batch.count[axis] == 1 and batch.size[axis] == spec.grid[axis] for axis in range(3)]
        seen = prod(spec.kv_grid[axis] if whole[axis] else batch.size[axis] for axis in range(3))
        cost += CALL + prod(batch.count) * (spec.prefix + seen) * (prod(batch.size) + SHORT_CALL)
    return cost
