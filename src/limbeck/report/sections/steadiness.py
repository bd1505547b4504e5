"""What was compared beside the scores: steadiness, sturdiness, closeness to the teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limbeck.report import numbers
from limbeck.report.glossary import measure
from limbeck.report.looks import labels, styles
from limbeck.report.reading import Run, finite, found_at, mapping, sequence, text
from limbeck.report.sections.blocks import Cell, Head, Section, Table

__all__ = ["section"]


def section(run: Run) -> Section | None:
    """A row for each measure in which a student was compared with the student trained alone."""
    called, coloured, rows = labels(run.scores), styles(run.scores), []
    for row in map(mapping, sequence(run.evidence.get("comparisons"))):
        key, name, mean = text(row.get("measure")), text(row.get("arm")), finite(row.get("mean"))
        if name in called and mean is not None:
            rows.append([Cell(called[name], style=coloured.get(name, "")), *_cells(key, mean, row)])
    if not rows:
        return None
    least = {value for row in sequence(run.evidence.get("comparisons")) if (value := finite(found_at(row, "least_p")))}
    lead = (
        "Seed by seed against the student trained alone. p is how often chance alone, swapping the two at each seed, "
        "gives a difference as large; few seeds cannot make it small"
    ) + (f": here it is {min(least):.3g} at least." if least else ".")
    head = [Head("Model"), Head("Measure", left=True), Head("Difference"), Head("Interval"), Head("p"),
            Head("Verdict", left=True)]  # fmt: skip
    table = Table("Paired differences in what was measured beside the scores", head, rows)
    return Section("steadiness", "Steadier, sturdier, closer to its teacher?", "Steadiness", lead, [table])


def _cells(key: str, mean: float, row: Mapping[str, Any]) -> list[Cell]:
    low, high = finite(row.get("low")), finite(row.get("high"))
    bounds = f"{_signed(key, low)} to {_signed(key, high)}" if low is not None and high is not None else "none"
    p, said = finite(row.get("p")), text(row.get("verdict"))
    return [
        Cell(f"{measure(key).label} {measure(key).arrow}".strip()),
        Cell(f"{_signed(key, mean)}{' points' if _share(key) else ''}", mean),
        Cell(bounds, low),
        Cell(numbers.DASH if p is None else f"{p:.3g}", p),
        Cell(said, tone=said if said in ("better", "worse") else "same"),
    ]


def _share(key: str) -> bool:
    return measure(key).unit == "fraction"


def _signed(key: str, value: float | None) -> str:
    if value is None:
        return numbers.DASH
    return numbers.signed(100 * value, 1) if _share(key) else numbers.signed(value, 3)
