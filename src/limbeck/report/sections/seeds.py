"""Every training on its own: a dot for each seed, and the worst of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from limbeck.report import charts, numbers
from limbeck.report.glossary import Metric
from limbeck.report.looks import styles
from limbeck.report.reading import Arm, Run, arms, finite, found_at, measured, primary, text
from limbeck.report.sections.blocks import Cell, Figure, Figures, Head, Section, Table

__all__ = ["by_seed", "section", "worst"]


def by_seed(arm: Arm, column: Metric) -> list[tuple[str, float]]:
    """The value of each seed that was scored."""
    found = [(text(run.get("seed")), finite(found_at(run, "scores", column.key))) for run in arm.runs]
    return [(seed, value) for seed, value in found if value is not None]


def worst(arm: Arm, column: Metric) -> tuple[str, float] | None:
    """The seed that came out worst; None where there is but one, or no better and worse."""
    values = by_seed(arm, column)
    if len(values) < 2 or column.better == "neither":
        return None
    return (min if column.better == "higher" else max)(values, key=lambda pair: pair[1])


def section(run: Run) -> Section | None:
    """A row of dots for each arm of several seeds, and what of it is steady."""
    column = primary(run.scores)
    if column is None or not any(len(by_seed(arm, column)) > 1 for arm in arms(run.scores)):
        return None
    lead = (
        "Each dot is a training of its own, of which only the seed differs; the ringed one is the worst. Whoever "
        "trains once gets one of these."
    )
    table = _table(run.scores, run.evidence, column)
    figure = _figure(run.scores, column)
    return Section("seeds", "Seed by seed", "Seed by seed", lead, [Figures([figure]), table])


def _figure(scores: Mapping[str, Any], column: Metric) -> Figure:
    coloured, rows = styles(scores), []
    scale = 100 if column.unit == "fraction" else 1
    for arm in arms(scores):
        values, last = by_seed(arm, column), worst(arm, column)
        style = coloured.get(arm.name, "")
        # The worst is drawn last, over the others.
        values.sort(key=lambda pair: last is not None and pair[0] == last[0])
        dots = [_dot(arm, style, column, pair, is_worst=pair == last) for pair in values]
        if dots:
            rows.append(charts.DotRow(arm.label, dots, column.show(last[1]) if last else ""))
    svg = charts.dot_chart(rows, title=f"{column.label} of every seed", scale=scale, unit=" %" if scale == 100 else "")
    every = [
        [Cell(arm.label, style=coloured.get(arm.name, "")), Cell(seed), Cell(column.show(value), value)]
        for arm in arms(scores)
        for seed, value in by_seed(arm, column)
    ]
    head = [Head("Model"), Head("Seed"), Head(column.label)]
    return Figure(
        f"{column.label} of every seed {column.arrow}, and of the worst",
        svg,
        Table(f"{column.label} of every seed", head, every),
    )


def _dot(arm: Arm, style: str, column: Metric, pair: tuple[str, float], *, is_worst: bool) -> charts.Dot:
    tip = f"{arm.label}\nSeed {pair[0]}: {column.show(pair[1])}{', the worst' if is_worst else ''}"
    return charts.Dot(pair[1], f"{style} worst" if is_worst else style, tip, size=6 if is_worst else 4.5)


def _table(scores: Mapping[str, Any], evidence: Mapping[str, Any], column: Metric) -> Table:
    """Mean, worst, range and churn of each arm."""
    coloured, rows = styles(scores), []
    for arm in arms(scores):
        values, last = [value for _, value in by_seed(arm, column)], worst(arm, column)
        if not values:
            continue
        churn = finite(found_at(evidence, "churn", arm.name, "mean"))
        gaps = [
            x for run in measured(evidence, arm.name) if (x := finite(found_at(run, "overfitting", "gap"))) is not None
        ]
        gap = statistics.fmean(gaps) if gaps else None
        turned = [finite(found_at(run, "overfitting", "turned")) is not None for run in measured(evidence, arm.name)]
        width = max(values) - min(values) if len(values) > 1 else None
        rows.append([
            Cell(arm.label, style=coloured.get(arm.name, "")),
            Cell(column.show(statistics.fmean(values)), statistics.fmean(values)),
            Cell(column.show(last[1]), last[1], note=f"seed {last[0]}") if last else Cell(numbers.DASH),
            Cell(_points(column, width), width),
            Cell(numbers.percent(churn), churn),
            Cell(numbers.points(gap) if gap is not None else numbers.DASH, gap),
            Cell(f"{sum(turned)} of {len(turned)}", sum(turned)) if turned else Cell(numbers.DASH),
        ])  # fmt: skip
    head = [Head("Model"), Head("Mean"), Head("Worst seed"), Head("Best to worst"), Head("Churn ↓"),
            Head("Gap ↓"), Head("Validation turned")]  # fmt: skip
    kept = [i for i in range(len(head)) if i < 2 or any(row[i].value != numbers.DASH for row in rows)]
    return Table("How steady each model is", [head[i] for i in kept], [[row[i] for i in kept] for row in rows])


def _points(column: Metric, width: float | None) -> str:
    if width is None:
        return numbers.DASH
    return f"{numbers.number(100 * width, 1)} points" if column.unit == "fraction" else numbers.number(width)
