"""The table of scores: mean and spread over seeds of every arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.report import numbers
from limbeck.report.glossary import Metric
from limbeck.report.looks import styles
from limbeck.report.reading import Run, arms, metrics_of, spread
from limbeck.report.sections.blocks import Block, Cell, Head, Heading, Section, Table

__all__ = ["score_table", "section"]


def section(run: Run) -> Section | None:
    """What is right, and how near it is to the teacher; confidence has a section of its own."""
    columns = metrics_of(run.scores)
    if not columns:
        return None
    kinds = {
        kind: [column for column in columns if column.kind == kind] for kind in ("quality", "confidence", "teacher")
    }
    blocks: list[Block] = [score_table(run, kinds["quality"] or kinds["confidence"], "Scores of every model")]
    if kinds["teacher"]:
        lead = "Right or wrong, how much its answers are its teacher's."
        beside = score_table(run, kinds["teacher"], "Closeness to the teacher")
        blocks += [Heading("Like its teacher", lead), beside] if kinds["quality"] or kinds["confidence"] else [beside]
    lead = (
        "Mean ± standard deviation over seeds. Arrows show which direction is better; the best student of each column "
        "is bold."
    )
    return Section("scores", "Scores", "Scores", lead, [block for block in blocks if not _is_empty(block)])


def score_table(run: Run, columns: Sequence[Metric], caption: str) -> Table:
    """A row for each arm that has any of these, a column for each; the best student is bold where there are several."""
    scores = run.scores
    coloured = styles(scores)
    best = {column.key: _best(scores, column) for column in columns}
    rows = []
    for arm in arms(scores):
        found = [(column, spread(scores, arm, column.key)) for column in columns]
        if (
            not any(own for _, own in found)
            and metrics_of(scores)
            and any(spread(scores, arm, c.key) for c in metrics_of(scores))
        ):
            continue
        cells = [
            Cell(
                column.spread(own.mean, own.sd).removesuffix(" %"),
                own.mean,
                best=arm.name in best[column.key],
            )
            if own
            else Cell(numbers.DASH)
            for column, own in found
        ]
        count = max((own.n for _, own in found if own), default=0)
        seeds = f"{count} seed{'s' if count != 1 else ''}" if count else "not scored"
        rows.append([Cell(arm.label, note=seeds, style=coloured.get(arm.name, "")), *cells])
    head = [
        Head("Model"),
        *(
            Head(f"{column.label} {column.arrow}".strip(), "%" if column.unit == "fraction" else "")
            for column in columns
        ),
    ]
    return Table(caption, head, rows)


def _is_empty(block: Block) -> bool:
    return isinstance(block, Table) and not block.rows


def _best(scores: Mapping[str, Any], column: Metric) -> set[str]:
    found = {arm.name: spread(scores, arm, column.key) for arm in arms(scores) if arm.role != "teacher"}
    values = {name: own.mean for name, own in found.items() if own is not None}
    if column.better == "neither" or len(values) < 2:
        return set()
    top = max(values.values()) if column.better == "higher" else min(values.values())
    return {name for name, value in values.items() if value == top}
