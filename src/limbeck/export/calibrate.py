"""The range of each inner value over calibration data, in memory that depends on neither samples nor their size.

Every value has a histogram over [-t, t]; where a value lies outside, t is doubled and neighbouring bins are joined, so
that counts stay exact and the number of bins stays what it was.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from limbeck.core.errors import NonFiniteError, problem
from limbeck.core.onnx import Array

__all__ = ["Calibration", "Histogram", "Range", "entropy_range", "percentile_range", "range_of"]

Calibration = Literal["minmax", "percentile", "entropy"]

BINS = 4096


class Range(NamedTuple):
    """What is told apart; all beyond is the nearest end. Zero is inside."""

    low: float
    high: float


class Histogram:
    """Counts of the values of one tensor. `low` and `high` are the ends that were seen; `half` is t.

    Args:
        how: the rule that will be asked for; the one that looks at the ends alone needs no counts, which take long.
    """

    def __init__(self, how: Calibration = "percentile") -> None:
        self.how = how
        self.counts = np.zeros(BINS, dtype=np.int64)
        self.half, self.low, self.high = 0.0, 0.0, 0.0

    def add(self, values: Array, name: str) -> None:
        """Count more values of the tensor called `name`.

        Raises:
            NonFiniteError: one is NaN or infinite.
        """
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            mend = "look for NaN in the calibration data, or for a network that overflows"
            raise NonFiniteError(problem("calibration", f"the inner value {name!r} is NaN or infinite", mend))
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self.how == "minmax":
            return
        flat = np.asarray(values, dtype=np.float64).ravel()
        self._widen(max(-low, high))
        if not self.half:  # all are zero so far, and the middle is where zero is
            self.counts[BINS // 2] += flat.size
            return
        index = ((flat / self.half + 1) * (BINS // 2)).astype(np.int64)
        self.counts += np.bincount(np.clip(index, 0, BINS - 1), minlength=BINS)

    def _widen(self, reach: float) -> None:
        if not self.half:
            self.half = reach
        while self.half < reach:
            quarter = BINS // 4
            joined = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.zeros(BINS, dtype=np.int64)
            self.counts[quarter : 3 * quarter] = joined
            self.half *= 2

    @property
    def edges(self) -> Array:
        """The ends of the bins [BINS + 1]."""
        return np.linspace(-self.half, self.half, BINS + 1)


def range_of(histogram: Histogram, how: Calibration, *, percentile: float) -> Range:
    """The range of a tensor by one of three rules."""
    if how == "percentile":
        return percentile_range(histogram, percentile)
    if how == "entropy":
        return entropy_range(histogram)
    return Range(histogram.low, histogram.high)


def percentile_range(histogram: Histogram, percentile: float) -> Range:
    """Leaves out (100 - percentile) / 2 percent of the values at each end, to the width of a bin."""
    total = histogram.counts.sum()
    if not total:
        return Range(0.0, 0.0)
    share = np.cumsum(histogram.counts) / total
    out = (100 - percentile) / 200
    first = int(np.searchsorted(share, out, side="right"))
    last = int(np.searchsorted(share, 1 - out, side="left"))
    edges = histogram.edges
    low, high = float(edges[first]), float(edges[min(last, BINS - 1) + 1])
    return Range(min(0.0, max(low, histogram.low)), max(0.0, min(high, histogram.high)))


def entropy_range(histogram: Histogram) -> Range:
    """The threshold at which the rounded values' distribution is nearest to their own (KL divergence).

    Migacz 2017, "8-bit inference with TensorRT": the values beyond the threshold are put into its last bin, and the
    bins inside are joined into as many levels as 8 bits have (half of them where values have both signs).
    """
    middle = BINS // 2
    sizes = histogram.counts[middle:] + histogram.counts[:middle][::-1]
    if not sizes[1:].any():
        return Range(histogram.low, histogram.high)
    # Zeros are exact at any threshold, and there may be so many that all else counts for nothing.
    sizes[0] = sizes[1]
    levels = 255 if histogram.low >= 0 else 127
    used = int(np.flatnonzero(sizes)[-1]) + 1
    costs = {ends: _divergence(sizes, ends, levels) for ends in range(min(levels, used), used + 1, 8)}
    costs.setdefault(used, _divergence(sizes, used, levels))
    threshold = min(costs, key=lambda ends: (costs[ends], -ends)) * histogram.half / middle
    return Range(max(histogram.low, -threshold), min(histogram.high, threshold))


def _divergence(sizes: Array, ends: int, levels: int) -> float:
    """KL from the distribution clipped at `ends` bins to the one whose bins are joined into `levels`."""
    inside = sizes[:ends].astype(np.float64)
    clipped = inside.copy()
    clipped[-1] += sizes[ends:].sum()
    group = np.arange(ends) * levels // max(ends, levels)
    filled = inside > 0
    shared = np.bincount(group, weights=inside) / np.maximum(np.bincount(group, weights=filled), 1)
    rounded = np.where(filled, shared[group], 0.0)
    p, q = clipped / clipped.sum(), rounded / max(rounded.sum(), 1.0)
    some = p > 0
    return float((p[some] * np.log(p[some] / np.maximum(q[some], 1e-12))).sum())
