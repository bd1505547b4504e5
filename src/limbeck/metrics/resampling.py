"""How sure a paired difference is, without assuming that it is normal; exact for few pairs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from limbeck.metrics.intervals import Paired, paired

__all__ = ["Permutation", "bootstrap", "permutation_test"]

_EXACT_SIGNS = 16
_EXACT_RESAMPLES = 5
_DRAWS = 20_000


class Permutation(NamedTuple):
    """The p of a test, the least p that so many pairs can reach, and whether every arrangement was counted."""

    p: float
    least: float
    exact: bool


def permutation_test(a: Sequence[float], b: Sequence[float], *, seed: int = 0) -> Permutation:
    """The two-sided p of "a and b do not differ", over the signs of their paired differences.

    Under that hypothesis either member of a pair could have come from either side, so every pattern of signs was
    equally likely. All 2^n patterns are counted up to 16 pairs; above, 20,000 are drawn, with one added to both sides
    of the fraction. With n pairs p is never below 2 / 2^n: five seeds cannot reach 0.05.

    Good 2005, "Permutation, parametric and bootstrap tests of hypotheses", section 3.2.

    Raises:
        DataError: there is no pair, or a value is NaN or infinite.
        ShapeError: a and b differ in length.
    """
    n = paired(a, b).n  # refuses what cannot be paired
    d = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    exact = n <= _EXACT_SIGNS
    if exact:
        bits = np.arange(2**n)[:, None] >> np.arange(n) & 1
    else:
        bits = np.random.default_rng(seed).integers(0, 2, (_DRAWS, n))
    sums = np.abs((1 - 2 * bits) @ d)
    # A sum in another order may end a rounding below the one that was observed, which it equals.
    hits = int((sums >= abs(d.sum()) * (1 - 1e-9) - 1e-300).sum())
    p = hits / len(bits) if exact else (hits + 1) / (len(bits) + 1)
    return Permutation(p=p, least=min(1.0, 2.0 ** (1 - n)), exact=exact)


def bootstrap(a: Sequence[float], b: Sequence[float], level: float = 0.95, *, seed: int = 0) -> Paired:
    """The mean of a - b over pairs, and its studentised bootstrap interval at `level`.

    Each resample gives t = (its mean - the mean) / its standard error; the interval is the mean minus quantiles of t
    times the standard error. Up to five pairs all n^n resamples are used, above 20,000 drawn ones. A resample of one
    repeated value counts as infinitely far. An ordinary percentile interval never leaves the range of the data and
    covers far too seldom with five pairs. Fewer than four pairs, or equal differences, give Student's t instead.

    Efron & Tibshirani 1993, "An introduction to the bootstrap", section 12.5.

    Raises:
        ConfigError: the level is not between 0 and 1.
        DataError: there is no pair, a value is NaN or infinite.
        ShapeError: a and b differ in length.
    """
    student = paired(a, b, level)
    d = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    n = len(d)
    if n < 4 or float(d.std()) <= 1e-12 * float(np.abs(d).max(initial=0.0)):
        return student
    if n <= _EXACT_RESAMPLES:
        index = np.asarray(list(itertools.product(range(n), repeat=n)))
    else:
        index = np.random.default_rng(seed).integers(0, n, (_DRAWS, n))
    drawn = d[index]
    apart = drawn.mean(axis=1) - d.mean()
    error = drawn.std(axis=1, ddof=1) / math.sqrt(n)
    flat = error <= 1e-12 * float(d.std())
    t = np.where(flat, np.copysign(np.inf, apart), apart / np.where(flat, 1, error))
    low, high = np.quantile(t, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    if not (math.isfinite(low) and math.isfinite(high)):
        return student
    own = float(d.std(ddof=1)) / math.sqrt(n)
    return Paired(
        mean=student.mean, low=float(d.mean() - high * own), high=float(d.mean() - low * own), n=n, level=level
    )
