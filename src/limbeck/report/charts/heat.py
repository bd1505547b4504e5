"""A square of shares as a heat map: which class is taken for which."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from limbeck.report.charts import marks
from limbeck.report.charts.scale import WIDTH

__all__ = ["heat_map"]


def heat_map(
    shares: Sequence[Sequence[float | None]],
    names: Sequence[str],
    *,
    title: str,
    tip: Callable[[int, int], str],
    shade: Callable[[int, int, float], str],
) -> str:
    """Rows of true classes, columns of answers; darker is more, by its root. Empty without rows.

    Args:
        shares: a square of numbers; None is left blank.
        names: of the classes.
        title: read aloud in place of the picture.
        tip: what is said of a cell.
        shade: the style of a cell, from its row, its column and its number.
    """
    size = len(shares)
    if not size:
        return ""
    # Names at the left and beneath take what the longest needs, within a third of the width.
    left = min(110.0, 14 + 6.2 * min(max(map(len, names), default=0), 15))
    cell = (WIDTH - left - 4) / size
    turned = max(map(len, names), default=0) * 6.2 > cell
    below = min(90.0, left) if turned else 22.0
    largest = max((abs(v) for row in shares for v in row if v is not None), default=0) or 1.0
    parts = []
    for i, row in enumerate(shares):
        y = 4 + cell * i
        parts.append(marks.words("tick", (left - 6, y + cell / 2 + 4), "end", names[i], 15))
        for j, share in enumerate(row):
            if share is None:
                continue
            # The root, or what is rare would not be seen beside what is common.
            depth = f' fill-opacity="{max(0.04, (abs(share) / largest) ** 0.5):.2f}"'
            corner = (left + cell * j + 0.5, y + 0.5)
            parts.append(marks.bar(shade(i, j, share), corner, (cell - 1, cell - 1), tip(i, j), depth))
    for j, name in enumerate(names[:size]):
        x, y = left + cell * (j + 0.5), 4 + cell * size
        parts.append(_below(name, x, y, turned))
    said = f"{size} true classes by {size} answers, as in the table."
    return marks.drawing((WIDTH, 4 + cell * size + below), title, parts, said=said)


def _below(name: str, x: float, y: float, turned: bool) -> str:
    if not turned:
        return marks.words("tick", (x, y + 16), "middle", name)
    text = marks.words("tick", (x + 4, y + 8), "end", name, 14)
    return text.replace("<text ", f'<text transform="rotate(-90 {x + 4:.1f} {y + 8:.1f})" ', 1)
