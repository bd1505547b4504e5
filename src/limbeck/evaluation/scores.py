"""One pass over data to scores. Shapes: B = samples of a batch, N = all samples, C = classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from limbeck.core.errors import DataError, ModelError, NonFiniteError, ShapeError, nearest, problem
from limbeck.core.setting import setting
from limbeck.core.still import undisturbed
from limbeck.core.types import Named
from limbeck.metrics import agreement, calibration, quality, regression

__all__ = ["Scores", "score"]

Forward = Callable[[Named], Named]

_TOP = 5


@setting
class Scores(Mapping[str, float | list[float]]):
    """Scores by name: `scores["accuracy"]`, `dict(scores)`. What could not be measured is None, and no key.

    Shares run from 0 to 1, `nll` and `teacher_kl` are in nats, `brier` from 0 to 2. In the lists, a class without
    samples is NaN, and the macro averages leave it out. `top5_accuracy` is for more than five classes. `samples` are
    the ones behind `accuracy`: valid and labelled; without any labels, the valid ones. What a teacher is asked for
    (`agreement`, `teacher_kl`, `teacher_rank`, `teacher_mse`) is over all valid samples. Where labels are real numbers,
    the scores are `mse`, `mae`, `r2`, `pearson`, `spearman`, and `teacher_mse` beside a teacher; those that would
    divide by a spread of zero are not measured.
    """

    accuracy: float | None = None
    top5_accuracy: float | None = None
    macro_precision: float | None = None
    macro_recall: float | None = None
    macro_f1: float | None = None
    recall_per_class: list[float] | None = None
    f1_per_class: list[float] | None = None
    nll: float | None = None
    brier: float | None = None
    ece: float | None = None
    adaptive_ece: float | None = None
    mse: float | None = None
    mae: float | None = None
    r2: float | None = None
    pearson: float | None = None
    spearman: float | None = None
    samples: int
    agreement: float | None = None
    teacher_kl: float | None = None
    teacher_rank: float | None = None
    teacher_mse: float | None = None

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
    """What one batch leaves behind: numbers per sample, so that memory does not grow with the classes.

    `classes` is 0 where the labels are real numbers.
    """

    classes: int
    valid: int
    mine: dict[str, Tensor]
    """Of the labelled samples."""
    beside: dict[str, Tensor]
    """Of all valid samples, against the teacher."""


def score(forward: Forward, batches: Iterable[Named], *, teacher: Forward | None = None, on: str = "logits") -> Scores:
    """Score the logits that `forward` returns under the name `on`, in one pass, changing nothing.

    A batch may hold `valid` (bool [B]: padding is left out) and `y`: whole numbers [B], where -1 means unlabelled, or
    soft labels [B, C], of which the largest counts, or real numbers [B] or [B, 1] beside an output of that shape. An
    output of one number a sample without labels stands for a real number. Without a label anywhere, only agreement
    with the teacher is measured. Modules are run in evaluation mode without gradient, and are as they were afterwards.
    Outputs are moved to the CPU, and the arithmetic is float64.

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
        wrong = f"the number of classes changes between batches: {sizes}" + (
            " (0 for real numbers)" if not sizes[0] else ""
        )
        raise ModelError(problem("score", wrong, "return the same classes always, and labels of one kind"))
    mine, beside = (
        {name: torch.cat([side[name] for side in sides]) for name in sides[0]}
        for sides in ([part.mine for part in parts], [part.beside for part in parts])
    )
    labelled = len(mine["labels"])
    if not labelled and teacher is None:
        raise DataError(
            problem("score", "no sample is labelled and there is no teacher", "give labels as 'y', or a teacher")
        )
    measured: dict[str, Any] = {name: _mean(value) for name, value in beside.items()}
    if not labelled:
        return Scores(samples=valid, **measured)
    return dataclasses.replace(_quality(mine, sizes[0]) if sizes[0] else _errors(mine), **measured)


def _quality(mine: Mapping[str, Tensor], classes: int) -> Scores:
    predictions, labels = mine["predictions"], mine["labels"]
    right = predictions == labels
    return Scores(
        accuracy=quality.accuracy(predictions, labels),
        top5_accuracy=float(mine["top5"].double().mean()) if classes > _TOP else None,
        macro_precision=quality.macro_precision(predictions, labels, num_classes=classes),
        macro_recall=quality.macro_recall(predictions, labels, num_classes=classes),
        macro_f1=quality.macro_f1(predictions, labels, num_classes=classes),
        recall_per_class=quality.recall_per_class(predictions, labels, num_classes=classes),
        f1_per_class=quality.f1_per_class(predictions, labels, num_classes=classes),
        nll=float(mine["nll"].mean()),
        brier=float(mine["brier"].mean()),
        ece=calibration.calibration_error(mine["confidence"], right),
        adaptive_ece=calibration.adaptive_calibration_error(mine["confidence"], right),
        samples=len(labels),
    )


def _errors(mine: Mapping[str, Tensor]) -> Scores:
    sides = mine["predictions"], mine["labels"]
    return Scores(
        mse=regression.mean_squared_error(*sides),
        mae=regression.mean_absolute_error(*sides),
        r2=regression.r2(*sides),
        pearson=regression.pearson(*sides),
        spearman=regression.spearman(*sides),
        samples=len(sides[0]),
    )


def _mean(value: Tensor) -> float | None:
    """The mean over the samples that have the number; None where none has."""
    known = value.double()[~value.isnan()]
    return float(known.mean()) if len(known) else None


