"""Accuracy on harder inputs, under attack, and with noise in the model itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.report import charts
from limbeck.report.charts.scale import SMALL
from limbeck.report.looks import legend, styles
from limbeck.report.reading import Run, arms, finite, found_at, measured, sequence, text
from limbeck.report.sections.blocks import Figure, Figures, Section, line_figure

__all__ = ["section"]

_KINDS = (
    ("Noise", ("robustness", "corruptions", "noise"), ""),
    ("Blur", ("robustness", "corruptions", "blur"), ""),
    ("Less contrast", ("robustness", "corruptions", "contrast"), ""),
    ("Shift", ("robustness", "corruptions", "shift"), ""),
    ("Attack in one step (FGSM)", ("robustness", "attacks", "fgsm", "accuracy"), "epsilon"),
    ("Attack step by step (PGD)", ("robustness", "attacks", "pgd", "accuracy"), "epsilon"),
    ("Attack on the margin (PGD)", ("robustness", "attacks", "margin", "accuracy"), "epsilon"),
    ("Noise on inputs", ("sensitivity", "inputs", "accuracy"), "scale"),
    ("Noise on weights", ("sensitivity", "weights", "accuracy"), "scale"),
)


def section(run: Run) -> Section | None:
    """One chart for each kind of hardship that was measured."""
    figures = [figure for kind in _KINDS if (figure := _figure(run, *kind))]
    if not figures:
        return None
    lead = (
        "Accuracy as conditions get worse, from left to right: five strengths from mild to severe; attacks that move "
        "inputs by at most so much of the full range; noise in shares of the spread of inputs, or of the size of "
        "weights. Thin lines are single seeds, strong lines their mean."
    )
    blocks = [Figures(figures, legend(run.scores, _names(run)), small=True)]
    return Section("robustness", "When conditions get worse", "Robustness", lead, blocks)


def _names(run: Run) -> list[str]:
    return [arm.name for arm in arms(run.scores) if measured(run.evidence, arm.name)]


def _figure(run: Run, caption: str, path: Sequence[str], across: str) -> Figure | None:
    coloured, lines = styles(run.scores), []
    for arm in arms(run.scores):
        entries = measured(run.evidence, arm.name)
        seeds = {text(entry.get("seed")): _points(entry, path, across) for entry in entries}
        kept = {seed: points for seed, points in seeds.items() if points}
        if kept:
            lines.append(charts.Line(arm.label, coloured.get(arm.name, ""), list(kept.values()), list(kept)))
    return line_figure(caption, lines, title=f"Accuracy: {caption}", axis=across or "strength", fraction=True,
                       width=SMALL)  # fmt: skip


def _points(entry: Mapping[str, Any], path: Sequence[str], across: str) -> list[charts.Point]:
    """Strength and accuracy; where no strengths were kept they are counted from 1."""
    values = sequence(found_at(entry, *path))
    at = sequence(found_at(entry, *path[:-1], across)) if across else list(range(1, len(values) + 1))
    pairs = [(finite(x), finite(y)) for x, y in zip(at, values, strict=False)]
    return [(x, y) for x, y in pairs if x is not None and y is not None]
