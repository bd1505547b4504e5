"""Three small charts as inline SVG: lines over steps, dots with intervals, dots for each class.

Charts are 360 units wide (small ones less), so that their text stays readable at the width of a telephone. Colours
are CSS classes of the page (`teacher`, `plain`, `s1` … `s5`), so that both themes hold. All text is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

from limbeck.report import numbers

__all__ = ["Interval", "Line", "Point", "class_chart", "interval_chart", "line_chart", "mean_line", "thin", "ticks"]

Point = tuple[float, float]

WIDTH = 360.0


class Line(NamedTuple):
    """One arm of a line chart: a thin line for each seed, and a strong one for their mean."""

    name: str
    style: str
    seeds: Sequence[Sequence[Point]]


class Interval(NamedTuple):
    """One row of an interval chart. Without bounds only the dot is drawn; `said` is written at the right."""

    name: str
    style: str
    mean: float
    low: float | None
    high: float | None
    said: str


def line_chart(
    lines: Sequence[Line], *, title: str, fraction: bool = False, points: int = 200, width: float = WIDTH
) -> str:
    """Lines over epochs or steps, with grid, ticks, each seed thin and their mean strong; empty without points.

    Args:
        lines: the arms; points whose values are missing must be left out before.
        title: read aloud in place of the picture.
        fraction: whether values are written in percent.
        points: the most points that one line keeps.
        width: of the drawing, in units; text keeps its size, so a chart that is shown small needs a small width.
    """
    every = [point for line in lines for seed in line.seeds for point in seed]
    if not every:
        return ""
    height, left, right, top, bottom = 20 + width / 2, 42.0, 8.0, 8.0, 22.0
    down = ticks(min(y for _, y in every), max(y for _, y in every), 5)
    across = ticks(min(x for x, _ in every), max(x for x, _ in every), 5)
    across_low, across_high = min(x for x, _ in every), max(x for x, _ in every)

    def place(point: Point) -> Point:
        x = _between(point[0], across_low, across_high)
        y = _between(point[1], down[0], down[-1])
        return left + x * (width - left - right), height - bottom - y * (height - top - bottom)

    parts = []
    for y in down:
        at = place((across_low, y))[1]
        parts += [_rule("grid", (left, at), (width - right, at)),
                  _text("tick", (left - 6, at + 3.5), "end", _tick(y, down, fraction))]  # fmt: skip
    for x in (x for x in across if across_low <= x <= across_high):
        at = place((x, down[0]))[0]
        anchor = "end" if at > width - right - 12 else "middle"
        label = numbers.count(x) if across[1] - across[0] >= 1 else numbers.number(*_in_unit(x, across, False))
        parts.append(_text("tick", (at, height - 6), anchor, label))
    for line in lines:
        parts += _drawn(line, place, points)
    return _svg(height, title, parts, width)


def interval_chart(rows: Sequence[Interval], *, title: str, fraction: bool = False) -> str:
    """A dot and its interval for each row, beside the line of no difference; empty without rows."""
    if not rows:
        return ""
    ends = [value for row in rows for value in (row.mean, row.low, row.high) if value is not None]
    marks = ticks(min(0.0, *ends), max(0.0, *ends), 4)
    left, right, step, top = 10.0, 10.0, 46.0, 0.0
    height = top + step * len(rows) + 24

    def place(value: float) -> float:
        return left + _between(value, marks[0], marks[-1]) * (WIDTH - left - right)

    parts = []
    for mark in marks:
        kind, at = "zero" if mark == 0 else "grid", place(mark)
        anchor = "start" if mark == marks[0] else "end" if mark == marks[-1] else "middle"
        label = numbers.signed(*_in_unit(mark, marks, fraction))
        parts += [_rule(kind, (at, top), (at, height - 20)), _text("tick", (at, height - 5), anchor, label)]
    for index, row in enumerate(rows):
        y = top + step * index + 30
        parts += [_text("name halo", (left, y - 14), "start", row.name),
                  _text("said halo", (WIDTH - right, y - 14), "end", row.said)]  # fmt: skip
        if row.low is not None and row.high is not None:
            parts.append(_rule(f"whisker {row.style}", (place(row.low), y), (place(row.high), y)))
        parts.append(_dot(row.style, (place(row.mean), y), 5))
    return _svg(height, title, parts)


def class_chart(rows: Sequence[tuple[str, Sequence[tuple[str, float]]]], *, title: str) -> str:
    """A row for each class with a dot for each arm (style, fraction), from 0 to 100 %; empty without rows."""
    if not any(dots for _, dots in rows):
        return ""
    left, right, step = 104.0, 12.0, 22.0
    height = step * len(rows) + 26
    low = min(value for _, dots in rows for _, value in dots)
    marks = ticks(max(0.0, low), 1.0, 5)

    def place(value: float) -> float:
        return left + _between(value, marks[0], marks[-1]) * (WIDTH - left - right)

    parts = []
    for mark in marks:
        at = place(mark)
        parts += [_rule("grid", (at, 2), (at, height - 20)),
                  _text("tick", (at, height - 5), "middle", _tick(mark, marks, True))]  # fmt: skip
    for index, (name, dots) in enumerate(rows):
        y = 2 + step * (index + 0.5)
        parts.append(_text("name", (left - 12, y + 4), "end", name, 15))
        if len(dots) > 1:
            ends = sorted(place(value) for _, value in dots)
            parts.append(_rule("join", (ends[0], y), (ends[-1], y)))
        parts += [_dot(style, (place(value), y), 4.5) for style, value in dots]
    return _svg(height, title, parts)


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` points (at least 4): the ends, and the lowest and highest of equal stretches.

    Keeping both extremes shows a spike or a jitter that averages and every-nth-point would hide.
    """
    if len(points) <= most:
        return list(points)
    inner, stretches = points[1:-1], max(1, (most - 2) // 2)
    kept = [points[0]]
    for index in range(stretches):
        stretch = inner[index * len(inner) // stretches : (index + 1) * len(inner) // stretches]
        ends = {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])} if stretch else set()
        kept += sorted(ends)
    return [*kept, points[-1]]


