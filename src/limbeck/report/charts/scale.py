"""From values to places: round ticks, linear and logarithmic axes, and how a value on an axis is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from limbeck.report import numbers

__all__ = ["SMALL", "WIDTH", "Axis", "Point", "linear", "logarithmic", "ticks"]

Point = tuple[float, float]

WIDTH = 360.0
SMALL = 280.0


class Axis(NamedTuple):
    """An axis from `low` to `high`, drawn from `start` to `end`, with the values that are marked and their words."""

    low: float
    high: float
    start: float
    end: float
    marks: Sequence[tuple[float, str]]
    bend: Callable[[float], float] = float

    def at(self, value: float) -> float:
        """Where a value is drawn; an axis of one value has it in the middle."""
        low, high = self.bend(self.low), self.bend(self.high)
        share = (self.bend(value) - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)


def linear(
    values: Sequence[float],
    span: tuple[float, float],
    *,
    about: int = 5,
    show: Callable[[float, int], str] = numbers.number,
    scale: float = 1,
) -> Axis:
    """An axis over round values that enclose all of these.

    Args:
        values: one or more.
        span: where it starts and where it ends, in units of the drawing.
        about: how many marks there are, roughly.
        show: how a marked value is written, from the value times `scale` and the decimals that tell marks apart.
        scale: 100 where fractions are written in percent.
    """
    marks = ticks(min(values), max(values), about)
    digits = _decimals(scale * (marks[1] - marks[0]))
    return Axis(marks[0], marks[-1], *span, [(mark, show(scale * mark, digits)) for mark in marks])


def logarithmic(values: Sequence[float], span: tuple[float, float], *, show: Callable[[float], str]) -> Axis:
    """An axis in equal ratios over values above zero, marked at round multiples of powers of ten, three at least."""
    low, high = min(values) / 1.25, max(values) * 1.25
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    powers = [10.0**power for power in range(first, last + 1)]
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 6, 8), [1 + i / 10 for i in range(90)]):
        marks = [k * power for power in powers for k in steps if low <= k * power <= high]
        if len(marks) >= 3:
            break
    return Axis(low, high, *span, [(mark, show(mark)) for mark in marks], math.log10)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round, evenly spaced values that enclose [low, high]: 1, 2 or 5 times a power of ten apart."""
    if not high - low > 1e-9 * max(abs(low), abs(high), 1e-12):
        margin = abs(low) / 10 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def _decimals(step: float) -> int:
    """The decimals that tell values this far apart from each other."""
    return max(0, min(6, -math.floor(math.log10(step) + 1e-9)))
