"""Quality against cost: what each model needs for what it knows."""

from __future__ import annotations

from collections.abc import Callable

from limbeck.report import charts, numbers
from limbeck.report.glossary import Metric
from limbeck.report.looks import styles
from limbeck.report.reading import Arm, Run, arms, finite, found_at, primary
from limbeck.report.sections.blocks import Cell, Figure, Figures, Head, Section, Table
from limbeck.report.sections.costs import common, conditions, cost, timings
from limbeck.report.sections.seeds import by_seed

__all__ = ["section"]


def section(run: Run) -> Section | None:
    """The headline metric of each arm against its latency and its size."""
    column = primary(run.scores)
    if column is None:
        return None
    figures = [
        figure
        for key, name, show in (("latency", "latency", numbers.seconds), ("bytes", "size", numbers.size))
        if (figure := _figure(run, column, key, name, show))
    ]
    if not figures:
        return None
    better = {"higher": "upper left", "lower": "lower left", "neither": "left"}[column.better]
    lead = (
        f"The nearer to the {better}, the more a model gives for what it costs. Large dots are means, small dots are "
        f"seeds; bars reach from the lowest to the highest seed, and across the times that are likely."
    )
    return Section("frontier", "Quality against cost", "Quality against cost", lead, [Figures(figures)])


def _figure(
    run: Run, column: Metric, key: str, name: str, show: Callable[[float | None], str]
) -> Figure | None:  # fmt: skip
    coloured, spots, rows = styles(run.scores), [], []
    shown = [arm for arm in arms(run.scores) if (cost(run, arm, key) or 0) > 0 and by_seed(arm, column)]
    if key == "latency":
        # Times that were taken under other conditions have no place on the same axis.
        under = [conditions(run, arm) for arm in shown]
        first = max(dict.fromkeys(under), key=under.count, default="")
        shown = [arm for arm in shown if conditions(run, arm) == first]
        axis = f"latency{f', {first}' if first else ''}"
    else:
        axis = "size on disk"
    if len(shown) < 2:
        return None
    for arm in shown:
        values, own = by_seed(arm, column), cost(run, arm, key) or 0.0
        mean = sum(value for _, value in values) / len(values)
        range_ = _range(run, arm) if key == "latency" else None
        tip = f"{arm.label}\n{column.show(mean)} for {show(own)}"
        spots.append(charts.Spot(arm.label, coloured.get(arm.name, ""), own, range_, values, tip))
        rows.append([Cell(arm.label, style=coloured.get(arm.name, "")), Cell(show(own), own),
                     Cell(column.show(mean), mean)])  # fmt: skip
    title = f"{column.label} against {name}"
    svg = charts.scatter_chart(spots, title=title, axis=axis, show=show, value=column.show,
                               fraction=column.unit == "fraction")  # fmt: skip
    table = Table(title, [Head("Model"), Head(name.capitalize()), Head(column.label)], rows)
    return Figure(title, svg, table)


def _range(run: Run, arm: Arm) -> charts.Point | None:
    """The median's interval where it is known, else the 10th and 90th percentile."""
    for timing in timings(run, arm):
        if timing.condition == common(run):
            return (timing.low, timing.high) if timing.low and timing.high else (timing.p10, timing.p90)
    low, high = (finite(found_at(arm.footprint, "latency", name)) for name in ("p10", "p90"))
    return (low, high) if low is not None and high is not None and 0 < low <= high else None
