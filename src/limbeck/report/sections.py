"""What each section of the page shows, as plain values ready for the template; an empty section is left out."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

from limbeck.report import numbers
from limbeck.report.glossary import Metric
from limbeck.report.reading import (
    Arm,
    arms,
    baseline,
    finite,
    mapping,
    metrics_of,
    primary,
    sequence,
    spread,
    subjects,
    teacher,
    text,
)  # fmt: skip

__all__ = ["Cell", "Row", "Tile", "classes", "environment", "footprints", "runs", "scores_table", "styles", "tiles"]

MOST_CLASSES = 40


class Tile(NamedTuple):
    """One large number at the top of the page."""

    label: str
    value: str
    note: str
    style: str


class Cell(NamedTuple):
    """One cell of a table; `best` is written bold, `note` small beneath."""

    value: str
    note: str = ""
    best: bool = False


class Row(NamedTuple):
    """One row of a table."""

    label: str
    note: str
    style: str
    cells: list[Cell]


def styles(scores: Mapping[str, Any]) -> dict[str, str]:
    """The CSS class that colours each arm: the first student has the accent."""
    plain, found, students = baseline(scores), {}, [arm.name for arm in subjects(scores)]
    for arm in arms(scores):
        if arm.role == "teacher":
            found[arm.name] = "teacher"
        elif arm.name in students:
            found[arm.name] = f"s{students.index(arm.name) % 5 + 1}"
        elif plain is not None and arm.name == plain.name:
            found[arm.name] = "plain"
    return found


def tiles(scores: Mapping[str, Any]) -> list[Tile]:
    """Quality of teacher, plain and first student, then the student's cost as a share of the teacher's."""
    chosen, elder, found = primary(scores), teacher(scores), subjects(scores)
    coloured = styles(scores)
    shown: list[Tile] = []
    plain = baseline(scores)
    for arm, style in ((elder, ""), (plain, ""), (found[0] if found else None, "accent")):
        if arm is None or chosen is None or (arm is plain and style == "accent"):
            continue
        own = spread(scores, arm, chosen.key)
        if own is not None and not any(tile.style == coloured[arm.name] for tile in shown):
            note = f"± {chosen.show(own.sd)}, {own.n} seeds" if own.sd is not None else ""
            shown.append(Tile(f"{chosen.label}, {arm.label}", chosen.show(own.mean), note, coloured[arm.name]))
    if elder is None or not found:
        return shown
    # Bytes nearly always tell what parameters tell already; they are in the table.
    for label, key, show in (cost for cost in _COSTS if cost[1] != "bytes"):
        share = _relative(found[0], elder, key)
        if share != numbers.DASH:
            own_cost, whole = (show(_cost(arm, key)) for arm in (found[0], elder))
            shown.append(Tile(f"{label} of the teacher's", share, f"{own_cost} of {whole}", ""))
    return shown


def scores_table(scores: Mapping[str, Any]) -> tuple[list[Metric], list[Row]]:
    """Columns and rows of the table of scores; the best student of a column is bold where there are several."""
    columns, everyone, coloured = metrics_of(scores), arms(scores), styles(scores)
    best = {column.key: _best(scores, column) for column in columns}
    rows = []
    for arm in everyone:
        found = [(column, spread(scores, arm, column.key)) for column in columns]
        cells = [
            Cell(
                column.spread(own.mean, own.sd).removesuffix(" %") if own else numbers.DASH,
                best=arm.name in best[column.key],
            )
            for column, own in found
        ]
        count = max((own.n for _, own in found if own), default=0)
        seeds = f"{count} seed{'s' if count != 1 else ''}" if count else "not scored"
        rows.append(Row(arm.label, seeds, coloured.get(arm.name, ""), cells))
    return (columns, rows) if columns else ([], [])


def footprints(scores: Mapping[str, Any]) -> tuple[list[str], list[Row]]:
    """Headers and rows of the table of costs, each beside its ratio to the teacher's; empty without any."""
    elder, coloured, rows = teacher(scores), styles(scores), []
    keys = [cost for cost in _COSTS if any(_cost(arm, cost[1]) is not None for arm in arms(scores))]
    for arm in arms(scores):
        if not arm.footprint:
            continue
        cells = []
        for _, key, show in keys:
            share = _relative(arm, elder, key) if elder and arm.name != elder.name else ""
            cells.append(Cell(show(_cost(arm, key)) + _range(arm, key), "" if share == numbers.DASH else share))
        rows.append(Row(arm.label, _conditions(arm), coloured.get(arm.name, ""), cells))
    return ([label for label, _, _ in keys], rows) if keys else ([], [])


