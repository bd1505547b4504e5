"""Which class is taken for which: the student's answers, and how they differ from others'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.report import charts, numbers
from limbeck.report.reading import Arm, Run, baseline, finite, measured, sequence, subjects, teacher
from limbeck.report.sections.blocks import Block, Cell, Figure, Figures, Head, Section, Table
from limbeck.report.sections.classes import class_names

__all__ = ["section", "shares"]

MOST_DRAWN = 30
_PAIRS = 10

Square = list[list[float]]


def section(run: Run) -> Section | None:
    """A heat map of the first student, and its change against the student trained alone and the teacher."""
    students = subjects(run.scores)[:1]
    own = shares(measured(run.evidence, students[0].name)) if students else []
    if not own or len(own) > MOST_DRAWN:
        return None
    student, names = students[0], class_names(run.scores, len(own))
    figures = [_whole(student, own, names)]
    rivals: list[tuple[Arm, Square]] = []
    for other in (baseline(run.scores), teacher(run.scores)):
        theirs = shares(measured(run.evidence, other.name)) if other and other.name != student.name else []
        if other is not None and len(theirs) == len(own):
            figures.append(_change(other, own, theirs, names))
            rivals.append((other, theirs))
    lead = (
        "Rows are true classes, columns are answers, all seeds together: what share of a class is answered how. "
        "Teal is what is right, or got better; orange is what is wrong, or got worse."
    )
    blocks: list[Block] = [Figures(figures, small=True)]
    table = _worst(student, own, rivals, names)
    if table.rows:
        blocks.append(table)
    return Section("confusion", "What is taken for what", "Confusions", lead, blocks)


def shares(entries: Sequence[Mapping[str, Any]]) -> Square:
    """The counts of all seeds added up, each row as shares of its class; empty where there is no square of counts."""
    total: Square = []
    for entry in entries:
        rows = [[finite(value) for value in sequence(row)] for row in sequence(entry.get("confusion"))]
        if not rows or any(len(row) != len(rows) or any(v is None or v < 0 for v in row) for row in rows):
            continue
        known = [[value or 0.0 for value in row] for row in rows]
        if not total:
            total = known
        elif len(total) == len(known):
            total = [[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(total, known, strict=True)]
    return [[value / (sum(row) or 1.0) for value in row] for row in total]


def _whole(arm: Arm, own: Square, names: Sequence[str]) -> Figure:
    def tip(i: int, j: int) -> str:
        return f"{names[i]} answered {names[j]}\n{numbers.percent(own[i][j])} of its samples"

    title = f"Answers of {arm.label}"
    svg = charts.heat_map(_blank(own), names, title=title, tip=tip,
                          shade=lambda i, j, _: "heat better" if i == j else "heat worse")  # fmt: skip
    return Figure(title, svg, _square(title, own, names, numbers.percent))


def _change(other: Arm, own: Square, theirs: Square, names: Sequence[str]) -> Figure:
    moved = [[a - b for a, b in zip(x, y, strict=True)] for x, y in zip(own, theirs, strict=True)]

    def tip(i: int, j: int) -> str:
        return f"{names[i]} answered {names[j]}\n{numbers.points(moved[i][j])} against {other.label}"

    def shade(i: int, j: int, value: float) -> str:
        return "heat better" if (value > 0) == (i == j) else "heat worse"

    title = f"Change against {other.label}"
    svg = charts.heat_map(_blank(moved), names, title=title, tip=tip, shade=shade)
    return Figure(title, svg, _square(title, moved, names, numbers.points))


def _blank(square: Square) -> list[list[float | None]]:
    return [[value or None for value in row] for row in square]


def _square(title: str, square: Square, names: Sequence[str], show: Any) -> Table:
    head = [Head("True class"), *(Head(name) for name in names)]
    rows = [[Cell(name), *(Cell(show(value), value) for value in row)] for name, row in zip(names, square, strict=True)]
    return Table(title, head, rows)


def _worst(arm: Arm, own: Square, rivals: Sequence[tuple[Arm, Square]], names: Sequence[str]) -> Table:
    """The confusions that happen most, beside how often others have them."""
    size = range(len(own))
    pairs = sorted(((i, j) for i in size for j in size if i != j and own[i][j]), key=lambda p: -own[p[0]][p[1]])
    head = [Head("True class"), Head("Taken for", left=True), Head(arm.label), *(Head(o.label) for o, _ in rivals)]
    rows = [
        [Cell(names[i]), Cell(names[j]), Cell(numbers.percent(own[i][j]), own[i][j]),
         *(Cell(numbers.percent(theirs[i][j]), theirs[i][j]) for _, theirs in rivals)]
        for i, j in pairs[:_PAIRS]
    ]  # fmt: skip
    return Table("The most frequent confusions, share of the true class", head, rows)
