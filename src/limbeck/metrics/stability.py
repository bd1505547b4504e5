"""How steady training is and how steady its results are, from plain numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from limbeck.core.errors import DataError, ShapeError, problem

__all__ = ["Churn", "Turn", "at_chance", "churn", "diverged", "jitter", "turned"]

_LEAST = 5
"""Points below which a curve says nothing about how it wobbles or turns."""


class Churn(NamedTuple):
    """Share of answers that differ between two runs: the mean over all pairs, and each pair in order."""

    mean: float
    pairs: list[float]


class Turn(NamedTuple):
    """Where a curve turned: the epoch of its lowest point, and by how much it rose to its end."""

    epoch: int
    rise: float


def churn(predictions: Sequence[Sequence[int]]) -> Churn:
    """Share of samples whose predicted class differs between two runs, from 0 to 1, over all pairs of runs.

    Milani Fard et al. 2016, "Launch and iterate: reducing prediction churn", section 2.

    Args:
        predictions: one list of classes a run, the same samples in the same order.

    Raises:
        DataError: there are fewer than two runs, or no sample.
        ShapeError: runs differ in the number of samples.
    """
    sizes = {len(run) for run in predictions}
    if len(predictions) < 2 or sizes == {0}:
        raise DataError(problem("churn", f"{len(predictions)} runs of {sizes} samples", "give two runs or more"))
    if len(sizes) > 1:
        raise ShapeError(problem("churn", f"the runs have {sorted(sizes)} answers", "give answers to the same samples"))
    answers_RN = np.asarray(predictions)
    count = len(answers_RN)
    pairs = [float((answers_RN[i] != answers_RN[j]).mean()) for i in range(count) for j in range(i + 1, count)]
    return Churn(mean=math.fsum(pairs) / len(pairs), pairs=pairs)


def jitter(values: Sequence[float]) -> float:
    """How much a curve of positive numbers wobbles: the size of its second differences, beside its mean level.

    sd = sqrt(mean(second difference squared) / 6), divided by the mean of the absolute values. A straight line has
    none; for independent noise of standard deviation s around a line it is s / level, since a second difference of
    such noise has variance 6 s^2. It depends on how many steps lie between two records.

    Raises:
        DataError: there are fewer than five values, one is not finite, or all are zero.
    """
    curve = _curve("jitter", values)
    level = float(np.abs(curve).mean())
    if not level:
        raise DataError(problem("jitter", "all values are zero", "give a curve that has a level"))
    return float(np.sqrt((np.diff(curve, n=2) ** 2).mean() / 6) / level)


def diverged(losses: Sequence[float], *, recalls: Sequence[float | None] = (), samples: int = 0) -> bool:
    """Whether a training broke: by its loss, or because what came out has learned nothing.

    By its loss: one is not finite, or the last tenth is on average above the first. By what came out: see `at_chance`,
    which needs `recalls` and `samples`. A training without a record has not diverged.
    """
    if at_chance(recalls, samples):
        return True
    if not losses:
        return False
    curve = np.asarray([math.nan if value is None else value for value in losses], dtype=np.float64)
    if not np.isfinite(curve).all():
        return True
    last = curve[-max(1, len(curve) // 10) :]
    return len(curve) > 1 and float(last.mean()) > float(curve[0])


def at_chance(recalls: Sequence[float | None], samples: int) -> bool:
    """Whether answers are no better than those of a model that never looks at its input.

    Such a model has a mean recall over C classes of 1 / C, whatever it answers and however the classes are mixed: the
    share of the most frequent class would not do as a bar, since always naming a class of 95 % looks right. Guessed
    answers spread around it by sqrt((C - 1) / N) / C, the standard error of a share of 1 / C among N samples. At
    chance is a mean recall of at most 1 / C and three such errors, but never more than a tenth of the way from 1 / C
    to 1, so that a small test set does not condemn a model that it is too small to judge.

    Args:
        recalls: of each class, from 0 to 1; None or NaN for a class without samples, which is left out.
        samples: N, the labelled samples behind them.
    """
    known = [value for value in recalls if value is not None and math.isfinite(value)]
    count = len(known)
    if count < 2 or samples < 1:
        return False
    margin = min(3 * math.sqrt((count - 1) / samples) / count, 0.1 * (1 - 1 / count))
    return math.fsum(known) / count <= 1 / count + margin


def turned(epochs: Sequence[int], values: Sequence[float], *, rise: float = 0.05) -> Turn | None:
    """Where validation loss turned for good, or None.

    It has when the lowest of its smoothed values (means of three neighbours) lies before the last fifth of the curve,
    and the mean of that last fifth is above it by more than `rise` of the lowest value and three times the noise (the
    jitter, in the curve's unit). Curves of fewer than five epochs never turn.

    Raises:
        ShapeError: epochs and values differ in length.
        DataError: a value is not finite.
    """
    if len(epochs) != len(values):
        raise ShapeError(problem("turned", f"{len(epochs)} epochs, {len(values)} values", "give one value an epoch"))
    if len(values) < _LEAST:
        return None
    curve = _curve("turned", values)
    smooth = np.convolve(np.pad(curve, 1, mode="edge"), np.full(3, 1 / 3), mode="valid")
    tail = max(1, len(curve) // 5)
    lowest = int(smooth.argmin())
    if lowest >= len(curve) - tail:
        return None
    up = float(curve[-tail:].mean() - smooth[lowest])
    noise = float(np.sqrt((np.diff(curve, n=2) ** 2).mean() / 6))
    if up <= max(rise * abs(float(smooth[lowest])), 3 * noise):
        return None
    return Turn(epoch=int(epochs[lowest]), rise=up)


def _curve(where: str, values: Sequence[float]) -> np.ndarray:
    curve = np.asarray(values, dtype=np.float64)
    if len(curve) < _LEAST or not np.isfinite(curve).all():
        wrong = f"{len(curve)} values, {int((~np.isfinite(curve)).sum())} of them not finite"
        raise DataError(problem(where, wrong, f"give {_LEAST} finite values or more"))
    return curve
