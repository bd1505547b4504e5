"""Whether a model is as sure as it is right. Shapes: N = samples, C = classes."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.core.check import whole
from limbeck.core.errors import DataError, ModelError, ShapeError, problem
from limbeck.metrics.quality import check_labelled, check_labels

__all__ = [
    "Reliability",
    "adaptive_calibration_error",
    "brier_per_sample",
    "brier_score",
    "calibration_error",
    "expected_calibration_error",
    "fit_temperature",
    "reliability",
]


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
        ConfigError: there is no bin.
        DataError: there is no sample.
        ModelError: a confidence is NaN or outside 0..1.
        ShapeError: confidences and outcomes differ in shape.
    """
    return _gap(reliability(confidence_N, correct_N, bins=bins))


class Reliability(NamedTuple):
    """Mean confidence and accuracy (NaN for an empty bin) and the number of samples of each bin of confidence."""

    confidence: list[float]
    accuracy: list[float]
    samples: list[int]


def reliability(confidence_N: Tensor, correct_N: Tensor, *, bins: int = 15) -> Reliability:
    """What `calibration_error` sums up, bin by bin, in the same bins.

    Raises:
        ConfigError: there is no bin.
        DataError: there is no sample.
        ModelError: a confidence is NaN or outside 0..1.
        ShapeError: confidences and outcomes differ in shape.
    """
    whole("bins", bins)
    confidence = _checked(confidence_N, correct_N)
    # By edges, not floor(bins x): by rounding, 0.3 is below the third of ten edges, and 3 tenths above.
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=confidence.device)
    place = (torch.bucketize(confidence, edges, right=True) - 1).clamp(max=bins - 1)
    return _binned(place, bins, confidence, correct_N)


def adaptive_calibration_error(confidence_N: Tensor, correct_N: Tensor, *, bins: int = 15) -> float:
    """`calibration_error` over bins of equally many samples instead of equal width; from 0 to 1.

    Confidences crowd near 1, where equal widths put most samples into one bin. Samples of the same confidence share
    the bin of the first of them, so that the order of the samples decides nothing. Nguyen & O'Connor 2015, "Posterior
    calibration and exploratory analysis for natural language processing models"; Nixon et al. 2019, "Measuring
    Calibration in Deep Learning", there over all classes, here over the top class.

    Raises:
        ConfigError: there is no bin.
        DataError: there is no sample.
        ModelError: a confidence is NaN or outside 0..1.
        ShapeError: confidences and outcomes differ in shape.
    """
    whole("bins", bins)
    confidence = _checked(confidence_N, correct_N)
    level, sizes = torch.unique(confidence, return_inverse=True, return_counts=True)[1:]
    first = sizes.cumsum(0) - sizes
    place = (first * bins // len(confidence))[level]
    return _gap(_binned(place, bins, confidence, correct_N))


def brier_score(logits_NC: Tensor, labels_N: Tensor) -> float:
    """Mean squared distance of the softmaxed logits to the truth, summed over classes: from 0 to 2.

    Brier 1950, "Verification of forecasts expressed in terms of probability". With two classes it is twice what
    counts the second class alone.

    Raises:
        DataError: no sample is labelled, or a label is no class.
        ModelError: the logits are no finite [N, C] table.
        ShapeError: logits and labels differ in samples.
    """
    return float(brier_per_sample(logits_NC, labels_N).mean())


def brier_per_sample(logits_NC: Tensor, labels_N: Tensor) -> Tensor:
    """Σ over classes of (probability - truth)², float64, one value a labelled sample, in their order.

    Raises:
        DataError: no sample is labelled, or a label is no class.
        ModelError: the logits are no finite [N, C] table.
        ShapeError: logits and labels differ in samples.
    """
    logits, labels = check_labelled("Brier score", logits_NC, labels_N)
    apart_NC = logits.double().softmax(dim=1)
    apart_NC.scatter_add_(1, labels[:, None], -torch.ones_like(apart_NC[:, :1]))
    return apart_NC.square().sum(dim=1)


def fit_temperature(logits_NC: Tensor, labels_N: Tensor) -> float:
    """The T in 0.05..100 for which softmax(logits / T) gives the labels the least negative log-likelihood.

    1 means that confidence is right, above 1 that the model is too sure. The loss is convex in 1 / T (Guo et al. 2017,
    section 4.2), so the zero of its derivative is found by bisection; separable logits end at the lower bound. Samples
    whose label has probability zero cost the same at any T and are left out; 1 where nothing tells one T from another.

    Raises:
        DataError: no sample is labelled, or a label is no class.
        ModelError: the logits are no finite [N, C] table.
        ShapeError: logits and labels differ in samples.
    """
    logits, labels = check_labelled("temperature", logits_NC, labels_N)
    logits = logits.double()
    logits = logits - logits.amax(dim=1, keepdim=True)
    finite = logits.masked_fill(logits.isneginf(), 0)
    possible = ~logits.gather(1, labels[:, None]).isneginf().squeeze(1)
    if not bool((finite[possible] < 0).any()):
        return 1.0
    logits, finite, labels = logits[possible], finite[possible], labels[possible]
    told = finite.gather(1, labels[:, None]).squeeze(1)
    low, high = math.log(1 / 100), math.log(1 / 0.05)
    for _ in range(60):
        middle = (low + high) / 2
        slope = ((math.exp(middle) * logits).softmax(dim=1) * finite).sum(dim=1) - told
        low, high = (low, middle) if float(slope.mean()) > 0 else (middle, high)
    return math.exp(-(low + high) / 2)


def _checked(confidence_N: Tensor, correct_N: Tensor) -> Tensor:
    """The confidences as float64 from 0 to 1."""
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
    return confidence.clamp(max=1)


def _binned(place_N: Tensor, bins: int, confidence_N: Tensor, correct_N: Tensor) -> Reliability:
    count = torch.bincount(place_N, minlength=bins)
    sums = (torch.bincount(place_N, weights=w, minlength=bins) for w in (confidence_N, correct_N.double()))
    mean, right = ((total / count).tolist() for total in sums)
    return Reliability(confidence=mean, accuracy=right, samples=count.tolist())


def _gap(found: Reliability) -> float:
    return math.fsum(n * abs(c - a) for c, a, n in zip(*found, strict=True) if n) / sum(found.samples)
