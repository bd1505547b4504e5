"""One pass over data to scores. Shapes: B = samples of a batch, N = all samples, C = classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.core.errors import DataError, ModelError, ShapeError, nearest, problem
from limbeck.core.setting import setting
from limbeck.core.still import undisturbed
from limbeck.core.types import Named
from limbeck.metrics import agreement, calibration, quality

__all__ = ["Scores", "score"]

Forward = Callable[[Named], Named]


@setting
class Scores(Mapping[str, float | list[float]]):
    """Scores by name: `scores["accuracy"]`, `dict(scores)`. What could not be measured is None, and no key.

    Shares run from 0 to 1, `nll` and `teacher_kl` are in nats. In the lists, a class without samples is NaN, and the
    macro averages leave it out. `samples` are the ones behind `accuracy`: valid and labelled; without any labels, the
    valid ones. `agreement` and `teacher_kl` are over all valid samples.
    """

    accuracy: float | None = None
    macro_recall: float | None = None
    macro_f1: float | None = None
    recall_per_class: list[float] | None = None
    f1_per_class: list[float] | None = None
    nll: float | None = None
    ece: float | None = None
    samples: int
    agreement: float | None = None
    teacher_kl: float | None = None

    def __getitem__(self, key: str) -> float | list[float]:
        """The score called `key`; KeyError when it was not measured."""
        if key not in list(self):
            raise KeyError(key)
        value: float | list[float] = getattr(self, key)
        return value

    def __iter__(self) -> Iterator[str]:
        """The names of what was measured."""
        return (field.name for field in dataclasses.fields(self) if getattr(self, field.name) is not None)

    def __len__(self) -> int:
        """How many scores were measured."""
        return sum(1 for _ in self)


class _Part(NamedTuple):
    """What one batch leaves behind: numbers per sample, so that memory does not grow with the classes."""

    classes: int
    valid: int
    labels: Tensor
    predictions: Tensor
    nll: Tensor
    confidence: Tensor
    agree: Tensor
    kl: Tensor


def score(forward: Forward, batches: Iterable[Named], *, teacher: Forward | None = None, on: str = "logits") -> Scores:
    """Score the logits that `forward` returns under the name `on`, in one pass, changing nothing.

    A batch may hold `valid` (bool [B]: padding is left out) and `y`: whole numbers [B], where -1 means unlabelled, or
    soft labels [B, C], of which the largest counts. Without a label anywhere, only agreement with the teacher is
    measured. Modules are run in evaluation mode without gradient, and are as they were afterwards. Logits are moved
    to the CPU, and the arithmetic is float64.

    Raises:
        DataError: there is no valid sample, nothing to compare with, or labels that do not fit the classes.
        ModelError: an output is missing, is no finite [B, C] table, or changes its classes between batches.
        ShapeError: student and teacher differ in shape.
    """
    with undisturbed(forward, teacher):
        parts = [_measure(forward, batch, teacher, on) for batch in batches]
    valid = sum(part.valid for part in parts)
    if not valid:
        raise DataError(problem("score", "the data holds no valid sample", "give at least one batch of valid samples"))
    sizes = sorted({part.classes for part in parts})
    if len(sizes) > 1:
        raise ModelError(
            problem(
                "score", f"the number of classes changes between batches: {sizes}", "return the same classes always"
            )
        )
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in _Part._fields[2:]}
    labelled = len(joined["labels"])
    if not labelled and teacher is None:
        raise DataError(
            problem("score", "no sample is labelled and there is no teacher", "give labels as 'y', or a teacher")
        )
    right = _quality(joined, sizes[0]) if labelled else Scores(samples=valid)
    if teacher is None:
        return right
    return dataclasses.replace(
        right, agreement=float(joined["agree"].double().mean()), teacher_kl=float(joined["kl"].mean())
    )


def _quality(joined: Mapping[str, Tensor], classes: int) -> Scores:
    predictions, labels = joined["predictions"], joined["labels"]
    return Scores(
        accuracy=quality.accuracy(predictions, labels),
        macro_recall=quality.macro_recall(predictions, labels, num_classes=classes),
        macro_f1=quality.macro_f1(predictions, labels, num_classes=classes),
        recall_per_class=quality.recall_per_class(predictions, labels, num_classes=classes),
        f1_per_class=quality.f1_per_class(predictions, labels, num_classes=classes),
        nll=float(joined["nll"].mean()),
        ece=calibration.calibration_error(joined["confidence"], predictions == labels),
        samples=len(labels),
    )


def _measure(forward: Forward, batch: Named, teacher: Forward | None, on: str) -> _Part:
    """Numbers per sample of one batch: of the labelled ones, and of all valid ones against the teacher."""
    logits_BC = _logits("student", forward(batch), on)
    rows, classes = logits_BC.shape
    valid_B = _valid(batch, rows)
    logits = logits_BC[valid_B]
    quality.check_logits("score, student", logits)
    labels = _labels(batch, rows, classes)[valid_B]
    known = quality.check_labels("score, labels 'y'", labels, num_classes=classes)
    labels, sure = labels[known], logits[known]
    none = torch.empty(0, dtype=torch.float64)
    agree, kl = none, none
    if teacher is not None:
        told_BC = _logits("teacher", teacher(batch), on)
        if told_BC.shape != logits_BC.shape:
            raise ShapeError(
                problem(
                    "score",
                    f"student logits are {list(logits_BC.shape)}, teacher logits are {list(told_BC.shape)}",
                    "give both the same samples and classes",
                )
            )
        if len(logits):
            told = told_BC[valid_B]
            kl = agreement.teacher_kl_per_sample(logits, told)
            agree = logits.argmax(dim=1) == told.argmax(dim=1)
    return _Part(
        classes=classes,
        valid=len(logits),
        labels=labels,
        predictions=sure.argmax(dim=1),
        nll=quality.negative_log_likelihood_per_sample(sure, labels) if len(labels) else none,
        confidence=sure.double().softmax(dim=1).amax(dim=1),
        agree=agree.double(),
        kl=kl,
    )


def _logits(who: str, signal: Named, on: str) -> Tensor:
    """The output `on`, on the CPU, in its own precision: the metrics compute in float64."""
    if not isinstance(signal, Mapping) or on not in signal:
        seen = nearest(on, signal) if isinstance(signal, Mapping) else f"it returned {type(signal).__name__}"
        raise ModelError(
            problem(
                f"score, {who}", f"there is no output {on!r} ({seen})", "return named tensors, and name one as `on`"
            )
        )
    logits = signal[on].detach().cpu()
    if logits.dim() != 2:
        raise ModelError(
            problem(
                f"score, {who}",
                f"output {on!r} has shape {list(logits.shape)}, expected [samples, classes]",
                "name an output with one row of class logits a sample",
            )
        )
    return logits


def _valid(batch: Named, rows: int) -> Tensor:
    if "valid" not in batch:
        return torch.ones(rows, dtype=torch.bool)
    valid = batch["valid"].cpu().bool()
    if valid.shape != (rows,):
        raise DataError(
            problem("score", f"'valid' is {list(valid.shape)} for {rows} rows of logits", "give one flag a sample")
        )
    return valid


def _labels(batch: Named, rows: int, classes: int) -> Tensor:
    """Whole-number labels, one a row of logits; -1 throughout when the batch has none."""
    if "y" not in batch:
        return torch.full((rows,), -1)
    y = batch["y"].detach().cpu()
    soft = y.dim() == 2 and y.is_floating_point()
    if soft and y.shape == (rows, classes) and not y.isnan().any():
        return y.argmax(dim=1)
    if soft or y.shape != (rows,):
        raise DataError(
            problem(
                "score, labels 'y'",
                f"labels of shape {list(y.shape)}{' that may hold NaN' if soft else ''} for logits of shape "
                f"{[rows, classes]}",
                f"give {rows} class numbers, or soft labels of shape {[rows, classes]} without NaN",
            )
        )
    return y
