"""How numbers look, in one place: on the page, in the terminal, on the axes of a chart.

Fractions are shown in percent, differences of fractions in points, sizes in powers of 1000. `None` is shown as a dash.
"""

from __future__ import annotations

import math

__all__ = ["DASH", "count", "decimals", "number", "percent", "points", "ratio", "seconds", "signed", "size"]

DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


def number(value: float | None, digits: int = 3) -> str:
    """A plain number with fixed decimals: 0.8123 -> '0.812'."""
    if value is None:
        return DASH
    text = f"{abs(value):.{digits}f}" if abs(value) < 1e9 else f"{abs(value):.2e}"
    return f"{MINUS}{text}" if value < 0 and float(text) else text


def percent(fraction: float | None, digits: int = 1) -> str:
    """A fraction in percent: 0.7361 -> '73.6 %'."""
    return DASH if fraction is None else f"{number(100 * fraction, digits)} %"


def signed(value: float, digits: int = 1) -> str:
    """A difference with its sign: 1.62 -> '+1.6'; what rounds to zero has no sign."""
    text = number(value, digits)
    return f"+{text}" if value > 0 and float(text) else text


def points(difference: float, digits: int = 1) -> str:
    """A difference of two fractions in percentage points: 0.016 -> '+1.6 points'."""
    return f"{signed(100 * difference, digits)} points"


def decimals(*values: float, least: int = 1, most: int = 3) -> int:
    """The fewest decimals that show no value other than zero as zero.

    A bound of +0.04 printed as '0.0' would make an interval look as if it held zero.
    """
    return next((d for d in range(least, most) if all(v == 0 or round(v, d) != 0 for v in values)), most)


def ratio(part: float | None, whole: float | None) -> str:
    """A share of the whole in percent, two significant digits below 100: 283 of 1000 -> '28 %'."""
    if part is None or not whole:
        return DASH
    share = 100 * part / whole
    if share <= 0 or share >= 10:
        return percent(share / 100, 0)
    return percent(share / 100, min(1 - math.floor(math.log10(share)), 4))


def count(value: float | None) -> str:
    """A count with three significant digits: 60362 -> '60.4 k', 5600000 -> '5.6 M'."""
    return DASH if value is None else _scaled(value, ("", " k", " M", " G", " T"))


def size(value: float | None) -> str:
    """Bytes in powers of 1000: 241448 -> '241 kB'."""
    return DASH if value is None else _scaled(value, (" B", " kB", " MB", " GB", " TB"))


def seconds(value: float | None) -> str:
    """A duration: 0.0012 -> '1.2 ms', 63.1 -> '1 min 3 s', 4020 -> '1 h 7 min'."""
    if value is None:
        return DASH
    if value < 1:
        return _scaled(1e6 * value, (" µs", " ms", " s"))
    if value < 59.95:
        return f"{_short(value)} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(value / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def _scaled(value: float, units: tuple[str, ...]) -> str:
    step = 0
    # 999.5 would be written as 1000: it belongs to the next unit.
    while abs(value) >= 999.5 and step < len(units) - 1:
        value, step = value / 1000, step + 1
    return f"{_short(value)}{units[step]}"


def _short(value: float) -> str:
    """At most three significant digits, no trailing zeros after the point."""
    digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    text = number(value, digits)
    return text.rstrip("0").rstrip(".") if "." in text else text
