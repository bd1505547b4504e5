"""Lines over steps, epochs or strengths: each seed thin, their mean strong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from limbeck.report import numbers
from limbeck.report.charts import marks
from limbeck.report.charts.scale import WIDTH, Axis, Point, linear, logarithmic, ticks

__all__ = ["Line", "line_chart", "mean_line", "thin"]


class Line(NamedTuple):
    """One arm of a line chart: a thin line for each seed, and a strong one for their mean.

    `called` names the seeds; without it they are counted from 0.
    """

    name: str
    style: str
    seeds: Sequence[Sequence[Point]]
    called: Sequence[str] = ()


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    axis: str = "step",
    fraction: bool = False,
    even: bool = False,
    points: int = 200,
    width: float = WIDTH,
) -> str:
    """Lines with grid and ticks; empty without points. What is drawn is kept with it as numbers, for the reader.

    Args:
        lines: the arms; points whose values are missing must be left out before.
        title: read aloud in place of the picture.
        axis: what runs from left to right.
        fraction: whether values are written in percent.
        even: whether equal ratios are equally far apart, for what is doubled rather than added to.
        points: the most points that one line keeps.
        width: of the drawing, in units; text keeps its size, so a chart that is shown small needs a small width.
    """
    every = [point for line in lines for seed in line.seeds for point in seed]
    if not every:
        return ""
    height, left, right, top, bottom = 20 + width / 2, 42.0, 8.0, 8.0, 22.0
    y = linear([y for _, y in every], (height - bottom, top), scale=100 if fraction else 1,
               show=_percent if fraction else numbers.number)  # fmt: skip
    values = [x for x, _ in every]
    x = _ratios(values, (left, width - right)) if even else _across(values, (left, width - right))
    parts = [*marks.down(y, left, width - right), *_below(x, height - 6)]
    kept, ends = [], []
    for line in lines:
        seeds = [thin(sorted(seed), points) for seed in line.seeds]
        mean = thin(mean_line(line.seeds), points) if sum(map(bool, seeds)) > 1 else []
        drawn = [_drawn(("seed" if mean else "mean"), line, seed, x, y) for seed in seeds if seed]
        drawn += [_drawn("mean", line, mean, x, y)] if mean else []
        parts.append(marks.series(line.name, drawn))
        called = [line.called[i] if i < len(line.called) else str(i) for i in range(len(seeds))]
        flat = [[name, _flat(seed)] for name, seed in zip(called, seeds, strict=True) if seed]
        kept.append({"name": line.name, "style": line.style, "mean": _flat(mean), "seeds": flat})
        last = mean or next((seed for seed in seeds if seed), [])
        ends += [f"{line.name} ends at {_said(last[-1][1], fraction)}"] if last else []
    told = {"box": [left, top, width - right, height - bottom], "across": [x.low, x.high], "down": [y.low, y.high],
            "axis": axis, "fraction": fraction, "even": x.bend is not float, "lines": kept}  # fmt: skip
    return marks.drawing((width, height), title, parts, said="; ".join(ends) + ".", further=_kept(told))


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
    held = [seed for seed in seeds if seed]
    for seed in held:
        for x, y in dict(seed).items():
            columns.setdefault(x, []).append(y)
    return [(x, sum(ys) / len(ys)) for x, ys in sorted(columns.items()) if len(ys) == len(held)]


def _across(values: Sequence[float], span: Point) -> Axis:
    """From the first to the last value, marked at the round ones between."""
    low, high = min(values), max(values)
    steps = ticks(low, high, 5)
    whole = steps[1] - steps[0] >= 1
    found = [(mark, numbers.count(mark)) for mark in steps] if whole else list(linear(values, span).marks)
    return Axis(low, high, *span, [(mark, label) for mark, label in found if low <= mark <= high])


def _ratios(values: Sequence[float], span: Point) -> Axis:
    return logarithmic(values, span, show=lambda value: f"{value:.3g}") if min(values) > 0 else _across(values, span)


def _below(axis: Axis, height: float) -> list[str]:
    return [
        marks.words("tick", (axis.at(value), height), "end" if axis.at(value) > axis.end - 12 else "middle", label)
        for value, label in axis.marks
    ]


def _drawn(kind: str, line: Line, points: Sequence[Point], x: Axis, y: Axis) -> str:
    return marks.path(f"{kind} {line.style}", [(x.at(a), y.at(b)) for a, b in points])


def _percent(value: float, digits: int) -> str:
    return f"{numbers.number(value, digits)} %"


def _said(value: float, fraction: bool) -> str:
    return numbers.percent(value) if fraction else f"{value:.4g}"


def _flat(points: Sequence[Point]) -> list[float]:
    """X and y in turns, with seven and five significant digits."""
    return [float(f"{value:.{digits}g}") for point in points for value, digits in zip(point, (7, 5), strict=True)]


def _kept(told: dict[str, Any]) -> str:
    return f' data-lines="{escape(json.dumps(told, separators=(",", ":")))}"'
