"""What every drawing is made of: rules, dots, words, groups. Text is escaped here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from limbeck.report.charts.scale import WIDTH, Axis, Point

__all__ = ["across", "attributes", "bar", "dot", "down", "drawing", "path", "rule", "series", "words"]


def drawing(size: Point, title: str, parts: Sequence[str], *, said: str = "", further: str = "") -> str:
    """The SVG element with a name (`title`) and a description (`said`) for whoever does not see it."""
    described = f"<desc>{escape(said)}</desc>" if said else ""
    box = f'viewBox="0 0 {size[0]:g} {size[1]:g}"'
    return f'<svg {box} role="img" aria-label="{escape(title)}"{further}>{described}{"".join(parts)}</svg>'


def series(name: str, parts: Sequence[str]) -> str:
    """The marks of one series, which its entry in the legend shows and hides."""
    return f'<g data-series="{escape(name)}">{"".join(parts)}</g>' if parts else ""


def attributes(tip: str = "", of: str = "") -> str:
    """What is said where a mark is pointed at, its lines parted by newlines, and whose mark it is."""
    said = f' data-t="{escape(tip).replace(chr(10), "&#10;")}"' if tip else ""
    return said + (f' data-series="{escape(of)}"' if of else "")


def rule(style: str, start: Point, end: Point, tip: str = "") -> str:
    """A straight line."""
    (x1, y1), (x2, y2) = start, end
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"{attributes(tip)}/>'


def dot(style: str, at: Point, radius: float, tip: str = "", of: str = "") -> str:
    """A circle."""
    place = f'cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{radius:.3g}"'
    return f'<circle class="dot {style}" {place}{attributes(tip, of)}/>'


def bar(style: str, corner: Point, size: Point, tip: str = "", further: str = "") -> str:
    """A rectangle from its upper left corner."""
    place = f'x="{corner[0]:.1f}" y="{corner[1]:.1f}" width="{size[0]:.1f}" height="{size[1]:.1f}"'
    return f'<rect class="{style}" {place}{further}{attributes(tip)}/>'


def path(style: str, points: Sequence[Point]) -> str:
    """A line through points; one point alone is a dot."""
    if len(points) == 1:
        return dot(style, points[0], 3)
    return f'<polyline class="{style}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def words(style: str, at: Point, anchor: str, content: str, most: int = 30) -> str:
    """Text; what is longer than `most` characters is cut, and whole where it is pointed at."""
    shown = escape(content)
    if len(content) > most:
        shown = f"<title>{shown}</title>{escape(content[: most - 1])}…"
    return f'<text class="{style}" x="{at[0]:.1f}" y="{at[1]:.1f}" text-anchor="{anchor}">{shown}</text>'


def down(axis: Axis, left: float, right: float) -> list[str]:
    """The grid of a vertical axis, its words at the left."""
    parts = []
    for value, label in axis.marks:
        y = axis.at(value)
        parts += [rule("grid", (left, y), (right, y)), words("tick", (left - 6, y + 3.5), "end", label)]
    return parts


def across(axis: Axis, top: float, bottom: float, *, width: float = WIDTH, zero: bool = False) -> list[str]:
    """The grid of a horizontal axis, its words beneath; with `zero` the line of no difference is dashed."""
    parts = []
    for value, label in axis.marks:
        x, half = axis.at(value), 3.2 * len(label)
        anchor = "start" if x < half else "end" if x > width - half else "middle"
        style = "zero" if zero and value == 0 else "grid"
        parts += [rule(style, (x, top), (x, bottom)), words("tick", (x, bottom + 15), anchor, label)]
    return parts
