"""Charts as SVG text, small enough to stand in a page: curves over a rate, and values with their intervals."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

COLOURS = ("#0b6bcb", "#d1495b", "#2e8b57", "#b8860b", "#6a4c93", "#00798c", "#8d5524", "#5c677d")
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 16, 44
FONT = 'font-family="system-ui, sans-serif" font-size="12"'


class Series(NamedTuple):
    """Points (x, y) of one curve; a dashed one shows the same thing as its neighbour under another convention."""

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False
    colour: int = 0


class Whisker(NamedTuple):
    """A value and its interval, which may be missing."""

    name: str
    value: float
    low: float | None
    high: float | None


def curve_chart(series: Sequence[Series], *, x_label: str, y_label: str, width: int = 560, height: int = 360) -> str:
    """Curves over a logarithmic x, with a legend. ValueError without points or for an x that is not above 0."""
    points = [point for one in series for point in one.points]
    if not points or min(x for x, _ in points) <= 0:
        raise ValueError(f"expected points with x above 0, got {points[:3]}")
    low, high = (math.log10(bound(x for x, _ in points)) for bound in (min, max))
    margin = 0.05 * (high - low) or 0.1
    x_ticks = _log_ticks(low - margin, high + margin)
    y_ticks = _ticks(min(y for _, y in points), max(y for _, y in points))

    def x_of(x: float) -> float:
        return LEFT + (math.log10(x) - low + margin) / (high - low + 2 * margin) * (width - LEFT - RIGHT)

    def y_of(y: float) -> float:
        return height - BOTTOM - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (height - TOP - BOTTOM)

    parts = [
        _line(LEFT, y_of(y), width - RIGHT, y_of(y)) + _text(LEFT - 8, y_of(y) + 4, f"{y:.5g}", "end") for y in y_ticks
    ]
    parts += [
        _line(x_of(x), TOP, x_of(x), height - BOTTOM) + _text(x_of(x), height - BOTTOM + 16, f"{x:g}", "middle")
        for x in x_ticks
    ]
    parts.append(_text((LEFT + width - RIGHT) / 2, height - 8, x_label, "middle"))
    middle = (TOP + height - BOTTOM) / 2
    parts.append(f'<g transform="translate(14 {middle:.0f}) rotate(-90)">{_text(0, 0, y_label, "middle")}</g>')
    for one in series:
        colour = COLOURS[one.colour % len(COLOURS)]
        placed = [(x_of(x), y_of(y)) for x, y in sorted(one.points)]
        dash = ' stroke-dasharray="5 4"' if one.dashed else ""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        fill = "white" if one.dashed else colour
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{colour}"/>' for x, y in placed]
    for row, one in enumerate(series):
        y = height - BOTTOM - 12 - 16 * (len(series) - 1 - row)
        colour = COLOURS[one.colour % len(COLOURS)]
        fill = "white" if one.dashed else colour
        parts.append(f'<circle cx="{width - RIGHT - 10}" cy="{y - 4}" r="4" fill="{fill}" stroke="{colour}"/>')
        parts.append(_text(width - RIGHT - 20, y, one.name, "end"))
    return _svg(parts, width, height, label=f"{y_label} over {x_label}")


def interval_chart(rows: Sequence[Whisker], *, label: str, width: int = 560) -> str:
    """A dot and a whisker a row, names on the left; wider than ``width`` where long names would leave too little."""
    height = TOP + 26 * len(rows) + BOTTOM
    names = 8 + 7 * max(len(row.name) for row in rows)
    width = max(width, names + 400 + RIGHT)
    bounds = [bound for row in rows for bound in (row.value, row.low, row.high) if bound is not None]
    ticks = _ticks(min(bounds), max(bounds))

    def x_of(x: float) -> float:
        return names + (x - ticks[0]) / (ticks[-1] - ticks[0]) * (width - names - RIGHT)

    parts = [
        _line(x_of(x), TOP, x_of(x), height - BOTTOM) + _text(x_of(x), height - BOTTOM + 16, f"{x:.5g}", "middle")
        for x in ticks
    ]
    parts.append(_text((names + width - RIGHT) / 2, height - 8, label, "middle"))
    for number, row in enumerate(rows):
        y, colour = TOP + 26 * number + 13, COLOURS[number % len(COLOURS)]
        parts.append(_text(names - 8, y + 4, row.name, "end"))
        if row.low is not None and row.high is not None:
            parts.append(_line(x_of(row.low), y, x_of(row.high), y, stroke=colour, thickness=2))
        parts.append(f'<circle cx="{x_of(row.value):.1f}" cy="{y}" r="5" fill="{colour}"/>')
    return _svg(parts, width, height, label=label)


def stacked(charts: Sequence[str], *, width: int = 560, height: int = 360) -> str:
    """Several charts of one size below each other, as one SVG document."""
    parts = [f'<g transform="translate(0 {height * row})">{chart}</g>' for row, chart in enumerate(charts)]
    return _svg(parts, width, height * len(charts), label="charts")


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers that embrace the range."""
    span = (high - low) or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if factor * step >= span / 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between 10**low and 10**high; the range itself where it holds fewer than two."""
    candidates = [digit * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for digit in (1, 2, 5)]
    inside = [tick for tick in candidates if low <= math.log10(tick) <= high]
    return (
        inside
        if len(inside) >= 2
        else [float(f"{10**end:.2g}") for end in (low + (high - low) / 4, high - (high - low) / 4)]
    )


def _line(x1: float, y1: float, x2: float, y2: float, *, stroke: str = "#ddd", thickness: int = 1) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{stroke}" stroke-width="{thickness}"/>'
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#333">{escape(text)}</text>'


def _svg(parts: Sequence[str], width: int, height: int, *, label: str) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    head += f' role="img" aria-label="{escape(label)}" {FONT}>'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>\n"])
