"""Whether a model is as sure as it is right. Shapes: N = samples, C = classes."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.core.errors import DataError, ModelError, ShapeError, problem
from limbeck.metrics.quality import check_labels, check_logits

__all__ = ["Reliability", "calibration_error", "expected_calibration_error", "fit_temperature", "reliability"]


def expected_calibration_error(probabilities_NC: Tensor, labels_N: Tensor, *, bins: int = 15) -> float:
    """Mean gap between the top class's probability and its accuracy, over equal-width bins, weighted by samples.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3. Samples labelled -1 are left out.

    Raises:
        DataError: no sample is labelled, or a label is no class.
        ModelError: the probabilities are NaN, outside 0..1, or no [N, C] table.
        ShapeError: probabilities and labels differ in samples.
    """
    where = "calibration error"
    if probabilities_NC.dim() != 2 or probabilities_NC.shape[1] == 0:
        raise ModelError(
            problem(
                where,
                f"expected probabilities of shape [samples, classes], got {list(probabilities_NC.shape)}",
                "give one row of class probabilities a sample",
            )
        )
    if labels_N.shape != probabilities_NC.shape[:1]:
        raise ShapeError(
            problem(
                where,
                f"probabilities are {list(probabilities_NC.shape)}, labels are {list(labels_N.shape)}",
                "give one label a row",
            )
        )
    known = check_labels(where, labels_N, num_classes=probabilities_NC.shape[1])
    confidence, prediction = probabilities_NC[known].max(dim=1)
    return calibration_error(confidence, prediction == labels_N[known], bins=bins)


def calibration_error(confidence_N: Tensor, correct_N: Tensor, *, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over `bins` equal bins of [0, 1], weighted by samples; from 0 to 1.

    A confidence on an inner boundary belongs to the bin above it, a confidence of 1 to the last. Sums in float64.

    Raises:
        DataError: there is no sample.
        ModelError: a confidence is NaN or outside 0..1.
        ShapeError: confidences and outcomes differ in shape.
    """
    from torchmetrics.functional.classification import binary_calibration_error  # noqa: PLC0415 - two seconds to import

    where = "calibration error"
    if confidence_N.shape != correct_N.shape:
        raise ShapeError(
            problem(
                where,
                f"confidences are {list(confidence_N.shape)}, outcomes are {list(correct_N.shape)}",
                "give one outcome a confidence",
            )
        )
    if not len(confidence_N):
        raise DataError(problem(where, "no sample is labelled", "give labels from 0 upwards; -1 means unlabelled"))
    confidence = confidence_N.double()
    # Softmax in float32 may end a rounding above 1; NaN fails both comparisons.
    if not ((confidence >= 0) & (confidence <= 1 + 1e-5)).all():
        raise ModelError(
            problem(where, "a probability is NaN or outside 0..1", "give probabilities, for example softmaxed logits")
        )
    # torchmetrics closes bins on the left, which would put confidences of exactly 1 into a bin of their own.
    confidence = confidence.clamp(max=1 - torch.finfo(torch.float64).eps)
    value = binary_calibration_error(confidence, correct_N.long(), n_bins=bins, norm="l1", validate_args=False)
    return float(value)


class Reliability(NamedTuple):
    """Mean confidence and accuracy (NaN for an empty bin) and the number of samples of each bin of confidence."""

    confidence: list[float]
    accuracy: list[float]
    samples: list[int]


def reliability(confidence_N: Tensor, correct_N: Tensor, *, bins: int = 15) -> Reliability:
    """What `calibration_error` sums up, bin by bin, in the same bins.

    Raises:
        DataError: there is no sample.
        ModelError: a confidence is NaN or outside 0..1.
        ShapeError: confidences and outcomes differ in shape.
    """
    calibration_error(confidence_N, correct_N, bins=bins)  # refuses what has no bins
    confidence = confidence_N.double().clamp(0, 1)
    place = (confidence * bins).long().clamp(max=bins - 1)
    count = torch.bincount(place, minlength=bins)
    sums = (torch.bincount(place, weights=w, minlength=bins) for w in (confidence, correct_N.double()))
    mean, right = ((total / count).tolist() for total in sums)
    return Reliability(confidence=mean, accuracy=right, samples=count.tolist())


def fit_temperature(logits_NC: Tensor, labels_N: Tensor) -> float:
    """The T in 0.05..100 for which softmax(logits / T) gives the labels the least negative log-likelihood.

    1 means that confidence is right, above 1 that the model is too sure. The loss is convex in 1 / T (Guo et al. 2017,
    section 4.2), so the zero of its derivative is found by bisection; separable logits end at the lower bound.

    Raises:
        DataError: no sample is labelled, or a label is no class.
        ModelError: the logits are no finite [N, C] table.
        ShapeError: logits and labels differ in samples.
    """
    check_logits("temperature", logits_NC)
    if labels_N.shape != logits_NC.shape[:1]:
        wrong = f"logits are {list(logits_NC.shape)}, labels are {list(labels_N.shape)}"
        raise ShapeError(problem("temperature", wrong, "give one label a row"))
    known = check_labels("temperature", labels_N, num_classes=logits_NC.shape[1])
    if not bool(known.any()):
        raise DataError(problem("temperature", "no sample is labelled", "give labels from 0 upwards"))
    logits, labels = logits_NC[known].double(), labels_N[known].long()
    logits = logits - logits.amax(dim=1, keepdim=True)
    finite = logits.masked_fill(logits.isneginf(), 0)
    told = finite.gather(1, labels[:, None]).squeeze(1)
    low, high = math.log(1 / 100), math.log(1 / 0.05)
    for _ in range(60):
        middle = (low + high) / 2
        slope = ((math.exp(middle) * logits).softmax(dim=1) * finite).sum(dim=1) - told
        low, high = (low, middle) if float(slope.mean()) > 0 else (middle, high)
    return math.exp(-(low + high) / 2)