def _measure(forward: Forward, batch: Named, teacher: Forward | None, on: str) -> _Part:
    """Numbers per sample of one batch: of the labelled ones, and of all valid ones against the teacher."""
    output = _output("student", forward(batch), on)
    told = _output("teacher", teacher(batch), on) if teacher is not None else None
    y = batch["y"].detach().cpu() if "y" in batch else None
    if _one_number(output) and (y is None or y.is_floating_point()):
        return _measure_numbers(output, told, y, _valid(batch, len(output)))
    return _measure_classes(output, told, y, _valid(batch, len(output)))


def _measure_classes(logits_BC: Tensor, told_BC: Tensor | None, y: Tensor | None, valid_B: Tensor) -> _Part:
    for who, table in (("student", logits_BC), ("teacher", told_BC)):
        if table is not None and table.dim() != 2:
            wrong = f"the output has shape {list(table.shape)}, expected [samples, classes]"
            mend = "name an output with one row of class logits a sample, or give labels that are real numbers"
            raise ModelError(problem(f"score, {who}", wrong, mend))
    rows, classes = logits_BC.shape
    logits = logits_BC[valid_B]
    quality.check_logits("score, student", logits)
    labels = _labels(y, rows, classes)[valid_B]
    known = quality.check_labels("score, labels 'y'", labels, num_classes=classes)
    labels, sure = labels[known].long(), logits[known]
    some, none = bool(len(labels)), torch.empty(0, dtype=torch.float64)
    mine = {
        "labels": labels,
        "predictions": sure.argmax(dim=1),
        "top5": quality.in_top_k(sure, labels, _TOP) if some else none.bool(),
        "nll": quality.negative_log_likelihood_per_sample(sure, labels) if some else none,
        "brier": calibration.brier_per_sample(sure, labels) if some else none,
        "confidence": sure.double().softmax(dim=1).amax(dim=1),
    }
    if told_BC is None:
        return _Part(classes, len(logits), mine, {})
    _same(logits_BC, told_BC)
    sides = logits, told_BC[valid_B]
    some = bool(len(logits))
    agree = (sides[0].argmax(dim=1) == sides[1].argmax(dim=1)).double()
    beside = {
        "agreement": agree,
        "teacher_kl": agreement.teacher_kl_per_sample(*sides) if some else none,
        "teacher_rank": agreement.teacher_rank_per_sample(*sides) if some else none,
    }
    return _Part(classes, len(logits), mine, beside)


def _measure_numbers(output: Tensor, told: Tensor | None, y: Tensor | None, valid_B: Tensor) -> _Part:
    """The same for real numbers, [B] or [B, 1] on each side."""
    rows = len(output)
    if y is not None and not (len(y) == rows and _one_number(y)):
        wrong = f"labels of shape {list(y.shape)} for an output of shape {list(output.shape)}"
        raise DataError(problem("score, labels 'y'", wrong, f"give {rows} numbers"))
    if told is not None and not (len(told) == rows and _one_number(told)):
        _same(output, told)
    sides = {"student": output, "teacher": told, "labels 'y'": y}
    kept = {who: x.flatten()[valid_B].double() for who, x in sides.items() if x is not None}
    for who, values in kept.items():
        bad = (~values.isfinite()).nonzero().flatten()
        if len(bad):
            wrong = (
                f"{len(bad)} of {len(values)} numbers are NaN or infinite (the first is row {int(bad[0])} of its batch)"
            )
            if who == "labels 'y'":
                raise DataError(problem(f"score, {who}", wrong, "leave such samples out"))
            raise NonFiniteError(problem(f"score, {who}", wrong, "look for a diverged training, or NaN in the inputs"))
    mine = kept["student"]
    labels = kept.get("labels 'y'", mine[:0])
    gap = {"teacher_mse": (mine - kept["teacher"]).square()} if told is not None else {}
    return _Part(0, len(mine), {"labels": labels, "predictions": mine[: len(labels)]}, gap)


def _one_number(x: Tensor) -> bool:
    return x.is_floating_point() and (x.dim() == 1 or (x.dim() == 2 and x.shape[1] == 1))


def _same(mine: Tensor, told: Tensor) -> None:
    if told.shape != mine.shape:
        wrong = f"student logits are {list(mine.shape)}, teacher logits are {list(told.shape)}"
        raise ShapeError(problem("score", wrong, "give both the same samples and classes"))


def _output(who: str, signal: Named, on: str) -> Tensor:
    """The output `on`, on the CPU, in its own precision: the metrics compute in float64."""
    if not isinstance(signal, Mapping) or on not in signal:
        seen = nearest(on, signal) if isinstance(signal, Mapping) else f"it returned {type(signal).__name__}"
        raise ModelError(
            problem(
                f"score, {who}", f"there is no output {on!r} ({seen})", "return named tensors, and name one as `on`"
            )
        )
    output = signal[on].detach().cpu()
    if output.dim() not in (1, 2):
        raise ModelError(
            problem(
                f"score, {who}",
                f"output {on!r} has shape {list(output.shape)}, expected [samples, classes]",
                "name an output with one row of class logits a sample",
            )
        )
    return output


def _valid(batch: Named, rows: int) -> Tensor:
    if "valid" not in batch:
        return torch.ones(rows, dtype=torch.bool)
    valid = batch["valid"].cpu().bool()
    if valid.shape != (rows,):
        raise DataError(
            problem("score", f"'valid' is {list(valid.shape)} for {rows} rows of logits", "give one flag a sample")
        )
    return valid


def _labels(y: Tensor | None, rows: int, classes: int) -> Tensor:
    """Whole-number labels, one a row of logits; -1 throughout when there are none."""
    if y is None:
        return torch.full((rows,), -1)
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
