"""Spread over repeated runs, and how sure a difference is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from limbeck.core.errors import ConfigError, DataError, ShapeError, problem

__all__ = ["Paired", "Summary", "critical_t", "median_interval", "paired", "summary"]


class Summary(NamedTuple):
    """Mean and sample standard deviation (n - 1; 0.0 for one value) of n values."""

    mean: float
    sd: float
    n: int


class Paired(NamedTuple):
    """A mean difference of n pairs and its Student-t interval; the ends are None for one pair."""

    mean: float
    low: float | None
    high: float | None
    n: int
    level: float


def summary(values: Sequence[float]) -> Summary:
    """Mean and sample standard deviation (divided by n - 1) of the values, in their unit.

    Raises:
        DataError: there is no value, or one is NaN or infinite.
    """
    numbers = [float(value) for value in values]
    if not numbers or not all(math.isfinite(value) for value in numbers):
        raise DataError(
            problem(
                "summary",
                f"{numbers} has no mean and spread" if numbers else "there is no value",
                "give one finite number or more; leave diverged runs out and report them",
            )
        )
    mean = math.fsum(numbers) / len(numbers)
    squares = math.fsum((value - mean) ** 2 for value in numbers)
    return Summary(mean=mean, sd=math.sqrt(squares / max(1, len(numbers) - 1)), n=len(numbers))


def paired(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Paired:
    """The mean of a - b over pairs, and its two-sided Student-t interval at `level`.

    Pairs share what both runs share (the seed, the fold), so that its noise cancels. Assumes differences that are
    roughly normal. One pair has no interval: its ends are None.

    Raises:
        ConfigError: the level is not between 0 and 1.
        DataError: there is no pair, or a value is NaN or infinite.
        ShapeError: a and b differ in length.
    """
    if not 0 < level < 1:
        raise ConfigError(problem("paired", f"level is {level}", "give a number between 0 and 1, such as 0.95"))
    if len(a) != len(b):
        raise ShapeError(
            problem("paired", f"{len(a)} values against {len(b)}", "give one value a run on both sides, in one order")
        )
    mean, sd, n = summary([float(x) - float(y) for x, y in zip(a, b, strict=True)])
    if n == 1:
        return Paired(mean=mean, low=None, high=None, n=n, level=level)
    half = critical_t(n - 1, level) * sd / math.sqrt(n)
    return Paired(mean=mean, low=mean - half, high=mean + half, n=n, level=level)


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Where the median of what n values were drawn from lies, at `level` or more; no distribution is assumed.

    The k-th smallest and the k-th largest value, with the largest k for which P(B < k) <= (1 - level) / 2, B binomial
    of n halves (David & Nagaraja 2003, "Order statistics", section 7.1). Fewer than six values cannot say it at 95 %:
    they give the smallest and the largest.

    Raises:
        ConfigError: the level is not between 0 and 1.
        DataError: there is no value, or one is NaN or infinite.
    """
    if not 0 < level < 1:
        raise ConfigError(problem("median", f"level is {level}", "give a number between 0 and 1, such as 0.95"))
    numbers = sorted(float(value) for value in values)
    if not numbers or not all(math.isfinite(value) for value in numbers):
        wrong = "a value is NaN or infinite" if numbers else "there is no value"
        raise DataError(problem("median", wrong, "give one finite number or more"))
    count = len(numbers)
    k, below = 0, 0.0  # P(B < k)
    while k < count // 2:
        log_share = math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) - count * math.log(2)
        below += math.exp(log_share)
        if below > (1 - level) / 2:
            break
        k += 1
    rank = max(k, 1)
    return numbers[rank - 1], numbers[count - rank]


def critical_t(df: int, level: float) -> float:
    """The t for which |T| <= t has probability `level`, for Student's T with `df` degrees of freedom.

    Bisection on P(|T| > t) = I_x(df / 2, 1 / 2) with x = df / (df + t^2) (Abramowitz & Stegun 26.5.27).

    Raises:
        ConfigError: df is below 1, or the level is not between 0 and 1.
    """
    if df < 1 or not 0 < level < 1:
        raise ConfigError(
            problem("critical_t", f"df is {df}, level is {level}", "give a df of 1 or more, a level between 0 and 1")
        )
    low, high = 0.0, 1.0
    while _outside(high, df) > 1 - level:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if _outside(middle, df) > 1 - level else (low, middle)
    return high


def _outside(t: float, df: int) -> float:
    """P(|T| > t)."""
    square = t * t
    x, complement = df / (df + square), square / (df + square)
    return _incomplete_beta(x, complement, df / 2, 0.5)


def _incomplete_beta(x: float, complement: float, a: float, b: float) -> float:
    """The regularised incomplete beta I_x(a, b); `complement` is 1 - x, given apart because 1 - x would lose digits."""
    if x <= 0 or complement <= 0:
        return 0.0 if x <= 0 else 1.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(complement)
    front = math.exp(log_front)
    # The fraction converges fast below this point only; above it, the mirror image does.
    if x < (a + 1) / (a + b + 2):
        return front * _beta_fraction(x, a, b) / a
    return 1 - front * _beta_fraction(complement, b, a) / b


def _beta_fraction(x: float, a: float, b: float) -> float:
    """The continued fraction of the incomplete beta (DLMF 8.17.22), by Lentz's method."""
    tiny = 1e-300
    c, d = 1.0, 1 / _apart(1 - (a + b) * x / (a + 1), tiny)
    value = d
    for m in range(1, 10_000):
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d, c = 1 / _apart(1 + step * d, tiny), _apart(1 + step / c, tiny)
            value *= c * d
        if abs(c * d - 1) < 1e-16:
            break
    return value


def _apart(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny
