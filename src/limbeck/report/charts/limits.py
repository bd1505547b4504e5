"""Quality against a share of the cost: a dot for each model that a search met, and its limits as dashed lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from limbeck.report import numbers
from limbeck.report.charts import marks
from limbeck.report.charts.scale import WIDTH, linear, logarithmic

__all__ = ["Met", "limits_chart"]


class Met(NamedTuple):
    """One model: its cost as a share above zero, its value, whose it is, what is said of it.

    `best` is drawn large, and what does not `hold` hollow.
    """

    share: float
    value: float
    style: str
    series: str
    tip: str
    holds: bool = True
    best: bool = False


def limits_chart(
    met: Sequence[Met],
    *,
    title: str,
    axis: str,
    value: Callable[[float], str],
    most: Sequence[float] = (),
    bounds: Sequence[tuple[float, str]] = (),
    fraction: bool = False,
) -> str:
    """Dots with the share of a cost from left to right, in equal ratios, and quality upwards; empty without dots.

    Args:
        met: the models; the best of them are drawn last, above the others.
        title: read aloud in place of the picture.
        axis: what the cost is, written beneath.
        value: how a value is written.
        most: shares that were asked for at most; a line each.
        bounds: values that were asked for, a line each, and how each is told.
        fraction: whether values are written in percent on the axis.
    """
    if not met:
        return ""
    height, left, right, top, bottom = 248.0, 46.0, 12.0, 24.0, 40.0
    x = logarithmic([*(each.share for each in met), *most], (left, WIDTH - right), show=_percent)
    y = linear([*(each.value for each in met), *(at for at, _ in bounds)], (height - bottom, top),
               scale=100 if fraction else 1,
               show=lambda v, digits: numbers.number(v, digits) + (" %" if fraction else ""))  # fmt: skip
    parts = [*marks.down(y, left, WIDTH - right), *marks.across(x, top, height - bottom)]
    parts.append(marks.words("tick", (WIDTH - right, height - 4), "end", axis, 60))
    for share in most:
        at = x.at(share)
        parts.append(marks.rule("limit", (at, top - 4), (at, height - bottom), f"Asked for: at most {_percent(share)}"))
        side = "start" if at < WIDTH / 2 else "end"
        parts.append(marks.words("tick halo", (at + (-3 if at < WIDTH / 2 else 3), top - 8), side,
                                 f"at most {_percent(share)}"))  # fmt: skip
    for bound, said in bounds:
        at = y.at(bound)
        parts.append(marks.rule("limit", (left, at), (WIDTH - right, at), f"Asked for: {said}"))
        parts.append(marks.words("tick halo", (left + 4, at - 5), "start", said))
    for each in sorted(met, key=lambda one: one.best):
        look = f"{each.style}{'' if each.holds else ' worst'}"
        parts.append(marks.dot(look, (x.at(each.share), y.at(each.value)), 7 if each.best else 4, each.tip,
                               each.series))  # fmt: skip
    asked = [*(f"at most {_percent(share)} of the cost" for share in most), *(said for _, said in bounds)]
    told = "; ".join(f"{_percent(each.share)}, {value(each.value)}{' (the result)' if each.best else ''}"
                     for each in met)  # fmt: skip
    closing = f" Asked for: {', '.join(asked)}." if asked else ""
    return marks.drawing((WIDTH, height), title, parts, said=f"{told}.{closing}")


def _percent(share: float) -> str:
    return numbers.ratio(share, 1.0)
