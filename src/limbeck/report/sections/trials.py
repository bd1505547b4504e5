"""What `objective="auto"` tried, round by round, and what it took from it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.report import numbers
from limbeck.report.looks import labels
from limbeck.report.reading import Run, finite, mapping, sequence, text
from limbeck.report.sections.blocks import Block, Cell, Head, Section, Table

__all__ = ["section"]

_LEAD = (
    "The objective was chosen by short trainings from the same start, scored on validation samples. Of each round the "
    "best go on and are trained for longer, up to the end of the trials; the student on labels alone is tried in every "
    "round, and is what was trained in the end unless something was ahead of it. Short trainings do not foretell long "
    "ones for certain, and the best of many is flattered a little: judge by the scores above."
)


def section(run: Run) -> Section | None:
    """A table for each arm that was chosen: a row for each candidate, a column for each round."""
    rows = [row for each in sequence(run.evidence.get("trials")) if (row := mapping(each)).get("candidate")]
    called = labels(run.scores)
    blocks: list[Block] = []
    for arm in dict.fromkeys(text(row.get("arm")) for row in rows):
        mine = [row for row in rows if text(row.get("arm")) == arm]
        rounds = sorted({at for row in mine if (at := finite(row.get("round"))) is not None})
        names = list(dict.fromkeys(text(row["candidate"]) for row in mine))
        if rounds:
            heads = [Head("Candidate"), *(_head(mine, at) for at in rounds), Head("Terms", left=True, wraps=True)]
            table = [
                [Cell(name), *(_cell(mine, name, at) for at in rounds), Cell(_terms(mine, name))] for name in names
            ]
            blocks.append(Table(f"Accuracy on validation, {called.get(arm, arm)}", heads, table))
    return Section("trials", "What was tried", "What was tried", _LEAD, blocks) if blocks else None


def _head(rows: Sequence[Mapping[str, Any]], at: float) -> Head:
    steps = {text(row.get("steps")) for row in rows if finite(row.get("round")) == at}
    return Head(f"Round {at:.0f}", note=f"{' or '.join(sorted(steps))} steps")


def _terms(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    first = next(row for row in rows if text(row["candidate"]) == name)
    return " + ".join(text(phrase) for phrase in sequence(first.get("objective")))


def _cell(rows: Sequence[Mapping[str, Any]], name: str, at: float) -> Cell:
    """The mean over seeds, and at how many of them the candidate went on."""
    same = [row for row in rows if text(row["candidate"]) == name and finite(row.get("round")) == at]
    if not same:
        return Cell(numbers.DASH)
    known = [x for row in same if (x := finite(row.get("accuracy"))) is not None]
    kept = sum(row.get("kept") is True for row in same)
    mean = statistics.fmean(known) if known else None
    went = "went on" if kept == len(same) else "" if not kept else f"went on at {kept} of {len(same)} seeds"
    broke = len(same) - len(known)
    note = ", ".join(part for part in (went, f"{broke} broke down" if broke else "") if part)
    return Cell(numbers.percent(mean), mean, note=note, best=bool(kept), tone="worse" if broke else "")
