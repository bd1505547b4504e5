"""Whether confidence is honest: stated confidence against the share that is right."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.report import charts, numbers
from limbeck.report.looks import styles
from limbeck.report.reading import Arm, Run, arms, finite, found_at, measured, metrics_of, sequence
from limbeck.report.sections.blocks import Block, Cell, Figure, Figures, Head, Section, Table
from limbeck.report.sections.scores import score_table

__all__ = ["pooled", "section"]


def section(run: Run) -> Section | None:
    """A reliability diagram for each arm whose bins were kept, and the numbers beside them."""
    coloured, drawn = styles(run.scores), []
    for arm in arms(run.scores):
        bins = pooled(measured(run.evidence, arm.name))
        svg = charts.reliability_chart(bins, coloured.get(arm.name, ""), title=f"Reliability of {arm.label}")
        if svg:
            drawn.append(Figure(arm.label, svg, _bins(arm.label, bins)))
    table = _table(run)
    if not drawn and (table is None or all(column.kind == "confidence" for column in metrics_of(run.scores))):
        return None
    lead = "Whether a model knows when it may be wrong: mean ± standard deviation over seeds."
    if drawn:
        lead = (
            "Answers are sorted by how sure the model says it is. On the dashed line it is right as often as it says; "
            "beneath, it is too sure. The larger a dot, the more answers; all seeds together."
        )
    blocks: list[Block] = [*([Figures(drawn, small=True)] if drawn else []), *([table] if table else [])]
    return Section("calibration", "Is its confidence honest?", "Confidence", lead, blocks)


def pooled(entries: Sequence[Mapping[str, Any]]) -> list[charts.Bin]:
    """The bins of all seeds together: confidence and share that is right are means over samples."""
    whole: dict[int, list[float]] = {}
    for entry in entries:
        parts = [sequence(found_at(entry, "reliability", key)) for key in ("confidence", "accuracy", "count")]
        for i, values in enumerate(zip(*parts, strict=False)):
            confidence, right, count = map(finite, values)
            if confidence is None or right is None or not count or count < 0:
                continue
            known = whole.setdefault(i, [0.0, 0.0, 0.0])
            known[:] = [known[0] + count * confidence, known[1] + count * right, known[2] + count]
    return [charts.Bin(c / n, r / n, n) for _, (c, r, n) in sorted(whole.items()) if 0 <= c <= n and 0 <= r <= n]


def _bins(label: str, bins: Sequence[charts.Bin]) -> Table:
    head = [Head("Stated confidence"), Head("Right"), Head("Answers")]
    rows = [
        [Cell(numbers.percent(b.confidence), b.confidence), Cell(numbers.percent(b.right), b.right),
         Cell(numbers.number(b.answers, 0), b.answers)]
        for b in bins
    ]  # fmt: skip
    return Table(f"Reliability of {label}", head, rows)


def _table(run: Run) -> Table | None:
    """The scores of confidence, and the temperature that would make it honest."""
    scored = [column for column in metrics_of(run.scores) if column.kind == "confidence"]
    heats = [_temperature(run, arm) for arm in arms(run.scores)]
    if not scored and not any(heats):
        return None
    table = score_table(run, scored, "How honest confidence is")
    if not any(heats):
        return table if table.rows else None
    by_label = {arm.label: heat for arm, heat in zip(arms(run.scores), heats, strict=True)}
    rows = [
        [*row, Cell(numbers.number(by_label.get(row[0].value), 2), by_label.get(row[0].value))] for row in table.rows
    ]
    return Table(table.caption, [*table.head, Head("Temperature")], rows)


def _temperature(run: Run, arm: Arm) -> float | None:
    values = [heat for entry in measured(run.evidence, arm.name) if (heat := finite(entry.get("temperature")))]
    return statistics.fmean(values) if values else None
