"""What the models look at: agreement of attributions with the teacher's, and pictures of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from limbeck.report import numbers
from limbeck.report.looks import labels, styles
from limbeck.report.reading import Run, arms, finite, found_at, mapping, measured, sequence, text
from limbeck.report.sections.blocks import Block, Cell, Head, Heading, Section, Table, picture

__all__ = ["section"]

_WAYS = {"gradient_input": "Gradient × input", "integrated_gradients": "Integrated gradients", "grad_cam": "Grad-CAM"}


def section(run: Run) -> Section | None:
    """Rank correlation with the teacher's attributions, beside that of a random network, and a gallery."""
    agreement, gallery = _agreement(run), _gallery(run)
    if not (agreement or gallery):
        return None
    blocks: list[Block] = [agreement] if agreement else []
    if gallery:
        lead = "Dark: inputs that move the answer most. The teacher's top class is explained in every model."
        blocks += [Heading("Pictures", lead), gallery]
    lead = (
        "Which inputs move the answer is worked out for teacher and student and compared by rank: 1 is the same order "
        "of importance, 0 is unrelated. A network with random weights shows what chance gives."
    )
    return Section("gallery", "Does it look where its teacher looks?", "What it looks at", lead, blocks)


def _agreement(run: Run) -> Table | None:
    ways = {
        key: None
        for arm in arms(run.scores)
        for entry in measured(run.evidence, arm.name)
        for key in mapping(entry.get("attribution"))
        if finite(found_at(entry, "attribution", key, "rank")) is not None
    }
    if not ways:
        return None
    coloured, rows = styles(run.scores), []
    for arm in arms(run.scores):
        entries = measured(run.evidence, arm.name)
        if arm.role != "teacher" and entries:
            values = [[finite(found_at(entry, "attribution", way, "rank")) for entry in entries] for way in ways]
            rows.append([Cell(arm.label, style=coloured.get(arm.name, "")), *(_mean(each) for each in values)])
    chance = [finite(found_at(run.evidence, "random", "attribution", way, "rank")) for way in ways]
    if any(value is not None for value in chance):
        rows.append([Cell("A random network"), *(_mean([value]) for value in chance)])
    head = [Head("Model"), *(Head(f"{_WAYS.get(way, way.replace('_', ' '))} ↑") for way in ways)]
    return Table("Rank correlation with what moves the teacher's answer", head, rows)


def _mean(values: list[float | None]) -> Cell:
    known = [value for value in values if value is not None]
    if not known:
        return Cell(numbers.DASH)
    return Cell(numbers.number(statistics.fmean(known), 2), statistics.fmean(known))


def _gallery(run: Run) -> Table | None:
    """A row for each sample, a column for it and for each model's map."""
    called = labels(run.scores)
    shown = [mapping(entry) for entry in sequence(run.evidence.get("gallery"))]
    names = dict.fromkeys(text(each.get("arm")) for entry in shown for each in _maps(entry))
    rows = []
    for entry in shown:
        maps = {text(each.get("arm")): picture(each.get("image")) for each in _maps(entry)}
        label = text(entry.get("label"))
        pictures = [("the sample", picture(entry.get("image"))),
                    *((called.get(name, name), maps.get(name, "")) for name in names)]  # fmt: skip
        if any(uri for _, uri in pictures):
            cells = [Cell(f"{said}: {label}" if uri else numbers.DASH, picture=uri) for said, uri in pictures]
            rows.append([Cell(label), *cells])
    head = [Head("Class", left=True), Head("Sample", left=True), *(Head(called.get(n, n), left=True) for n in names)]
    return Table("What moves the answer, sample by sample", head, rows, pictures=True) if rows else None


def _maps(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [mapping(each) for each in sequence(entry.get("maps"))]
