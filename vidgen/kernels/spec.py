"""`AttentionSpec`: one frozen description of every 3D attention pattern, and the one integer rule that defines it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from vidgen.kernels.axis import AxisRule
from vidgen.kernels.checks import check_spec, check_tiles, check_triple, check_window

Triple = tuple[int, int, int]
Window = tuple[int, int] | None
PrefixMode = Literal["bidir", "self", "causal", "kv_only"]
Edge = Literal["shrink", "clamp"]

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """Which keys each query may see: an optional text prefix in front of a (time, height, width) grid of tokens.

    Queries are ordered prefix first, then the grid in raster order (time slowest); keys likewise. A grid query always
    sees all prefix keys and itself. Positions on the time axis are absolute frames of the key grid.
    Ideas: generalised neighbourhood attention (arXiv 2504.16922) for window, granularity, dilation and causality per
    axis; prefix, causal groups, shift, sinks and the query offset are what it lacks.
    """

    grid: Triple
    """Frames, rows, columns of the queries; also of the keys unless `kv_frames` says otherwise."""
    window: tuple[Window, Window, Window] = (None, None, None)
    """Per axis: None = the whole axis, or (left, right) = tokens visible before and after the query's own group.
    Where windows are cut at the border they may be larger than the axis and then show all of it: a model with a fixed
    window also takes clips and first chunks of a stream that are shorter. Where they are moved inside, they must fit.
    """
    granularity: Triple = (1, 1, 1)
    """Queries in a group of this size share one window: 1 token exact, a tile (sliding tile), a whole window (Swin)."""
    dilation: Triple = (1, 1, 1)
    """A query sees only keys whose distance is a multiple of this; the window is counted in such steps."""
    shift: Triple = (0, 0, 0)
    """Where the first group border lies; the short groups at the borders stay short (nothing wraps around)."""
    edge: Edge = "shrink"
    """At the border a window is cut ("shrink") or moved inside ("clamp"). Causal axes always cut."""
    causal: tuple[bool, bool, bool] = (False, False, False)
    """Per axis: keys after the query are hidden. (True, False, False) is frame-block-causal."""
    causal_group: int = 1
    """Frames per causal block: frames of one block see each other."""
    prefix: int = 0
    """Number of text tokens in front."""
    prefix_mode: PrefixMode = "bidir"
    """What prefix queries see: "bidir" everything, "self" the prefix, "causal" the prefix up to themselves;
    "kv_only": the prefix is given as keys only and has no queries."""
    sink_frames: int = 0
    """These first frames are visible to every query whatever the windows say (causality still holds)."""
    q_frame_offset: int = 0
    """Decoding with a cache: the queries are frames [offset, offset + grid[0]) of the key grid."""
    kv_frames: int | None = None
    """Frames in the key grid; None = grid[0]."""

    def __post_init__(self) -> None:
        check_spec(self)

    # ------------------------------------------------------------------------------------------------ constructors

    @classmethod
    def full(cls, grid: Triple, prefix: int = 0) -> "AttentionSpec":
        """Every token sees every token."""
        return cls(grid=grid, prefix=prefix)

    @classmethod
    def sequence(cls, n: int, causal: bool = False, *, prefix: int = 0) -> "AttentionSpec":
        """n tokens in a row, as a grid of n frames of one token; with `causal` the usual language-model mask.

        A prefix sees only itself when causal ("self"), everything otherwise.
        """
        mode: PrefixMode = "self" if causal else "bidir"
        return cls(grid=(n, 1, 1), causal=(causal, False, False), prefix=prefix, prefix_mode=mode)

    @classmethod
    def factorised_spatial(cls, grid: Triple, *, prefix: int = 0) -> "AttentionSpec":
        """Attention within each frame (ViViT, Latte, C-ViViT)."""
        return cls(grid=grid, window=((0, 0), None, None), prefix=prefix)

    @classmethod
    def factorised_temporal(cls, grid: Triple, *, causal: bool = False, prefix: int = 0) -> "AttentionSpec":
        """Attention along time at each place (ViViT, Latte; causal in C-ViViT and OmniTokenizer)."""
        mode: PrefixMode = "self" if causal else "bidir"
        window = (None, (0, 0), (0, 0))
        return cls(grid=grid, window=window, causal=(causal, False, False), prefix=prefix, prefix_mode=mode)

    @classmethod
    def swin3d(cls, grid: Triple, window: Triple, *, shifted: bool = False, prefix: int = 0) -> "AttentionSpec":
        """Separate windows (Video Swin, arXiv 2106.13230), with `shifted` moved by half a window, rounded down.

        Windows at the borders are as large as the border leaves them (SeedVR, arXiv 2501.01320): nothing wraps around
        and nothing is padded, so any grid will do, also one smaller than the window: an axis no longer than its window
        is one window and is not shifted.
        """
        check_triple("window", window, smallest=1)
        shift = _each_axis(lambda axis: window[axis] // 2 if shifted and window[axis] < grid[axis] else 0)
        return cls(grid=grid, window=((0, 0), (0, 0), (0, 0)), granularity=window, shift=shift, prefix=prefix)

    @classmethod
    def swapped_window(cls, grid: Triple, window: Triple, *, shifted: bool = False) -> "AttentionSpec":
        """Separate windows between two streams on one grid (VideoFactory's swapped attention, arXiv 2305.10874).

        Give `attention3d` the queries of one stream and the keys and values of the other; layers take turns in which.
        The pattern is that of `swin3d`, but a query finds no key of its own stream.
        """
        return cls.swin3d(grid, window, shifted=shifted)

    @classmethod
    def neighborhood(
        cls,
        grid: Triple,
        window: tuple[int | None, int | None, int | None],
        *,
        causal: tuple[bool, bool, bool] = (False, False, False),
        edge: Edge = "clamp",
        prefix: int = 0,
        prefix_mode: PrefixMode = "bidir",
    ) -> "AttentionSpec":
        """A window of `window` tokens around each query (NAT, NATTEN), before it on causal axes; None = the whole axis.

        An even window has one token more before the query than after it, as in NATTEN. A window larger than the grid
        is a ValueError where "clamp" would have to move it inside; causal axes and "shrink" cut it (`window`).
        """
        return cls.dilated_neighborhood(
            grid, window, dilation=(1, 1, 1), causal=causal, edge=edge, prefix=prefix, prefix_mode=prefix_mode
        )

    @classmethod
    def dilated_neighborhood(
        cls,
        grid: Triple,
        window: tuple[int | None, int | None, int | None],
        *,
        dilation: Triple,
        causal: tuple[bool, bool, bool] = (False, False, False),
        edge: Edge = "clamp",
        prefix: int = 0,
        prefix_mode: PrefixMode = "bidir",
    ) -> "AttentionSpec":
        """A neighbourhood whose tokens are `dilation` apart (DiNAT); None = the whole axis at that distance."""
        check_window(window)
        sides = _each_axis(lambda axis: _sides(window[axis], causal[axis]))
        return cls(
            grid=grid, window=sides, dilation=dilation, causal=causal, edge=edge, prefix=prefix, prefix_mode=prefix_mode
        )

    @classmethod
    def sliding_tile(
        cls, grid: Triple, window: Triple, *, tile: Triple, edge: Edge = "clamp", prefix: int = 0
    ) -> "AttentionSpec":
        """All queries of a tile share a window of whole tiles (FastVideo STA, GNA with stride = tile).

        `window` is in tokens, an odd number of tiles along each axis. With edge "clamp" every query sees equally many
        keys, which needs a grid of whole tiles that holds the window; "shrink" takes any grid.
        """
        check_tiles(grid, window, tile, edge)
        reach = _each_axis(lambda axis: window[axis] // tile[axis] // 2 * tile[axis])
        sides = _each_axis(lambda axis: (reach[axis], reach[axis]))
        return cls(grid=grid, window=sides, granularity=tile, edge=edge, prefix=prefix)

    @classmethod
    def frame_causal(
        cls, grid: Triple, *, group: int = 1, prefix: int = 0, prefix_mode: PrefixMode = "self"
    ) -> "AttentionSpec":
        """Each frame sees itself and the frames before it (C-ViViT, ViD-GPT); `group` frames at a time (CausVid)."""
        causal = (True, False, False)
        return cls(grid=grid, causal=causal, causal_group=group, prefix=prefix, prefix_mode=prefix_mode)

    @classmethod
    def frame_causal_window(
        cls,
        grid: Triple,
        past_frames: int,
        *,
        group: int = 1,
        sink_frames: int = 0,
        prefix: int = 0,
        prefix_mode: PrefixMode = "self",
    ) -> "AttentionSpec":
        """Each group of frames sees itself, `past_frames` frames before it and the first `sink_frames` frames.

        Clips with fewer frames than that are allowed: a stream begins with them, and they see all of their past.
        """
        return cls(
            grid=grid,
            window=((past_frames, 0), None, None),
            granularity=(group, 1, 1),  # one window for the whole group, or its first frames would not see its last
            causal=(True, False, False),
            causal_group=group,
            sink_frames=sink_frames,
            prefix=prefix,
            prefix_mode=prefix_mode,
        )

    def decode(self, frames: int, *, offset: int) -> "AttentionSpec":
        """The rows of this causal pattern for frames [offset, offset + frames), against keys [0, offset + frames).

        With a prefix, its keys come from the cache in front (`prefix_mode` becomes "kv_only"). For token-by-token
        decoding use it on `sequence(n, causal=True)`, where each token is a frame.
        """
        if not self.causal[0]:
            raise ValueError("decode needs a pattern that is causal in time; this one lets frames see later frames")
        if self.causal_group > 1 and (offset % self.causal_group or frames % self.causal_group):
            raise ValueError(
                f"decode takes whole causal groups of {self.causal_group} frames, got offset {offset}, {frames} frames"
            )
        return replace(
            self,
            grid=(frames, *self.grid[1:]),
            q_frame_offset=offset,
            kv_frames=offset + frames,
            prefix_mode="kv_only" if self.prefix else self.prefix_mode,
        )

    # ------------------------------------------------------------------------------------------------ the rule

    def axis(self, axis: int) -> AxisRule:
        """The rule along time (0), height (1) or width (2)."""
        return AxisRule(
            size=self.kv_grid[axis],
            window=self.window[axis],
            granularity=self.granularity[axis],
            dilation=self.dilation[axis],
            shift=self.shift[axis],
            clamped=self.edge == "clamp" and self.window[axis] is not None and not self.causal[axis],
            causal=self.causal[axis],
            causal_group=self.causal_group if axis == 0 else 1,
        )

    def allowed(self, query: tuple[Any, Any, Any], key: tuple[Any, Any, Any]) -> Any:
        """Whether `query` sees `key`: the single truth, from which masks, block lists and kernels derive.

        Both are (time, row, column) as `query_coordinates` and `key_coordinates` give them: integers or broadcastable
        integer tensors. Prefix tokens have negative times.
        """
        past, near = query[0] == query[0], query[0] == query[0]
        for axis in range(3):
            rule = self.axis(axis)
            past = past & rule.in_past(query[axis], key[axis])
            near = near & rule.in_window(query[axis], key[axis])
        grid_sees_grid = past & (near | (key[0] < self.sink_frames))

        prefix_sees_grid = self.prefix_mode == "bidir"
        prefix_sees_prefix = key[0] < 0
        if self.prefix_mode == "causal":
            prefix_sees_prefix = self._linear(key) <= self._linear(query)

        key_in_prefix = (key[0] < 0) & ((query[0] >= 0) | prefix_sees_prefix)
        key_in_grid = (key[0] >= 0) & (((query[0] >= 0) & grid_sees_grid) | ((query[0] < 0) & prefix_sees_grid))
        return key_in_prefix | key_in_grid

    def query_coordinates(self, index: Any) -> tuple[Any, Any, Any]:
        """(time, row, column) of query number `index`; prefix token p sits at linear position p - prefix < 0."""
        time, row, column = self._coordinates(index - self.query_prefix)
        return time + self.q_frame_offset * (time >= 0), row, column

    def key_coordinates(self, index: Any) -> tuple[Any, Any, Any]:
        """(time, row, column) of key number `index`; prefix token p sits at linear position p - prefix < 0."""
        return self._coordinates(index - self.prefix)

    def _coordinates(self, position: Any) -> tuple[Any, Any, Any]:
        _, height, width = self.grid
        return position // (height * width), position // width % height, position % width

    def _linear(self, coordinates: tuple[Any, Any, Any]) -> Any:
        time, row, column = coordinates
        return (time * self.grid[1] + row) * self.grid[2] + column

    # ------------------------------------------------------------------------------------------------ derived

    @property
    def kv_grid(self) -> Triple:
        """Frames, rows, columns of the keys."""
        frames = self.grid[0] if self.kv_frames is None else self.kv_frames
        return (frames, self.grid[1], self.grid[2])

    @property
    def query_prefix(self) -> int:
        """Prefix tokens among the queries."""
        return 0 if self.prefix_mode == "kv_only" else self.prefix

    @property
    def num_queries(self) -> int:
        """Length of q that `attention3d` expects."""
        return self.query_prefix + self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def num_keys(self) -> int:
        """Length of k and v that `attention3d` expects."""
        return self.prefix + self.kv_grid[0] * self.kv_grid[1] * self.kv_grid[2]

    @property
    def grid_sees_grid(self) -> bool:
        """True when every grid query sees every grid key, whatever fields say so. O(1)."""
        windows_bypassed = self.sink_frames >= self.kv_grid[0]
        for axis in range(3):
            rule = self.axis(axis)
            first = self.q_frame_offset if axis == 0 else 0
            if not rule.past_covers_axis(first):
                return False
            if not windows_bypassed and not rule.window_covers_axis(first, first + self.grid[axis] - 1):
                return False
        return True

    @property
    def sees_everything(self) -> bool:
        """True when no query is denied any key: plain dense attention. O(1)."""
        return self.grid_sees_grid and (self.query_prefix == 0 or self.prefix_mode == "bidir")

    @property
    def is_linear_causal(self) -> bool:
        """True for the lower-triangular mask over all tokens (a causal sequence, a causal prefix or none). O(1)."""
        return (
            self.causal[0]
            and self.causal_group == 1
            and self.grid[1:] == (1, 1)
            and self.window == (None, None, None)
            and self.dilation == (1, 1, 1)
            and self.q_frame_offset == 0
            and self.kv_grid == self.grid
            and (self.prefix == 0 or self.prefix_mode == "causal")
        )

    def dense_mask(self, device: torch.device | str = "cpu") -> Tensor:
        """Boolean mask (num_queries, num_keys), True = visible."""
        if self.query_prefix:
            query = torch.arange(self.num_queries, device=device)[:, None]
            key = torch.arange(self.num_keys, device=device)[None, :]
            top = self.allowed(self.query_coordinates(query[: self.query_prefix]), self.key_coordinates(key))
            return torch.cat([top, replace(self, prefix_mode="kv_only").dense_mask(device)])
        # Broadcasting the axes keeps all but the last few operations small: no N x N integers are ever made.
        query_axes = [torch.arange(size, device=device) for size in self.grid]
        key_axes = [torch.arange(size, device=device) for size in self.kv_grid]
        query_axes[0] = query_axes[0] + self.q_frame_offset
        queries = tuple(values.reshape(_axis_shape(axis)) for axis, values in enumerate(query_axes))
        keys = tuple(values.reshape(_axis_shape(axis + 3)) for axis, values in enumerate(key_axes))
        mask = self.allowed(queries, keys).expand(*self.grid, *self.kv_grid)  # type: ignore[arg-type]
        mask = mask.reshape(self.num_queries, self.num_keys - self.prefix)
        return torch.cat([mask.new_ones(self.num_queries, self.prefix), mask], dim=1)

    def mask_mod(self) -> Any:
        """The rule as a FlexAttention `mask_mod(batch, head, query_index, key_index)`."""

        def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return self.allowed(self.query_coordinates(query), self.key_coordinates(key))

        return visible

    def pairs(self) -> int:
        """Number of visible (query, key) pairs, counted along the axes without building a mask."""

        def total(axis: int, *, windowed: bool, below: int | None = None) -> int:
            rule = self.axis(axis)
            first = self.q_frame_offset if axis == 0 else 0
            below = rule.size if below is None else below
            return sum(rule.count(first + i, below=below, windowed=windowed) for i in range(self.grid[axis]))

        space = total(1, windowed=True) * total(2, windowed=True)
        grid_pairs = total(0, windowed=True) * space
        if self.sink_frames:
            sink_space = total(1, windowed=False) * total(2, windowed=False)
            grid_pairs += total(0, windowed=False, below=self.sink_frames) * sink_space
            grid_pairs -= total(0, windowed=True, below=self.sink_frames) * space  # counted in both
        grid_queries = self.num_queries - self.query_prefix
        seen_by_prefix = {
            "bidir": self.prefix * self.num_keys,
            "self": self.prefix * self.prefix,
            "causal": self.prefix * (self.prefix + 1) // 2,
            "kv_only": 0,
        }
        return grid_pairs + grid_queries * self.prefix + seen_by_prefix[self.prefix_mode]

    def density(self) -> float:
        """Visible pairs as a share of all pairs, in (0, 1]."""
        return self.pairs() / (self.num_queries * self.num_keys)

    def flops(self, heads: int, head_dim: int) -> int:
        """Floating-point operations of one forward pass for one sample: 4 · visible pairs · heads · head_dim."""
        return 4 * self.pairs() * heads * head_dim

    def explain(self) -> str:
        """What the pattern is, in a few lines of text."""
        settings = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in fields(self)
            if field.name != "grid" and getattr(self, field.name) != field.default
        ]
        frames, height, width = self.kv_grid
        return "\n".join(
            [
                ", ".join([f"grid {'x'.join(map(str, self.grid))}", *(settings or ["full attention"])]),
                f"{self.num_queries} queries, {self.num_keys} keys ({self.prefix} prefix + {frames}x{height}x{width})",
                f"visible pairs {self.pairs()} = {self.density():.2%} of dense",
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "AttentionSpec":
        """The inverse of `to_dict`, also after JSON has turned the tuples into lists."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown AttentionSpec fields {unknown}; known are {sorted(known)}")
        return cls(**{name: _tuples(value) for name, value in values.items()})


def _each_axis(value: Callable[[int], Item]) -> tuple[Item, Item, Item]:
    return value(0), value(1), value(2)


def _axis_shape(axis: int) -> list[int]:
    return [-1 if other == axis else 1 for other in range(6)]


def _sides(size: int | None, causal: bool) -> Window:
    if size is None:
        return None
    return (size - 1, 0) if causal else (size // 2, (size - 1) // 2)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value
