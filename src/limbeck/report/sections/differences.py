"""The paired differences to the student trained alone, as intervals and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limbeck.report import charts, numbers
from limbeck.report.glossary import Metric, metric
from limbeck.report.looks import labels, styles
from limbeck.report.reading import Run, comparisons, finite, text
from limbeck.report.sections.blocks import Block, Cell, Figure, Figures, Head, Section, Table

__all__ = ["section", "tone"]

Row = Mapping[str, Any]


def section(run: Run) -> Section | None:
    """One chart for each metric that was compared, and all of them as a table."""
    rows = comparisons(run.scores)
    if not rows:
        return None
    lead = (
        "Each seed of one model is paired with the same seed of the other. An interval that holds zero shows no clear "
        "difference."
    )
    blocks: list[Block] = [Figures(_figures(run.scores)), _table(run.scores)]
    return Section("differences", "Difference from the student trained alone", "Against training alone", lead, blocks)


def tone(row: Row) -> str:
    """`better` or `worse` where an interval says so, else `same`."""
    if not _interval(row)[1]:
        return "same"
    return {"better": "better", "worse": "worse"}.get(text(row.get("verdict")), "same")


def _figures(scores: Mapping[str, Any]) -> list[Figure]:
    called, drawn = labels(scores), []
    by_metric: dict[str, list[Row]] = {}
    for row in comparisons(scores):
        by_metric.setdefault(text(row["metric"]), []).append(row)
    for key, rows in by_metric.items():
        column, marks = metric(key), []
        for row in rows:
            mean, bounds = _interval(row)
            low, high = bounds or (None, None)
            said = column.differences(mean, *bounds)
            tip = said[0] + (f"\nfrom {said[1]} to {said[2]}{_unit(column)}" if bounds else "\none seed: no interval")
            marks.append(charts.Interval(called[text(row["arm"])], tone(row), mean, low, high, tip))
        side = {"higher": "right of zero is better", "lower": "left of zero is better", "neither": ""}[column.better]
        caption = " · ".join(filter(None, [f"{column.label}{_unit(column, ', ')}", side]))
        svg = charts.interval_chart(marks, title=f"Difference in {column.label}", fraction=column.unit == "fraction")
        drawn.append(Figure(caption, svg))
    return drawn


def _table(scores: Mapping[str, Any]) -> Table:
    called, coloured, rows = labels(scores), styles(scores), []
    for row in comparisons(scores):
        column, name = metric(text(row["metric"])), text(row["arm"])
        mean, bounds = _interval(row)
        shown = column.differences(mean, *bounds)
        level = finite(row.get("level"))
        interval = f"{shown[1]} to {shown[2]}" if bounds else "one seed: none"
        if bounds and level is not None:
            interval += f" ({numbers.percent(level, 0)})"
        seeds = finite(row.get("n"))
        rows.append([
            Cell(called[name], style=coloured.get(name, "")),
            Cell(f"{column.label} {column.arrow}".strip()),
            Cell(shown[0] + _unit(column), mean),
            Cell(interval, bounds[0] if bounds else None),
            Cell(numbers.number(seeds, 0), seeds),
            Cell(text(row.get("verdict")) if bounds else "cannot be told", tone=tone(row)),
        ])  # fmt: skip
    head = [Head("Model"), Head("Metric", left=True), Head("Difference"), Head("Interval"), Head("Seeds"),
            Head("Verdict", left=True)]  # fmt: skip
    return Table("Paired differences to the student trained alone", head, rows)


def _unit(column: Metric, before: str = " ") -> str:
    return f"{before}points" if column.unit == "fraction" else ""


def _interval(row: Row) -> tuple[float, tuple[float, float] | tuple[()]]:
    mean, low, high = (finite(row.get(key)) for key in ("mean", "low", "high"))
    assert mean is not None  # `comparisons` lets no other row through
    return mean, (low, high) if low is not None and high is not None else ()
