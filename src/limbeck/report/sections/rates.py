"""The same training at other learning rates."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from limbeck.report import charts, numbers
from limbeck.report.looks import labels, styles
from limbeck.report.reading import Run, finite, mapping, sequence, text
from limbeck.report.sections.blocks import Block, Cell, Figure, Figures, Head, Section, Table

__all__ = ["section"]


def section(run: Run) -> Section | None:
    """How often training broke down at each rate, and what it reached where it did not."""
    called, coloured = labels(run.scores), styles(run.scores)
    grids = {name: mapping(grid) for name, grid in mapping(run.evidence.get("rates")).items() if name in called}
    found = {name: _points(grid) for name, grid in grids.items()}
    rates = sorted({rate for points in found.values() for rate in points})
    if not rates:
        return None
    rows = [[Cell(f"{rate:.4g}", rate), *(points.get(rate, Cell(numbers.DASH)) for points in found.values())]
            for rate in rates]  # fmt: skip
    lines = [
        charts.Line(called[name], coloured.get(name, ""),
                    [[(rate, cell.raw) for rate, cell in points.items() if cell.raw is not None]])
        for name, points in found.items()
    ]  # fmt: skip
    lead = (
        "The same training with its learning rate multiplied: how often it broke down, and what "
        "it reached where it did not. A method that needs the right rate to work is a fragile one."
    )
    title = "Accuracy by learning rate"
    svg = charts.line_chart(lines, title=title, axis="learning rate", fraction=True, even=True)
    legend = [(line.style, line.name) for line in lines]
    head = [Head("Learning rate"), *(Head(called[name]) for name in found)]
    blocks: list[Block] = [Figures([Figure(title, svg)], legend)] if svg else []
    return Section("rates", "Learning rates", "Learning rates", lead, [*blocks, Table(title, head, rows)])


def _points(grid: Mapping[str, Any]) -> dict[float, Cell]:
    """By rate: the mean of what was reached, and how often training broke down."""
    found = {}
    parts = (sequence(grid.get(key)) for key in ("rate", "runs", "diverged", "accuracy"))
    for rate, runs, broke, values in zip(*parts, strict=False):
        at, known = finite(rate), [x for value in sequence(values) if (x := finite(value)) is not None]
        mean = statistics.fmean(known) if known else None
        if at is not None:
            note = f"{text(broke)} of {text(runs)} broke down" if broke else ""
            found[at] = Cell(numbers.percent(mean), mean, note=note, tone="worse" if broke else "")
    return found
