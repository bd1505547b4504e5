"""Dots in rows: differences with their intervals, and values of single seeds or classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from limbeck.report import numbers
from limbeck.report.charts import marks
from limbeck.report.charts.scale import WIDTH, linear

__all__ = ["Dot", "DotRow", "Interval", "dot_chart", "interval_chart"]


class Interval(NamedTuple):
    """One row of an interval chart. Without bounds only the dot is drawn; `said` is written at the right."""

    name: str
    style: str
    mean: float
    low: float | None
    high: float | None
    said: str


class Dot(NamedTuple):
    """One dot of a row: its value, how it looks, what is said of it, and of which series it is."""

    value: float
    style: str
    tip: str
    series: str = ""
    size: float = 4.5


class DotRow(NamedTuple):
    """A row of dots under its name; `note` is written at the right end."""

    name: str
    dots: Sequence[Dot]
    note: str = ""


def interval_chart(rows: Sequence[Interval], *, title: str, fraction: bool = False) -> str:
    """A dot and its interval for each row, beside the line of no difference; empty without rows."""
    if not rows:
        return ""
    ends = [value for row in rows for value in (row.mean, row.low, row.high) if value is not None]
    left, right, step = 10.0, 10.0, 46.0
    height = step * len(rows) + 24
    axis = linear([0.0, *ends], (left, WIDTH - right), about=4, show=numbers.signed, scale=100 if fraction else 1)
    parts = marks.across(axis, 0, height - 20, zero=True)
    for index, row in enumerate(rows):
        y = step * index + 30
        tip = f"{row.name}\n{row.said}"
        parts += [marks.words("name halo", (left, y - 14), "start", row.name),
                  marks.words("said halo", (WIDTH - right, y - 14), "end", row.said.partition("\n")[0])]  # fmt: skip
        if row.low is not None and row.high is not None:
            parts.append(marks.rule(f"whisker {row.style}", (axis.at(row.low), y), (axis.at(row.high), y)))
        parts.append(marks.dot(row.style, (axis.at(row.mean), y), 5, tip))
    said = "; ".join(f"{row.name} {row.said}".replace("\n", ", ") for row in rows) + "."
    return marks.drawing((WIDTH, height), title, parts, said=said)


def dot_chart(
    rows: Sequence[DotRow],
    *,
    title: str,
    scale: float = 1,
    unit: str = "",
    zero: bool = False,
    limits: tuple[float, ...] = (),
) -> str:
    """A row of dots for each name; empty without dots.

    Args:
        rows: from top to bottom.
        title: read aloud in place of the picture.
        scale: 100 where fractions are written in percent or points.
        unit: written after each marked value.
        zero: whether values are differences: they have a sign, and a line of no difference.
        limits: values that the axis must hold besides.
    """
    values = [dot.value for row in rows for dot in row.dots]
    if not values:
        return ""
    most = 24
    longest = max(min(len(row.name), most) for row in rows)
    left, right, step = max(40.0, 16 + 6.6 * longest), (52.0 if any(row.note for row in rows) else 16.0), 22.0
    height = step * len(rows) + 26
    show = numbers.signed if zero else numbers.number
    axis = linear([*values, *limits, *([0.0] if zero else [])], (left, WIDTH - right), about=4, scale=scale,
                  show=lambda value, digits: show(value, digits) + unit)  # fmt: skip
    parts = marks.across(axis, 2, height - 20, zero=zero)
    for index, row in enumerate(rows):
        y = 2 + step * (index + 0.5)
        parts.append(marks.words("name", (left - 12, y + 4), "end", row.name, most))
        if row.note:
            parts.append(marks.words("said", (WIDTH, y + 4), "end", row.note))
        if len(row.dots) > 1:
            ends = sorted(axis.at(dot.value) for dot in row.dots)
            parts.append(marks.rule("join", (ends[0], y), (ends[-1], y)))
        parts += [marks.dot(dot.style, (axis.at(dot.value), y), dot.size, dot.tip, dot.series) for dot in row.dots]
    return marks.drawing((WIDTH, height), title, parts, said=f"{len(rows)} rows of dots, as in the table.")
