"""The visibility rule along one axis of the grid: which keys a query position may see, in integer arithmetic only.

Every method that takes positions uses nothing but `+ - * // %`, comparisons, `&` and `|`, so the same expression serves
Python integers, numpy arrays and torch tensors (a FlexAttention `mask_mod` included). No min, max or where: a clamped
window is written as a union of comparisons instead.
"""

from dataclasses import dataclass
from typing import Any

AXES = ("time", "height", "width")


@dataclass(frozen=True, kw_only=True)
class AxisRule:
    """One axis of an `AttentionSpec`; `size` is the number of key positions. Fields as in `AttentionSpec`."""

    size: int
    window: tuple[int, int] | None
    granularity: int
    dilation: int
    shift: int
    clamped: bool
    causal: bool
    causal_group: int

    @property
    def width(self) -> int:
        """Keys in an uncut window, counted in steps of the dilation; only meaningful with a window."""
        assert self.window is not None
        return self.window[0] + self.granularity + self.window[1]

    def window_start(self, query: Any) -> Any:
        """First key of the uncut window of `query`, in steps of the dilation; may lie before the border."""
        assert self.window is not None
        # With a shift s the group borders lie at s, s + g, s + 2g …; the first group is the short one before s.
        offset = (self.granularity - self.shift) % self.granularity
        group_start = (query // self.dilation + offset) // self.granularity * self.granularity - offset
        return group_start - self.window[0]

    def class_length(self, query: Any) -> Any:
        """Number of keys in the residue class of `query` modulo the dilation."""
        return (self.size - query % self.dilation + self.dilation - 1) // self.dilation

    def in_window(self, query: Any, key: Any) -> Any:
        """Window, granularity, dilation, shift and edge; apart from causality because sinks bypass only this."""
        same_class = (key - query) % self.dilation == 0
        if self.window is None:
            return same_class
        start = self.window_start(query)
        step = key // self.dilation
        if not self.clamped:
            return same_class & (step >= start) & (step < start + self.width)
        # start' = max(0, min(start, length - width)) and start' <= step < start' + width, written as comparisons
        last_start = self.class_length(query) - self.width
        after_start = (step >= start) | (step >= last_start)
        before_stop = (step < start + self.width) | (step < self.width)
        return same_class & after_start & before_stop

    def in_past(self, query: Any, key: Any) -> Any:
        """True where causality allows the key."""
        if not self.causal:
            return key == key
        return key // self.causal_group <= query // self.causal_group

    def window_covers_axis(self, first_query: int, last_query: int) -> bool:
        """True when every query in [first_query, last_query] has every key of the axis in its window. O(1)."""
        if self.size > 1 and self.dilation > 1:
            return False
        if self.window is None:
            return True
        if self.clamped:
            return self.width == self.size
        # the window's start grows with the query, so the two ends decide
        return self.window_start(last_query) <= 0 and self.window_start(first_query) + self.width >= self.size

    def past_covers_axis(self, first_query: int) -> bool:
        """True when causality hides no key from any query at or after `first_query`. O(1)."""
        return not self.causal or (self.size - 1) // self.causal_group <= first_query // self.causal_group

    def count(self, query: int, *, below: int, windowed: bool) -> int:
        """Number of keys under `below` that the query sees, with or without the window rule. O(1)."""
        last_key = min(below, self.size) - 1
        if self.causal:
            last_key = min(last_key, (query // self.causal_group + 1) * self.causal_group - 1)
        if not windowed:
            return max(0, last_key + 1)
        # floor division: a last_key below the residue gives -1, an empty range
        last_step = (last_key - query % self.dilation) // self.dilation
        if self.window is None:
            return max(0, last_step + 1)
        start = self.window_start(query)
        if self.clamped:
            start = max(0, min(start, self.class_length(query) - self.width))
        return max(0, min(last_step, start + self.width - 1) - max(0, start) + 1)
