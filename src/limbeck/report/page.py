"""A run folder as one self-contained page: no request, one script of our own, light and dark, any width, on paper."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from limbeck.core.records import write_text
from limbeck.report import asked
from limbeck.report.opening import NOTE, headline, points, tiles
from limbeck.report.reading import Run, is_search, read, sequence, subjects, text
from limbeck.report.records import embedded
from limbeck.report.searching import searches
from limbeck.report.sections import sections
from limbeck.report.summary import lines, verdict

__all__ = ["render"]


def render(folder: Path) -> Path:
    """Write `report.html` into a run folder and return its path.

    Reads `scores.json`, `evidence.json`, `metrics.jsonl`, `environment.json` and `recipe.yaml`; the sections of what is
    missing are left out. The file is written whole or not at all, and equal records give an equal page.

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
    shelf.filters["kind"] = lambda block: type(block).__name__
    page = shelf.get_template("page.html").render(_content(run, name))
    # Half a character, which JSON can hold and a file cannot, is shown as a question mark.
    return page.encode("utf-8", "replace").decode("utf-8")


def _content(run: Run, name: str) -> dict[str, Any]:
    scores = run.scores
    style, script = _own("page.css"), _own("page.js")
    return {
        "title": text(scores.get("title")) or name,
        "pill": _pill(run),
        "headline": asked.headline(run) if is_search(scores) else headline(scores),
        "points": asked.points(run) if is_search(scores) else points(run),
        "points_note": asked.NOTE if is_search(scores) else NOTE,
        "further": [] if is_search(scores) else lines(scores),  # its points say the same
        "context": _context(scores),
        "tiles": tiles(run),
        "sections": sections(run),
        "records": embedded(run),
        "style": style,
        "style_hash": _hash(style),
        "script": script,
        "script_hash": _hash(script),
        "version": text(run.environment.get("limbeck")),
        "started": text(run.environment.get("started")),
    }


def _pill(run: Run) -> tuple[str, str] | None:
    """The verdict in a few words with its tone; None where nothing was compared."""
    if is_search(run.scores):
        met = [search.met for search in searches(run)]
        return (("better", "Budget met") if any(met) else ("worse", "Budget missed")) if met else None
    match verdict(run.scores):
        case "not compared":
            return None
        case "better" | "worse" as given:
            return given, f"{given.capitalize()} than training alone"
        case _:
            return "same", "No clear difference from training alone"


def _own(name: str) -> str:
    """A file that is put into the page as it is."""
    return files("limbeck.report").joinpath("templates", name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    """What the policy of the page (CSP level 3, section 6.7.3) names the content of an element by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _context(scores: Mapping[str, Any]) -> str:
    """What the headline was measured on, in a few words."""
    samples, split = scores.get("samples"), text(scores.get("split"))
    parts = []
    if isinstance(samples, int):
        parts.append(f"{samples:,} {split or 'test'} samples".replace(",", "\N{NO-BREAK SPACE}"))
    classes = sequence(scores.get("classes"))
    if classes:
        parts.append(f"{len(classes)} classes")
    if len(subjects(scores)) > 1 and not is_search(scores):
        parts.append("headline student chosen by its validation score")
    return " · ".join(parts)
