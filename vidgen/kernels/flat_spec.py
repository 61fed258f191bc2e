"""An `AttentionSpec` as plain integers, all that the signature of a PyTorch operator may hold."""

from functools import lru_cache
from operator import index

from vidgen.kernels.spec import AttentionSpec

EDGES = ("shrink", "clamp")
PREFIX_MODES = ("bidir", "self", "causal", "kv_only")


def numbers_of(spec: AttentionSpec) -> list[int]:
    """The spec as a list of integers; torch.compile can trace this. `spec_of` reads it back."""
    windows = [side for window in spec.window for side in (window or (-1, -1))]
    kv_frames = -1 if spec.kv_frames is None else spec.kv_frames
    triples = [*spec.grid, *windows, *spec.granularity, *spec.dilation, *spec.shift, *map(int, spec.causal)]
    choices = [EDGES.index(spec.edge), PREFIX_MODES.index(spec.prefix_mode)]
    return [*triples, *choices, spec.causal_group, spec.prefix, spec.sink_frames, spec.q_frame_offset, kv_frames]


def constants_of(spec: AttentionSpec) -> tuple[int, ...]:
    """`numbers_of` for functions whose results torch.compile takes for constants: sizes that it kept open get fixed."""
    return tuple([index(number) for number in numbers_of(spec)])


@lru_cache(maxsize=256)
def spec_of(numbers: tuple[int, ...]) -> AttentionSpec:
    """The inverse of `numbers_of`."""
    grid, granularity, dilation, shift, causal = (
        (numbers[i], numbers[i + 1], numbers[i + 2]) for i in (0, 9, 12, 15, 18)
    )
    time, height, width = (None if numbers[i] < 0 else (numbers[i], numbers[i + 1]) for i in (3, 5, 7))
    edge, prefix_mode, causal_group, prefix, sink_frames, q_frame_offset, kv_frames = numbers[21:]
    return AttentionSpec(
        grid=grid,
        window=(time, height, width),
        granularity=granularity,
        dilation=dilation,
        shift=shift,
        causal=(bool(causal[0]), bool(causal[1]), bool(causal[2])),
        edge=EDGES[edge],
        prefix_mode=PREFIX_MODES[prefix_mode],
        causal_group=causal_group,
        prefix=prefix,
        sink_frames=sink_frames,
        q_frame_offset=q_frame_offset,
        kv_frames=None if kv_frames < 0 else kv_frames,
    )
