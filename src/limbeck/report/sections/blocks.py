"""What a section is made of. The template knows these blocks and nothing of what they hold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from limbeck.report import charts, numbers

__all__ = ["Block", "Cell", "Code", "Figure", "Figures", "Folded", "Head", "Heading", "Items", "Pairs", "Section",
           "Table", "cells", "line_figure", "picture"]  # fmt: skip

Tone = str
"""`better`, `worse` or `same`; empty where nothing is judged."""

_PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=]+")
_ROWS = 12


class Cell(NamedTuple):
    """One cell: its text, and as a number what it is sorted by and downloaded as.

    `note` is small beneath it, `style` puts the colour of an arm before it, `best` is bold, `picture` a data URI.
    """

    value: str
    raw: float | None = None
    note: str = ""
    style: str = ""
    tone: Tone = ""
    best: bool = False
    picture: str = ""


class Head(NamedTuple):
    """The head of a column; text stands at the left, numbers at the right, and whole sentences wrap."""

    label: str
    note: str = ""
    left: bool = False
    wraps: bool = False


class Table(NamedTuple):
    """A table; the first cell of each row is its name. `caption` is read aloud."""

    caption: str
    head: Sequence[Head]
    rows: Sequence[Sequence[Cell]]
    pictures: bool = False


class Figure(NamedTuple):
    """A caption, the drawing (SVG that is escaped already), and the same as a table."""

    caption: str
    svg: str
    table: Table | None = None


class Figures(NamedTuple):
    """Drawings side by side, with who is in them; small ones stand three in a row."""

    figures: Sequence[Figure]
    legend: Sequence[tuple[str, str]] = ()
    small: bool = False


class Heading(NamedTuple):
    """A heading within a section, and what is said beneath."""

    title: str
    lead: str = ""


class Pairs(NamedTuple):
    """Names and what is said of each; the last of a triple is shown as code."""

    rows: Sequence[tuple[str, str, str]]
    wide: bool = False


class Code(NamedTuple):
    """Text as it was written."""

    text: str


class Items(NamedTuple):
    """Sentences, one a line."""

    texts: Sequence[str]


class Folded(NamedTuple):
    """A block that opens where its title is clicked."""

    title: str
    block: Table | Pairs | Code


Block = Table | Figures | Heading | Pairs | Code | Items | Folded


class Section(NamedTuple):
    """A part of the page: its anchor, its title (and the short one of the contents), what to know first."""

    name: str
    title: str
    short: str
    lead: str
    blocks: Sequence[Block]


def cells(name: str, style: str, *values: Cell) -> list[Cell]:
    """A row: the arm with its colour, then the rest."""
    return [Cell(name, style=style), *values]


def picture(value: Any) -> str:
    """The value if it is a PNG as a data URI, else nothing."""
    return value if isinstance(value, str) and _PICTURE.fullmatch(value) else ""


def line_figure(
    caption: str,
    lines: Sequence[charts.Line],
    *,
    title: str,
    axis: str,
    fraction: bool = False,
    points: int = 200,
    width: float = 360.0,
) -> Figure | None:
    """A line chart with the means of its lines as a table of at most twelve rows; None without points."""
    svg = charts.line_chart(lines, title=title, axis=axis, fraction=fraction, points=points, width=width)
    if not svg:
        return None
    means = [dict(charts.mean_line(line.seeds)) for line in lines]
    places = sorted({x for mean in means for x in mean})
    every = -(-len(places) // _ROWS) if places else 1
    shown = places[::every] + ([places[-1]] if places and places[::every][-1] != places[-1] else [])

    def at(mean: dict[float, float], x: float) -> Cell:
        value = mean.get(x)
        if value is None:
            return Cell(numbers.DASH)
        return Cell(numbers.percent(value) if fraction else f"{value:.4g}", value)

    rows = [[Cell(f"{x:.7g}", x), *(at(mean, x) for mean in means)] for x in shown]
    head = [Head(axis[:1].upper() + axis[1:]), *(Head(line.name) for line in lines)]
    return Figure(caption, svg, Table(title, head, rows))
