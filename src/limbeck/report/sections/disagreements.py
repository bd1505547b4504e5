"""The samples on which student and teacher differ most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limbeck.report import numbers
from limbeck.report.reading import Run, finite, mapping, sequence, text
from limbeck.report.sections.blocks import Cell, Head, Section, Table, picture

__all__ = ["section"]


def section(run: Run) -> Section | None:
    """A row for each sample: its picture, its id, the truth, both answers and how far they are apart."""
    rows = []
    for entry in map(mapping, sequence(run.evidence.get("disagreements"))):
        truth, image, apart = text(entry.get("label")), picture(entry.get("image")), finite(entry.get("kl"))
        name = text(entry.get("id"))
        sample = Cell(f"sample {name}", picture=image) if image else Cell(numbers.DASH)
        rows.append([
            Cell(name), sample, Cell(truth), _answer(mapping(entry.get("teacher")), truth),
            _answer(mapping(entry.get("student")), truth), Cell(numbers.number(apart, 2), apart),
        ])  # fmt: skip
    if not rows:
        return None
    head = [Head("Sample"), Head("Picture", left=True), Head("True class", left=True), Head("Teacher", left=True),
            Head("Student", left=True), Head("KL", "nats")]  # fmt: skip
    lead = "Test samples of one seed, with the confidence of each answer. Wrong answers are marked."
    table = Table("Worst disagreements", head, rows, pictures=True)
    return Section("disagreements", "Where student and teacher disagree most", "Disagreements", lead, [table])


def _answer(answer: Mapping[str, Any], truth: str) -> Cell:
    said, sure = text(answer.get("class")), finite(answer.get("confidence"))
    right = bool(truth) and said == truth
    note = f"{numbers.percent(sure, 0)} sure" if sure is not None else ""
    return Cell(said, note=note, tone="" if right or not truth else "worse")