def mean_line(seeds: Sequence[Sequence[Point]]) -> list[Point]:
    """The mean over seeds where every seed has a value: it would jump where one seed stops earlier."""
    columns: dict[float, list[float]] = {}
    for seed in seeds:
        for x, y in dict(seed).items():
            columns.setdefault(x, []).append(y)
    return [(x, sum(ys) / len(ys)) for x, ys in sorted(columns.items()) if len(ys) == len(seeds)]


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round, evenly spaced values that enclose [low, high]: 1, 2 or 5 times a power of ten apart."""
    if not high - low > 1e-9 * max(abs(low), abs(high), 1e-12):
        margin = abs(low) / 10 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def _drawn(line: Line, place: Callable[[Point], Point], points: int) -> list[str]:
    seeds = [sorted(seed) for seed in line.seeds if seed]
    mean = mean_line(seeds) if len(seeds) > 1 else []
    kind = "seed" if mean else "mean"
    parts = [_path([place(p) for p in thin(seed, points)], f"{kind} {line.style}") for seed in seeds]
    return [*parts, _path([place(p) for p in thin(mean, points)], f"mean {line.style}")] if mean else parts


def _path(points: Sequence[Point], style: str) -> str:
    if len(points) == 1:
        return _dot(style, points[0], 3)
    return f'<polyline class="{style}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def _rule(style: str, start: Point, end: Point) -> str:
    (x1, y1), (x2, y2) = start, end
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _dot(style: str, at: Point, radius: float) -> str:
    return f'<circle class="dot {style}" cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{radius:g}"/>'


def _text(style: str, at: Point, anchor: str, content: str, most: int = 30) -> str:
    shown = escape(content)
    if len(content) > most:
        shown = f"<title>{shown}</title>{escape(content[: most - 1])}…"
    return f'<text class="{style}" x="{at[0]:.1f}" y="{at[1]:.1f}" text-anchor="{anchor}">{shown}</text>'


def _tick(value: float, marks: Sequence[float], fraction: bool) -> str:
    shown, digits = _in_unit(value, marks, fraction)
    return numbers.number(shown, digits) + (" %" if fraction else "")


def _in_unit(value: float, marks: Sequence[float], fraction: bool) -> tuple[float, int]:
    """The value as it is written on an axis, and the decimals that tell its neighbours apart."""
    scale = 100 if fraction else 1
    step = scale * (marks[1] - marks[0])
    return scale * value, max(0, min(6, -math.floor(math.log10(step) + 1e-9)))


def _between(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _svg(height: float, title: str, parts: Sequence[str], width: float = WIDTH) -> str:
    box = f'viewBox="0 0 {width:g} {height:g}"'
    return f'<svg {box} role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
