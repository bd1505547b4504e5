"""The notes of the run, and what the words of the page mean."""

from __future__ import annotations

from limbeck.report.glossary import MEASURES, SEARCH
from limbeck.report.reading import Run, is_search, metrics_of, sequence, text
from limbeck.report.searching import searches
from limbeck.report.sections.blocks import Block, Folded, Items, Pairs, Section

__all__ = ["glossary", "notes"]


def notes(run: Run) -> Section | None:
    """What a reader must know besides."""
    said = [text(note) for note in sequence(run.scores.get("notes"))]
    return Section("notes", "Notes", "Notes", "", [Items(said)]) if said else None


def glossary(run: Run) -> Section | None:
    """Each metric and measure that is on the page, in a sentence."""
    rows = [(f"{column.label} {column.arrow}".strip(), column.meaning, "") for column in metrics_of(run.scores)
            if column.meaning]  # fmt: skip
    if not rows:
        return None
    blocks: list[Block] = [Folded("Metrics", Pairs(rows))]
    if searches(run):
        blocks.append(Folded("The search", Pairs([(name, said, "") for name, said in SEARCH.items()])))
    if run.evidence and not is_search(run.scores):
        beside = [(f"{row.label} {row.arrow}".strip(), row.meaning, "") for row in MEASURES.values()]
        blocks.append(Folded("What was measured besides", Pairs(beside)))
    return Section("glossary", "What the words mean", "Words", "", blocks)
