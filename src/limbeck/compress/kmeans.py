"""One-dimensional k-means: sorted values need no distances, so that even large layers take moments."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["Floats", "kmeans_1d"]

Floats = npt.NDArray[np.float64]

_ROUNDS = 100


def kmeans_1d(values: Floats, k: int, *, bins: int = 512) -> Floats:
    """At most `k` centres [k'], rising, that make the sum of squared distances of `values` [N] to the nearest small.

    With up to `bins` different values it is the optimum, by dynamic programming. With more, they are first gathered in
    so many bins, half of equal width and half of equal count; the optimum for the bins' means is then improved on the
    values themselves until none changes its centre. Time is k times bins squared, memory N plus bins squared, and
    never N times k.

    Source: Wang & Song 2011, "Ckmeans.1d.dp", section 2 (the programme); Lloyd 1982 (the improvement).
    """
    ordered = np.sort(values.ravel())
    distinct, counts = np.unique(ordered, return_counts=True)
    if len(distinct) <= k:
        return distinct
    if len(distinct) <= bins:
        return _optimum(distinct, counts.astype(np.float64), k)
    half = bins // 2
    edges = np.union1d(np.linspace(ordered[0], ordered[-1], half)[1:], ordered[:: -(-len(ordered) // half)])
    ends = np.unique(np.concatenate([[0], np.searchsorted(ordered, edges), [len(ordered)]]))
    total = np.concatenate([[0.0], np.cumsum(ordered)])
    weight = np.diff(ends).astype(np.float64)
    return _improve(ordered, total, _optimum(np.diff(total[ends]) / weight, weight, k))


def _optimum(points: Floats, weights: Floats, k: int) -> Floats:
    """The optimal centres of weighted points in rising order."""
    size = len(points)
    points_mean = float(np.average(points, weights=weights))
    centred = points - points_mean
    w, wx, wxx = (np.concatenate([[0.0], np.cumsum(weights * centred**power)]) for power in range(3))
    # cost[i, j]: of points i to j as one cluster; infinite where j < i.
    mass = w[None, 1:] - w[:-1, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = (wxx[None, 1:] - wxx[:-1, None]) - (wx[None, 1:] - wx[:-1, None]) ** 2 / mass
    cost = np.where(np.tri(size, k=-1, dtype=bool), np.inf, np.maximum(cost, 0))
    best = cost[0]
    starts = []
    for _ in range(min(k, size) - 1):
        # The last cluster starts at i, and the ones before it end at i - 1.
        through = np.concatenate([[np.inf], best[:-1]])[:, None] + cost
        start = through.argmin(0)
        starts.append(start)
        best = through[start, np.arange(size)]
    cuts, end = [size], size - 1
    for start in reversed(starts):
        cuts.append(int(start[end]))
        end = cuts[-1] - 1
    ends = np.array([0, *sorted(cuts)])
    return np.asarray(points_mean + np.diff(wx[ends]) / np.diff(w[ends]), dtype=np.float64)


def _improve(ordered: Floats, total: Floats, centres: Floats) -> Floats:
    """Lloyd's rounds on sorted values: a cluster is a range, and its mean two look-ups in the running total."""
    before = None
    for _ in range(_ROUNDS):
        inner = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        ends = np.concatenate([[0], inner, [len(ordered)]])
        if before is not None and np.array_equal(ends, before):
            break
        before = ends
        count = np.diff(ends)
        centres = np.where(count > 0, np.diff(total[ends]) / np.maximum(count, 1), centres)
    return centres
