"""A run folder as one self-contained page: no request, no script, light and dark, at any width, and on paper."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.core.records import write_text
from limbeck.report import besides, figures, sections
from limbeck.report.reading import Run, arms, metrics_of, read, sequence, subjects, text
from limbeck.report.summary import lines, verdict

__all__ = ["render"]


def render(folder: Path) -> Path:
    """Write `report.html` into a run folder and return its path.

    Reads `scores.json`, `metrics.jsonl`, `environment.json` and `recipe.yaml`; the sections of what is missing are
    left out. The file is written whole or not at all, and equal records give an equal page.

    Args:
        folder: the folder of a run.

    Raises:
        CheckpointError: the folder does not exist or cannot be written, or one of its files is damaged.
    """
    folder = Path(folder)
    page = _page(read(folder), folder.resolve().name)
    path = folder / "report.html"
    write_text(path, page)
    return path


def _page(run: Run, name: str) -> str:
    # Slow to import, and only needed where a page is written.
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415

    shelf = Environment(loader=PackageLoader("limbeck.report"), autoescape=True, undefined=StrictUndefined,
                        trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    return shelf.get_template("page.html").render(_content(run, name))


def _content(run: Run, name: str) -> dict[str, Any]:
    scores = run.scores
    said = lines(scores)
    columns, rows = sections.scores_table(scores)
    costs, footprints = sections.footprints(scores)
    shown, recalls, left_out = sections.classes(scores)
    compared = figures.differences(scores)
    # `arm@factor` is an arm at another learning rate, which has a section of its own.
    records = [record for record in run.metrics if "@" not in text(record.get("arm"))]
    used = {*(column.key for column in columns)}
    return {
        "title": text(scores.get("title")) or name,
        "verdict": verdict(scores),
        "headline": said[0],
        "further": said[1:],
        "context": _context(scores),
        "tiles": sections.tiles(scores),
        "columns": columns,
        "rows": rows,
        "compared": compared,
        "intervals": figures.interval_figures(scores),
        "validation": figures.validation_figures(scores, records),
        "losses": figures.loss_figures(scores, records),
        "terms": figures.term_figures(scores, records),
        "class_arms": [(sections.styles(scores).get(arm.name, ""), arm.label) for arm in shown],
        "class_rows": recalls,
        "class_figure": figures.class_figure(scores, shown, recalls),
        "left_out": left_out,
        "costs": costs,
        "footprints": footprints,
        "besides": besides.sections(scores, run.evidence),
        "gallery": besides.gallery(scores, run.evidence),
        "disagreements": besides.disagreements(run.evidence),
        "measures": list(besides.MEASURES.values()) if run.evidence else [],
        "story": text(scores.get("story")),
        "made": [arm for arm in arms(scores) if arm.describe or arm.objective],
        "runs": sections.runs(scores),
        "recipe": run.recipe.rstrip(),
        "environment": sections.environment(run.environment),
        "notes": [text(note) for note in sequence(scores.get("notes"))],
        "glossary": [column for column in metrics_of(scores) if column.key in used and column.meaning],
        "version": text(run.environment.get("limbeck")),
        "started": text(run.environment.get("started")),
    }


def _context(scores: Mapping[str, Any]) -> str:
    """What the headline was measured on, in a few words."""
    samples, split = scores.get("samples"), text(scores.get("split"))
    parts = []
    if isinstance(samples, int):
        parts.append(f"{samples:,} {split or 'test'} samples".replace(",", "\N{NO-BREAK SPACE}"))
    classes = sequence(scores.get("classes"))
    if classes:
        parts.append(f"{len(classes)} classes")
    if len(subjects(scores)) > 1:
        parts.append("headline student chosen by its validation score")
    return " · ".join(parts)
