"""Which tokens mix in each layer of a diffusion transformer: one small class for each published layout."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from torch import nn

from vidgen.generators.patches import Grid
from vidgen.kernels import AttentionSpec
from vidgen.nn.mixers import LinearCostMixer, ScanAndWindow, SequentialAttention, SharedOutHeads, TwoPatterns
from vidgen.nn.transformer import Attention


@dataclass(frozen=True, kw_only=True)
class Layout(ABC):
    """`mixer` is the class of the mixing layer, `pattern` what that layer is told for one grid."""

    mixer: ClassVar[type[nn.Module]] = Attention
    needs_grid: ClassVar[bool] = True

    @abstractmethod
    def pattern(self, grid: Grid, layer: int, layers: int) -> Any:
        """Of layer number `layer` of `layers` on (t, h, w) tokens."""


class Full(Layout):
    """Every token sees every token."""

    needs_grid: ClassVar[bool] = False

    def pattern(self, grid: Grid, layer: int, layers: int) -> AttentionSpec:
        return AttentionSpec.sequence(grid[0] * grid[1] * grid[2])


class Interleaved(Layout):
    """Within frames and along time in turn (Latte's variant 1)."""

    def pattern(self, grid: Grid, layer: int, layers: int) -> AttentionSpec:
        return spatial(grid) if layer % 2 == 0 else temporal(grid)


class LateFusion(Layout):
    """Within frames in the first half of the layers, along time in the second (Latte's variant 2)."""

    def pattern(self, grid: Grid, layer: int, layers: int) -> AttentionSpec:
        return spatial(grid) if layer < layers // 2 else temporal(grid)


@dataclass(frozen=True, kw_only=True)
class Sequential(Layout):
    """Within frames, then along time, in each layer (Latte's variant 3); the other way round in VDT."""

    mixer: ClassVar[type[nn.Module]] = SequentialAttention
    temporal_first: bool = False

    def pattern(self, grid: Grid, layer: int, layers: int) -> TwoPatterns:
        if self.temporal_first:
            return TwoPatterns(temporal(grid), spatial(grid))
        return TwoPatterns(spatial(grid), temporal(grid))


class ParallelHeads(Layout):
    """Half of the heads within frames, the others along time (Latte's variant 4)."""

    mixer: ClassVar[type[nn.Module]] = SharedOutHeads

    def pattern(self, grid: Grid, layer: int, layers: int) -> TwoPatterns:
        return TwoPatterns(spatial(grid), temporal(grid))


@dataclass(frozen=True, kw_only=True)
class Windows(Layout):
    """Separate windows, smaller at ragged borders, moved by half a window in every second layer (SeedVR)."""

    window: Grid = (4, 8, 8)
    shifted: bool = True

    def pattern(self, grid: Grid, layer: int, layers: int) -> AttentionSpec:
        return AttentionSpec.swin3d(grid, self.window, shifted=self.shifted and layer % 2 == 1)


@dataclass(frozen=True, kw_only=True)
class FrameCausal(Layout):
    """Each group of frames sees itself and what came before (ViD-GPT; groups: CausVid).

    Args:
        group: frames that see each other.
        past_frames: how many frames back a group sees; `None` = all. Then memory is constant in long videos.
        sink_frames: these first frames are seen all the same.
    """

    group: int = 1
    past_frames: int | None = None
    sink_frames: int = 0

    def __post_init__(self) -> None:
        for name, frames in (("past_frames", self.past_frames or 0), ("sink_frames", self.sink_frames)):
            if frames % self.group:
                raise ValueError(f"{name} {frames} must be a multiple of the {self.group} frames of a group")
        if self.sink_frames and self.past_frames is None:
            raise ValueError("sink_frames does nothing where all past frames are seen; give past_frames as well")

    def pattern(self, grid: Grid, layer: int, layers: int) -> AttentionSpec:
        if self.past_frames is None:
            return AttentionSpec.frame_causal(grid, group=self.group)
        return AttentionSpec.frame_causal_window(grid, self.past_frames, group=self.group, sink_frames=self.sink_frames)

    def next_frames(self, grid: Grid, remembered: int) -> AttentionSpec:
        """The rows of the pattern for the `grid[0]` frames that follow those in a cache."""
        frames = remembered + grid[0]
        whole = self.pattern((frames, grid[1], grid[2]), 0, 1)
        return replace(whole, grid=grid, q_frame_offset=remembered, kv_frames=frames)


@dataclass(frozen=True, kw_only=True)
class LinearCost(Layout):
    """A state-space scan whose order changes from layer to layer, and windows beside it (LinGen's MATE).

    Args:
        review: (t, h, w) of the coarse grid of review tokens, which the scan reads first; `None` = none.
    """

    mixer: ClassVar[type[nn.Module]] = LinearCostMixer
    window: Grid = (8, 4, 4)
    review: Grid | None = None

    def pattern(self, grid: Grid, layer: int, layers: int) -> ScanAndWindow:
        window = AttentionSpec.swin3d(grid, self.window, shifted=layer % 2 == 1)
        return ScanAndWindow(grid, layer, window, self.review)


LAYOUTS: dict[str, type[Layout]] = {
    "full": Full,
    "interleaved": Interleaved,
    "late-fusion": LateFusion,
    "sequential": Sequential,
    "parallel-heads": ParallelHeads,
    "windows": Windows,
    "frame-causal": FrameCausal,
    "linear": LinearCost,
}


def layout_named(name: str, options: dict[str, Any] | None) -> Layout:
    """The layout of a configuration; ValueError for unknown names and options, with those that exist."""
    if name not in LAYOUTS:
        raise ValueError(f"attention must be one of {', '.join(LAYOUTS)}, got {name!r}")
    known = [field.name for field in fields(LAYOUTS[name])]
    unknown = sorted(set(options or {}) - set(known))
    if unknown:
        raise ValueError(f"attention {name!r} takes {known or 'no options'}, got {unknown} in attention_options")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in (options or {}).items()}
    return LAYOUTS[name](**given)


def spatial(grid: Grid) -> AttentionSpec:
    return AttentionSpec.factorised_spatial(grid)


def temporal(grid: Grid) -> AttentionSpec:
    return AttentionSpec.factorised_temporal(grid)
