"""How right predictions are: accuracy, precision, recall, F1, negative log-likelihood.

Shapes: N = samples, C = classes. A label of -1 means unlabelled: the sample is left out. Sums are exact counts or
float64. The counts are three histograms rather than a confusion matrix, which would hold C x C numbers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.core.check import whole
from limbeck.core.errors import DataError, ModelError, NonFiniteError, ShapeError, problem

__all__ = [
    "accuracy",
    "check_labelled",
    "check_labels",
    "check_logits",
    "confusion",
    "f1_per_class",
    "in_top_k",
    "macro_f1",
    "macro_precision",
    "macro_recall",
    "micro_f1",
    "micro_precision",
    "negative_log_likelihood",
    "negative_log_likelihood_per_sample",
    "precision_per_class",
    "recall_per_class",
    "top_k_accuracy",
]


class _Counts(NamedTuple):
    """Whole numbers per class, [C] each."""

    hits: Tensor
    support: Tensor
    predicted: Tensor


def check_logits(where: str, logits_NC: Tensor) -> None:
    """Refuse logits that are no table of samples and classes, or from which no probabilities follow.

    -inf for single classes is allowed (a masked class has probability zero).

    Raises:
        ModelError: not of shape [samples, classes], not floating point, or NaN, +inf, or -inf throughout a row.
    """
    if logits_NC.dim() != 2 or logits_NC.shape[1] == 0 or not logits_NC.is_floating_point():
        raise ModelError(
            problem(
                where,
                f"expected floating-point logits of shape [samples, classes], got {logits_NC.dtype} of shape "
                f"{list(logits_NC.shape)}",
                "let the model return one row of class logits a sample, or name another output",
            )
        )
    # The maximum of a row carries NaN and +inf, and is -inf only where the whole row is.
    bad = (~logits_NC.amax(dim=1).isfinite()).nonzero().flatten() if len(logits_NC) else torch.empty(0)
    if len(bad):
        raise NonFiniteError(
            problem(
                where,
                f"the logits of {len(bad)} of {len(logits_NC)} samples are NaN or infinite (the first is row "
                f"{int(bad[0])} of its batch)",
                "look for a diverged training, an overflow in half precision, or NaN in the inputs",
            )
        )


def check_labels(where: str, labels_N: Tensor, *, num_classes: int) -> Tensor:
    """The mask [N] of labelled samples; refuses labels that are no class.

    Raises:
        DataError: labels are no whole numbers, or one lies outside -1..num_classes - 1.
    """
    if labels_N.dim() != 1 or labels_N.is_floating_point() or labels_N.is_complex():
        raise DataError(
            problem(
                where,
                f"expected whole-number labels of shape [samples], got {labels_N.dtype} of shape "
                f"{list(labels_N.shape)}",
                "give class numbers, or soft labels of shape [samples, classes]",
            )
        )
    # Wide first: -1 has no place in uint8, and comparing it there would wrap around.
    labels = labels_N.long()
    outside = labels[(labels < -1) | (labels >= num_classes)]
    if len(outside):
        raise DataError(
            problem(
                where,
                f"label {int(outside[0])} does not fit {num_classes} classes",
                f"use labels from 0 to {num_classes - 1} (-1 for unlabelled), or a model with more classes",
            )
        )
    return labels >= 0


def check_labelled(where: str, logits_NC: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """The labelled samples' logits and labels.

    Raises:
        DataError: no sample is labelled, or a label is no class.
        ModelError: the logits are no finite [N, C] table.
        ShapeError: logits and labels differ in samples.
    """
    check_logits(where, logits_NC)
    check_labels(where, labels_N, num_classes=logits_NC.shape[1])
    return _labelled(where, logits_NC, labels_N)


def accuracy(predictions_N: Tensor, labels_N: Tensor) -> float:
    """Share of labelled samples whose prediction is the label, from 0 to 1.

    Raises:
        DataError: no sample is labelled.
        ShapeError: predictions and labels differ in shape.
    """
    predictions, labels = _labelled("accuracy", predictions_N, labels_N)
    return int((predictions == labels).sum()) / len(labels)


def top_k_accuracy(logits_NC: Tensor, labels_N: Tensor, k: int) -> float:
    """Share of labelled samples whose label is among the k likeliest classes, from 0 to 1; 1 where k >= C.

    Of classes with equal logits the lower number comes first, as in `argmax`: with k = 1 this is `accuracy`.

    Raises:
        ConfigError: k is below 1.
        DataError: no sample is labelled, or a label is no class.
        ModelError: the logits are no finite [N, C] table.
        ShapeError: logits and labels differ in samples.
    """
    return float(in_top_k(logits_NC, labels_N, k).double().mean())


def in_top_k(logits_NC: Tensor, labels_N: Tensor, k: int) -> Tensor:
    """Whether the label is among the k likeliest classes, one boolean a labelled sample, in their order.

    Raises:
        ConfigError: k is below 1.
        DataError: no sample is labelled, or a label is no class.
        ModelError: the logits are no finite [N, C] table.
        ShapeError: logits and labels differ in samples.
    """
    whole("k", k)
    logits, labels = check_labelled(f"top-{k} accuracy", logits_NC, labels_N)
    own = logits.gather(1, labels[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(dim=1) < k


def micro_precision(predictions_N: Tensor, labels_N: Tensor, *, num_classes: int) -> float:
    """Share of the answers given that are right; abstentions (-1) are no answers. 0 where none is given.

    Counted over all classes together, each wrong answer is one false alarm and one miss. So micro precision, recall and
    F1 are all `accuracy` where each sample has one label and one answer. Abstentions tell them apart: micro recall is
    still `accuracy`, in which they are wrong.

    Raises:
        DataError: no sample is labelled, or a label or prediction is no class.
        ShapeError: predictions and labels differ in shape.
    """
    counts = _count("micro precision", predictions_N, labels_N, num_classes)
    return int(counts.hits.sum()) / max(1, int(counts.predicted.sum()))


def micro_f1(predictions_N: Tensor, labels_N: Tensor, *, num_classes: int) -> float:
    """Harmonic mean of `micro_precision` and `accuracy`: equal to both where no sample is abstained from.

    Raises:
        DataError: no sample is labelled, or a label or prediction is no class.
        ShapeError: predictions and labels differ in shape.
    """
    counts = _count("micro F1", predictions_N, labels_N, num_classes)
    return 2 * int(counts.hits.sum()) / int(counts.support.sum() + counts.predicted.sum())


def precision_per_class(predictions_N: Tensor, labels_N: Tensor, *, num_classes: int) -> list[float]:
    """For each class, the share of the answers naming it that are right; NaN for a class without samples.

    A class with samples that is never predicted has precision zero.

    Raises:
        DataError: no sample is labelled, or a label or prediction is no class.
        ShapeError: predictions and labels differ in shape.
    """
    counts = _count("precision", predictions_N, labels_N, num_classes)
    return _share(counts, counts.hits.double() / counts.predicted.clamp_min(1))


def recall_per_class(predictions_N: Tensor, labels_N: Tensor, *, num_classes: int) -> list[float]:
    """For each class, the share of its samples that were found; NaN for a class without samples.

    Raises:
        DataError: no sample is labelled, or a label or prediction is no class.
        ShapeError: predictions and labels differ in shape.
    """
    counts = _count("recall", predictions_N, labels_N, num_classes)
    return _share(counts, counts.hits.double() / counts.support)


def f1_per_class(predictions_N: Tensor, labels_N: Tensor, *, num_classes: int) -> list[float]:
    """For each class, the harmonic mean of precision and recall; NaN for a class without samples.

    A class with samples that is never predicted has F1 zero.

    Raises:
        DataError: no sample is labelled, or a label or prediction is no class.
        ShapeError: predictions and labels differ in shape.
    """
    counts = _count("F1", predictions_N, labels_N, num_classes)
    return _share(counts, 2 * counts.hits.double() / (counts.support + counts.predicted))


def macro_precision(predictions_N: Tensor, labels_N: Tensor, *, num_classes: int) -> float:
    """Mean precision over the classes that have samples.

    Equals scikit-learn's `precision_score(average="macro", labels=<classes present>, zero_division=0)`.

    Raises:
        DataError: no sample is labelled, or a label or prediction is no class.
        ShapeError: predictions and labels differ in shape.
    """
    return _macro(precision_per_class(predictions_N, labels_N, num_classes=num_classes))


def macro_recall(predictions_N: Tensor, labels_N: Tensor, *, num_classes: int) -> float:
    """Mean recall over the classes that have samples (balanced accuracy).

    Equals scikit-learn's `recall_score(average="macro", labels=<classes present>, zero_division=0)`.

    Raises:
        DataError: no sample is labelled, or a label or prediction is no class.
        ShapeError: predictions and labels differ in shape.
    """
    return _macro(recall_per_class(predictions_N, labels_N, num_classes=num_classes))


def macro_f1(predictions_N: Tensor, labels_N: Tensor, *, num_classes: int) -> float:
    """Mean F1 over the classes that have samples.

    Equals scikit-learn's `f1_score(average="macro", labels=<classes present>, zero_division=0)`: predicting a class
    that has no samples costs recall elsewhere, and adds no zero of its own.

    Raises:
        DataError: no sample is labelled, or a label or prediction is no class.
        ShapeError: predictions and labels differ in shape.
    """
    return _macro(f1_per_class(predictions_N, labels_N, num_classes=num_classes))


def confusion(predictions_N: Tensor, labels_N: Tensor, *, num_classes: int) -> Tensor:
    """Counts [C, C] of labelled samples, rows by true class, columns by answer; abstentions (-1) are in no column.

    Raises:
        DataError: no sample is labelled, or a label or prediction is no class.
        ShapeError: predictions and labels differ in shape.
    """
    check_labels("confusion", labels_N, num_classes=num_classes)
    check_labels("confusion, predictions", predictions_N, num_classes=num_classes)
    predictions, labels = _labelled("confusion", predictions_N.long(), labels_N)
    answered = predictions >= 0
    cells = labels[answered] * num_classes + predictions[answered]
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)


def negative_log_likelihood(logits_NC: Tensor, labels_N: Tensor) -> float:
    """Mean of -ln p(label) over labelled samples, in nats, from logits in log space; infinite where p is zero.

    Raises:
        DataError: no sample is labelled, or a label is no class.
        ModelError: the logits are no finite [N, C] table.
        ShapeError: logits and labels differ in samples.
    """
    return float(negative_log_likelihood_per_sample(logits_NC, labels_N).mean())


def negative_log_likelihood_per_sample(logits_NC: Tensor, labels_N: Tensor) -> Tensor:
    """-ln p(label) in nats, float64, one value a labelled sample, in their order.

    Raises:
        DataError: no sample is labelled, or a label is no class.
        ModelError: the logits are no finite [N, C] table.
        ShapeError: logits and labels differ in samples.
    """
    logits, labels = check_labelled("negative log-likelihood", logits_NC, labels_N)
    return -logits.double().log_softmax(dim=1).gather(1, labels[:, None]).squeeze(1)


def _labelled(where: str, values: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    if values.shape[:1] != labels_N.shape:
        raise ShapeError(
            problem(
                where,
                f"predictions are {list(values.shape)}, labels are {list(labels_N.shape)}",
                "give one label a prediction",
            )
        )
    labels = labels_N.long()
    known = labels >= 0
    if not known.any():
        raise DataError(problem(where, "no sample is labelled", "give labels from 0 upwards; -1 means unlabelled"))
    return values[known], labels[known]


def _count(where: str, predictions_N: Tensor, labels_N: Tensor, num_classes: int) -> _Counts:
    check_labels(where, labels_N, num_classes=num_classes)
    check_labels(f"{where}, predictions", predictions_N, num_classes=num_classes)
    predictions, labels = _labelled(where, predictions_N.long(), labels_N)
    # A prediction of -1 (an abstention) is predicted for no class.
    histogram = (labels[predictions == labels], labels, predictions[predictions >= 0])
    return _Counts(*(torch.bincount(x, minlength=num_classes) for x in histogram))


def _share(counts: _Counts, value_C: Tensor) -> list[float]:
    # math.nan itself, because lists holding the same NaN object compare equal.
    pairs = zip(value_C.tolist(), counts.support.tolist(), strict=True)
    return [float(value) if support else math.nan for value, support in pairs]


def _macro(value_C: list[float]) -> float:
    present = [value for value in value_C if not math.isnan(value)]
    return math.fsum(present) / len(present)
