"""How long single calls took: each as a faint stroke, the middle of them as a box, the median as a line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from limbeck.report.charts import marks
from limbeck.report.charts.scale import WIDTH, Axis, logarithmic

__all__ = ["Batch", "box_chart"]

MOST_STROKES = 120


class Batch(NamedTuple):
    """One row: the times of single calls in seconds, three percentiles of them, and the median's interval."""

    name: str
    style: str
    seconds: Sequence[float]
    p10: float
    p50: float
    p90: float
    low: float | None
    high: float | None
    tip: str


def box_chart(rows: Sequence[Batch], *, title: str, show: Callable[[float], str]) -> str:
    """A row for each model, times from left to right in equal ratios; empty without rows.

    Args:
        rows: the models; all times are above zero.
        title: read aloud in place of the picture.
        show: how a time is written.
    """
    if not rows:
        return ""
    left, right, step = 10.0, 10.0, 50.0
    height = step * len(rows) + 24
    every = [value for row in rows for value in (*row.seconds, row.p10, row.p90)]
    axis = logarithmic(every, (left, WIDTH - right), show=show)
    parts = marks.across(axis, 0, height - 20)
    for index, row in enumerate(rows):
        y = step * index + 34
        parts += [marks.words("name halo", (left, y - 16), "start", row.name),
                  marks.words("said halo", (WIDTH - right, y - 16), "end", show(row.p50)),
                  marks.series(row.name, _drawn(row, y, axis))]  # fmt: skip
    said = "; ".join(f"{row.name}: median {show(row.p50)}, 90 of 100 below {show(row.p90)}" for row in rows) + "."
    return marks.drawing((WIDTH, height), title, parts, said=said)


def _drawn(row: Batch, y: float, axis: Axis) -> list[str]:
    ordered = sorted(row.seconds)
    every = max(1, -(-len(ordered) // MOST_STROKES))
    shown = ordered[::every] + (ordered[-1:] if (len(ordered) - 1) % every else [])
    parts = [marks.rule(f"stroke {row.style}", (axis.at(t), y - 8), (axis.at(t), y + 8)) for t in shown]
    start, end = axis.at(row.p10), axis.at(row.p90)
    parts.append(marks.bar(f"middle {row.style}", (start, y - 5), (max(end - start, 1), 10)))
    if row.low is not None and row.high is not None:
        parts.append(marks.rule(f"whisker {row.style}", (axis.at(row.low), y), (axis.at(row.high), y)))
    parts.append(marks.dot(row.style, (axis.at(row.p50), y), 5, row.tip))
    return parts
