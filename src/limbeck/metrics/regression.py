"""How near predicted numbers are to true ones: errors, share of the spread explained, correlation.

Shapes: N = samples, D = numbers a sample; [N] and [N, 1] are one. Arithmetic is float64. What has no value (the
correlation with numbers that are all the same) is None and never NaN. Computed here rather than by torchmetrics 1.9,
which answers 0 for those, takes NaN for a rank, and sums in the float32 of its input.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from limbeck.core.errors import DataError, NonFiniteError, ShapeError, problem

__all__ = [
    "average_ranks",
    "mean_absolute_error",
    "mean_squared_error",
    "pearson",
    "r2",
    "row_correlation",
    "spearman",
]


def mean_squared_error(prediction_ND: Tensor, target_ND: Tensor) -> float:
    """Mean of (prediction - target)² over samples and numbers, in the target's unit squared.

    Raises:
        DataError: there is no sample, or a target is NaN or infinite.
        NonFiniteError: a prediction is NaN or infinite.
        ShapeError: the two differ in shape, or are no [N] or [N, D].
    """
    prediction, target = _lined_up("mean squared error", prediction_ND, target_ND)
    return float((prediction - target).square().mean())


def mean_absolute_error(prediction_ND: Tensor, target_ND: Tensor) -> float:
    """Mean of |prediction - target| over samples and numbers, in the target's unit.

    Raises:
        DataError: there is no sample, or a target is NaN or infinite.
        NonFiniteError: a prediction is NaN or infinite.
        ShapeError: the two differ in shape, or are no [N] or [N, D].
    """
    prediction, target = _lined_up("mean absolute error", prediction_ND, target_ND)
    return float((prediction - target).abs().mean())


def r2(prediction_ND: Tensor, target_ND: Tensor) -> float | None:
    """Share of the target's variance that is explained: 1 is perfect, 0 is the target's mean, below is worse.

    1 - Σ(prediction - target)² / Σ(target - mean)², averaged over those of the D numbers that vary. None where none
    does, as with one sample: no variance can be explained there.

    Raises:
        DataError: there is no sample, or a target is NaN or infinite.
        NonFiniteError: a prediction is NaN or infinite.
        ShapeError: the two differ in shape, or are no [N] or [N, D].
    """
    prediction, target = _lined_up("R²", prediction_ND, target_ND)
    apart_DN = _centred(target.T)
    size_D1 = apart_DN.abs().amax(dim=1, keepdim=True)  # squares of scaled numbers neither overflow nor vanish
    missed = ((prediction - target).T / size_D1).square().sum(dim=1)
    value_D = 1 - missed / (apart_DN / size_D1).square().sum(dim=1)
    return _mean(value_D[_varies(target.T)])


def pearson(prediction_ND: Tensor, target_ND: Tensor) -> float | None:
    """Linear correlation of prediction and target, from -1 to 1, averaged over those of the D numbers that have one.

    None where none has: with one sample, or where prediction or target is the same throughout.

    Raises:
        DataError: there is no sample, or a target is NaN or infinite.
        NonFiniteError: a prediction is NaN or infinite.
        ShapeError: the two differ in shape, or are no [N] or [N, D].
    """
    prediction, target = _lined_up("correlation", prediction_ND, target_ND)
    value_D = row_correlation(prediction.T, target.T)
    return _mean(value_D[~value_D.isnan()])


def spearman(prediction_ND: Tensor, target_ND: Tensor) -> float | None:
    """Correlation of the ranks of prediction and target: 1 is the same order. Equal values share their mean rank.

    Averaged and None as `pearson`.

    Raises:
        DataError: there is no sample, or a target is NaN or infinite.
        NonFiniteError: a prediction is NaN or infinite.
        ShapeError: the two differ in shape, or are no [N] or [N, D].
    """
    prediction, target = _lined_up("rank correlation", prediction_ND, target_ND)
    value_D = row_correlation(average_ranks(prediction.T), average_ranks(target.T))
    return _mean(value_D[~value_D.isnan()])


def average_ranks(x_RN: Tensor) -> Tensor:
    """Ranks from 1 within each row, float64; equal values share the mean of their ranks. -inf ranks lowest."""
    x_RN = x_RN.contiguous()
    ordered = x_RN.sort(dim=-1).values
    below, upto = (torch.searchsorted(ordered, x_RN, right=right) for right in (False, True))
    return (below + upto + 1).double() / 2


def row_correlation(a_RN: Tensor, b_RN: Tensor) -> Tensor:
    """Pearson's correlation of each row with its counterpart, float64 [R]; NaN where a side does not vary."""
    a, b = (_unit(side.double()) for side in (a_RN, b_RN))
    value = (a * b).sum(dim=-1).clamp(-1, 1)
    return torch.where(_varies(a_RN) & _varies(b_RN), value, math.nan)


def _unit(x_RN: Tensor) -> Tensor:
    apart = _centred(x_RN)
    scaled = apart / apart.abs().amax(dim=-1, keepdim=True)
    return scaled / scaled.square().sum(dim=-1, keepdim=True).sqrt()


def _centred(x_RN: Tensor) -> Tensor:
    """Less the mean; twice, because the first mean is rounded where values are large beside their spread."""
    apart = x_RN - x_RN.mean(dim=-1, keepdim=True)
    return apart - apart.mean(dim=-1, keepdim=True)


def _varies(x_RN: Tensor) -> Tensor:
    # Not a variance above zero: the mean of equal numbers may be rounded away from them.
    return x_RN.amax(dim=-1) > x_RN.amin(dim=-1)


def _mean(values: Tensor) -> float | None:
    return float(values.mean()) if len(values) else None


def _lined_up(where: str, prediction_ND: Tensor, target_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Both as float64 [N, D]."""
    shapes = f"predictions are {list(prediction_ND.shape)}, targets are {list(target_ND.shape)}"
    sides = [x[:, None] if x.dim() == 1 else x for x in (prediction_ND, target_ND)]
    if sides[0].shape != sides[1].shape or sides[0].dim() != 2:
        raise ShapeError(problem(where, shapes, "give both as [samples] or [samples, numbers]"))
    if not sides[0].numel():
        raise DataError(problem(where, "there is no sample", "give at least one sample"))
    prediction, target = (side.double() for side in sides)
    for who, side, error in (("prediction", prediction, NonFiniteError), ("target", target, DataError)):
        bad = (~side.isfinite()).any(dim=1).nonzero().flatten()
        if len(bad):
            wrong = (
                f"the {who} is NaN or infinite in {len(bad)} of {len(side)} samples (the first is row {int(bad[0])})"
            )
            raise error(problem(where, wrong, "look for a diverged training, or leave such samples out"))
    return prediction, target
