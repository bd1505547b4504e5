"""The sections of the page, one file each, in the order in which they are read. An empty section is not there."""

from __future__ import annotations

from collections.abc import Callable

from limbeck.report.reading import Run
from limbeck.report.sections import (
    attempts,
    attention,
    calibration,
    classes,
    confusion,
    costs,
    curves,
    differences,
    disagreements,
    frontier,
    made,
    rates,
    robustness,
    scores,
    seeds,
    steadiness,
    trials,
    words,
)  # fmt: skip
from limbeck.report.sections.blocks import Section

__all__ = ["SECTIONS", "sections"]

SECTIONS: tuple[Callable[[Run], Section | None], ...] = (
    attempts.section,
    scores.section,
    differences.section,
    seeds.section,
    curves.section,
    calibration.section,
    confusion.section,
    classes.section,
    frontier.section,
    costs.section,
    steadiness.section,
    rates.section,
    robustness.section,
    attention.section,
    disagreements.section,
    trials.section,
    words.notes,
    made.section,
    words.glossary,
)
"""What makes each of them from the records of a run: None where there is nothing to show."""


def sections(run: Run) -> list[Section]:
    """All sections for which the run has records."""
    return [found for make in SECTIONS if (found := make(run)) is not None]
