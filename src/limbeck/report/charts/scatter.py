"""Quality against cost: a large spot for each arm, its seeds small, with bars for what is not sure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from limbeck.report import numbers
from limbeck.report.charts import marks
from limbeck.report.charts.scale import WIDTH, Axis, Point, linear, logarithmic

__all__ = ["Spot", "scatter_chart"]


class Spot(NamedTuple):
    """One arm: its cost (above zero) with what it may be, and the value of each seed."""

    name: str
    style: str
    cost: float
    cost_range: Point | None
    values: Sequence[tuple[str, float]]
    tip: str

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return sum(value for _, value in self.values) / len(self.values)


def scatter_chart(
    spots: Sequence[Spot], *, title: str, axis: str, show: Callable[[float], str], value: Callable[[float], str],
    fraction: bool = False,
) -> str:  # fmt: skip
    """Spots with cost from left to right, in equal ratios, and quality upwards; empty without spots.

    Args:
        spots: the arms.
        title: read aloud in place of the picture.
        axis: what the cost is, written beneath.
        show: how a cost is written.
        value: how a value is written.
        fraction: whether values are written in percent on the axis.
    """
    if not spots:
        return ""
    height, left, right, top, bottom = 236.0, 46.0, 12.0, 14.0, 40.0
    costs = [cost for spot in spots for cost in (spot.cost, *(spot.cost_range or ()))]
    x = logarithmic(costs, (left, WIDTH - right), show=show)
    y = linear([v for spot in spots for _, v in spot.values], (height - bottom, top), scale=100 if fraction else 1,
               show=lambda v, digits: numbers.number(v, digits) + (" %" if fraction else ""))  # fmt: skip
    parts = [*marks.down(y, left, WIDTH - right), *marks.across(x, top, height - bottom)]
    parts.append(marks.words("tick", (WIDTH - right, height - 4), "end", axis, 60))
    taken: list[tuple[float, float, float]] = []
    parts += [marks.series(spot.name, _drawn(spot, x, y, value)) for spot in spots]
    ordered = sorted(spots, key=lambda each: -each.mean)
    parts += [marks.series(spot.name, [_named(spot, (x.at(spot.cost), y.at(spot.mean)), taken)]) for spot in ordered]
    said = "; ".join(f"{spot.name}: {show(spot.cost)}, {value(spot.mean)}" for spot in spots) + "."
    return marks.drawing((WIDTH, height), title, parts, said=said)


def _drawn(spot: Spot, x: Axis, y: Axis, value: Callable[[float], str]) -> list[str]:
    at, found, parts = x.at(spot.cost), [v for _, v in spot.values], []
    if spot.cost_range is not None:
        ends = (x.at(end) for end in spot.cost_range)
        low, high = ((end, y.at(spot.mean)) for end in ends)
        parts.append(marks.rule(f"bar {spot.style}", low, high))
    if len(found) > 1:
        parts.append(marks.rule(f"bar {spot.style}", (at, y.at(min(found))), (at, y.at(max(found)))))
        parts += [marks.dot(f"small {spot.style}", (at, y.at(v)), 2.5, f"{spot.name}\nSeed {seed}: {value(v)}")
                  for seed, v in spot.values]  # fmt: skip
    parts.append(marks.dot(spot.style, (at, y.at(spot.mean)), 6, spot.tip))
    return parts


def _named(spot: Spot, at: Point, taken: list[tuple[float, float, float]]) -> str:
    """The name beside its spot, on the side that has room, and moved down where another name is."""
    length = 6.4 * min(len(spot.name), 30)
    right = at[0] + 12 + length < WIDTH
    start = at[0] + 12 if right else at[0] - 12 - length
    y = at[1] - 9
    while any(abs(y - other) < 13 and start < end and begin < start + length for begin, end, other in taken):
        y += 13
    taken.append((start, start + length, y))
    return marks.words("name halo", (at[0] + 10 if right else at[0] - 10, y), "start" if right else "end", spot.name)