def classes(scores: Mapping[str, Any]) -> tuple[list[Arm], list[tuple[str, list[float | None]]], int]:
    """Arms, recall of each class for each arm, and how many classes were left out.

    Teacher, plain and first student are shown. Of more than 40 classes those stay on which the student is furthest
    from the other student (or the teacher), because that is where distillation did something.
    """
    shown = [arm for arm in (teacher(scores), baseline(scores), *subjects(scores)[:1]) if arm is not None]
    found = {arm.name: (arm, values) for arm in shown if (values := _recalls(arm))}
    if not found:
        return [], [], 0
    known = [text(name) for name in sequence(scores.get("classes"))]
    number = max(len(values) for _, values in found.values())
    rows = []
    for index in range(number):
        name = known[index] if index < len(known) else f"class {index}"
        rows.append((name, [vs[index] if index < len(vs) else None for _, vs in found.values()]))
    if number > MOST_CLASSES:
        kept = sorted(range(number), key=lambda i: -_apart(rows[i][1]))[:MOST_CLASSES]
        rows = [rows[i] for i in sorted(kept)]
    return [arm for arm, _ in found.values()], rows, number - len(rows)


def runs(scores: Mapping[str, Any]) -> list[list[str]]:
    """A row for each single training: arm, seed, headline metric, epochs, steps, duration, why it stopped."""
    chosen, rows = primary(scores), []
    for arm in arms(scores):
        for run in arm.runs:
            value = finite(mapping(run.get("scores")).get(chosen.key)) if chosen else None
            plain = [numbers.number(finite(run.get(key)), 0) for key in ("epochs", "steps")]
            score = chosen.show(value) if chosen else numbers.DASH
            rows.append([arm.label, text(run.get("seed")) or numbers.DASH, score, *plain,
                         numbers.seconds(finite(run.get("seconds"))),
                         text(run.get("stopped_by")) or numbers.DASH])  # fmt: skip
    return rows


def environment(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of everything that is known about where the run was made."""
    rows = []
    for key, value in found.items():
        shown = numbers.seconds(finite(value)) if key == "seconds" else text(value)
        rows.append((str(key).replace("_", " "), shown))
    return rows


_COSTS = (
    ("Parameters", "parameters", numbers.count),
    ("Size", "bytes", numbers.size),
    ("MACs", "macs", numbers.count),
    ("Latency", "latency", numbers.seconds),
)


def _cost(arm: Arm, key: str) -> float | None:
    if key == "latency":
        return finite(mapping(arm.footprint.get("latency")).get("p50"))
    return finite(arm.footprint.get(key))


def _relative(arm: Arm, elder: Arm, key: str) -> str:
    """The arm's cost as a share of the teacher's; latencies measured under other conditions are not compared."""
    if key == "latency" and _conditions(arm) != _conditions(elder):
        return numbers.DASH
    return numbers.ratio(_cost(arm, key), _cost(elder, key))


def _range(arm: Arm, key: str) -> str:
    timed = mapping(arm.footprint.get("latency"))
    low, high = finite(timed.get("p10")), finite(timed.get("p90"))
    if key != "latency" or low is None or high is None:
        return ""
    return f" [{numbers.seconds(low)} {numbers.DASH} {numbers.seconds(high)}]"


def _conditions(arm: Arm) -> str:
    timed = mapping(arm.footprint.get("latency"))
    return ", ".join(f"{key} {timed[key]}" for key in ("batch", "threads") if timed.get(key) is not None)


def _best(scores: Mapping[str, Any], column: Metric) -> set[str]:
    found = {arm.name: spread(scores, arm, column.key) for arm in arms(scores) if arm.role != "teacher"}
    values = {name: own.mean for name, own in found.items() if own is not None}
    if column.better == "neither" or len(values) < 2:
        return set()
    top = max(values.values()) if column.better == "higher" else min(values.values())
    return {name for name, value in values.items() if value == top}


def _recalls(arm: Arm) -> list[float | None]:
    """Recall of each class, averaged over runs; None for a class that no run could score."""
    every = [sequence(mapping(run.get("scores")).get("recall_per_class")) for run in arm.runs]
    means: list[float | None] = []
    for index in range(max(map(len, every), default=0)):
        values = [v for run in every if index < len(run) and (v := finite(run[index])) is not None]
        means.append(statistics.fmean(values) if values else None)
    return means


def _apart(values: list[float | None]) -> float:
    if len(values) < 2 or values[-1] is None or values[-2] is None:
        return -1.0 if None in values else -(values[0] or 0.0)
    return abs(values[-1] - values[-2])
