"""Recall of each class: where a model stands, and what changed against the student trained alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from limbeck.report import charts, numbers
from limbeck.report.looks import styles
from limbeck.report.reading import (
    Arm,
    Run,
    baseline,
    finite,
    found_at,
    sequence,
    subjects,
    teacher,
    text,
)  # fmt: skip
from limbeck.report.sections.blocks import Block, Cell, Figure, Figures, Head, Section, Table

__all__ = ["class_names", "section"]

MOST_CLASSES = 40


class _Change(NamedTuple):
    """By how much a class is found more often: at each seed that both have, and on average."""

    name: str
    seeds: list[tuple[str, float]]

    @property
    def mean(self) -> float:
        return statistics.fmean(value for _, value in self.seeds)


def class_names(scores: Mapping[str, Any], number: int) -> list[str]:
    """What the classes are called; those without a name are counted."""
    known = [text(name) for name in sequence(scores.get("classes"))]
    return [known[i] if i < len(known) else f"class {i}" for i in range(number)]


def section(run: Run) -> Section | None:
    """Teacher, plain and first student, class by class.

    Of more than 40 classes those stay on which the student is furthest from the student trained alone (or the
    teacher), because that is where distillation did something.
    """
    scores = run.scores
    everyone = [arm for arm in (teacher(scores), baseline(scores), *subjects(scores)[:1]) if arm is not None]
    distinct = {arm.name: arm for arm in everyone}
    found = {name: (arm, values) for name, arm in distinct.items() if (values := _means(arm))}
    if not found:
        return None
    number = max(len(values) for _, values in found.values())
    names = class_names(scores, number)
    rows = [(i, [values[i] if i < len(values) else None for _, values in found.values()]) for i in range(number)]
    if number > MOST_CLASSES:
        rows = sorted(sorted(rows, key=lambda row: -_apart(row[1]))[:MOST_CLASSES])
    left_out = number - len(rows)
    shown = [arm for arm, _ in found.values()]
    changes = _changes(baseline(scores), subjects(scores)[:1], names, [i for i, _ in rows])
    lead = "The share of each class that is found, mean over seeds."
    if left_out:
        lead += f" {left_out} classes on which the models differ less are left out."
    named = [(names[i], values) for i, values in rows]
    figures = _figures(scores, shown, named, changes)
    legend = [(styles(scores).get(arm.name, ""), arm.label) for arm in shown]
    blocks: list[Block] = [Figures(figures, legend)] if figures else []
    blocks.append(_table(shown, named, {change.name: change for change in changes}))
    return Section("classes", "Class by class", "Class by class", lead, blocks)


def _figures(
    scores: Mapping[str, Any],
    shown: Sequence[Arm],
    rows: Sequence[tuple[str, Sequence[float | None]]],
    changes: Sequence[_Change],
) -> list[Figure]:
    coloured = styles(scores)
    dots = [
        charts.DotRow(name, [
            charts.Dot(value, coloured.get(arm.name, ""), f"{name}\n{arm.label}: {numbers.percent(value)}", arm.label)
            for arm, value in zip(shown, values, strict=True) if value is not None
        ])
        for name, values in rows
    ]  # fmt: skip
    svg = charts.dot_chart(dots, title="Recall by class", scale=100, unit=" %", limits=(1.0,))
    drawn = [Figure("Recall by class ↑", svg)] if svg else []
    if changes:
        moved = [
            charts.DotRow(change.name, [
                *(charts.Dot(value, "small same", f"{change.name}\nSeed {seed}: {numbers.points(value)}", size=2.5)
                  for seed, value in change.seeds if len(change.seeds) > 1),
                charts.Dot(change.mean, _tone(change.mean), f"{change.name}\n{numbers.points(change.mean)} on average"),
            ])
            for change in changes
        ]  # fmt: skip
        svg = charts.dot_chart(moved, title="Change of recall by class", scale=100, zero=True)
        drawn.append(Figure("Change against training alone, points · small dots are seeds", svg))
    return drawn


def _table(
    shown: Sequence[Arm],
    rows: Sequence[tuple[str, Sequence[float | None]]],
    changes: Mapping[str, _Change],
) -> Table:
    head = [Head("Class"), *(Head(arm.label) for arm in shown), *([Head("Change", "points")] if changes else [])]
    table = []
    for name, values in rows:
        row = [Cell(name), *(Cell(numbers.percent(value), value) for value in values)]
        if changes:
            change = changes.get(name)
            row.append(
                Cell(numbers.signed(100 * change.mean), change.mean, tone=_tone(change.mean))
                if change
                else Cell(numbers.DASH)
            )
        table.append(row)
    return Table("Recall by class", head, table)


def _changes(plain: Arm | None, students: Sequence[Arm], names: Sequence[str], shown: Sequence[int]) -> list[_Change]:
    """The student's recall minus that of the student trained alone, seed by seed."""
    if plain is None or not students or students[0].name == plain.name:
        return []
    ours, theirs = _recalls(students[0]), _recalls(plain)
    found = []
    for i in shown:
        pairs = [
            (seed, mine[i] - other[i])
            for seed, mine in ours.items()
            if (other := theirs.get(seed)) is not None and i in mine and i in other
        ]
        if pairs:
            found.append(_Change(names[i], pairs))
    return found


def _recalls(arm: Arm) -> dict[str, dict[int, float]]:
    """By seed: the recall of each class that could be scored."""
    return {
        text(run.get("seed")): {
            i: known
            for i, value in enumerate(sequence(found_at(run, "scores", "recall_per_class")))
            if (known := finite(value)) is not None
        }
        for run in arm.runs
    }


def _means(arm: Arm) -> list[float | None]:
    """Recall of each class, averaged over seeds; None for a class that no seed could score."""
    every = [sequence(found_at(run, "scores", "recall_per_class")) for run in arm.runs]
    means: list[float | None] = []
    for index in range(max(map(len, every), default=0)):
        values = [v for run in every if index < len(run) and (v := finite(run[index])) is not None]
        means.append(statistics.fmean(values) if values else None)
    return means


def _apart(values: Sequence[float | None]) -> float:
    if len(values) < 2 or values[-1] is None or values[-2] is None:
        return -1.0 if None in values else -(values[0] or 0.0)
    return abs(values[-1] - values[-2])


def _tone(change: float) -> str:
    if round(100 * change, 1) == 0:
        return "same"
    return "better" if change > 0 else "worse"
