"""Stated confidence against the share that is right, bin by bin, beside the line of an honest model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from limbeck.report import numbers
from limbeck.report.charts import marks
from limbeck.report.charts.scale import SMALL, linear

__all__ = ["Bin", "reliability_chart"]


class Bin(NamedTuple):
    """The samples whose confidence is alike: mean confidence, share that is right, how many."""

    confidence: float
    right: float
    answers: float


def reliability_chart(bins: Sequence[Bin], style: str, *, title: str) -> str:
    """One model's bins as dots whose area is their share of the samples, joined, with the gap to honesty drawn.

    Empty without bins.
    """
    if not bins:
        return ""
    height, left, right, top, bottom = 250.0, 42.0, 18.0, 10.0, 38.0
    x = linear([0.0, 1.0], (left, SMALL - right), scale=100, show=_percent)
    y = linear([0.0, 1.0], (height - bottom, top), scale=100, show=_percent)
    parts = [*marks.down(y, left, SMALL - right), *marks.across(x, top, height - bottom, width=SMALL)]
    parts.append(marks.words("tick", (SMALL - right, height - 3), "end", "stated confidence"))
    parts.append(marks.rule("zero", (x.at(0), y.at(0)), (x.at(1), y.at(1))))
    whole = sum(each.answers for each in bins) or 1.0
    places = [(x.at(each.confidence), y.at(each.right)) for each in bins]
    parts += [marks.rule(f"bar {style}", place, (place[0], y.at(each.confidence)))
              for place, each in zip(places, bins, strict=True)]  # fmt: skip
    parts.append(marks.path(f"mean {style}", places) if len(places) > 1 else "")
    for place, each in zip(places, bins, strict=True):
        tip = (
            f"Says {numbers.percent(each.confidence)}, right {numbers.percent(each.right)}\n"
            f"{numbers.percent(each.answers / whole)} of the answers"
        )
        parts.append(marks.dot(style, place, 2.2 + 8 * math.sqrt(each.answers / whole), tip))
    said = "; ".join(f"says {numbers.percent(b.confidence, 0)}, right {numbers.percent(b.right, 0)}" for b in bins)
    return marks.drawing((SMALL, height), title, parts, said=said + ".")


def _percent(value: float, digits: int) -> str:
    return f"{numbers.number(value, digits)} %"
