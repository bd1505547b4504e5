"""Losses on outputs: what the teacher answers.

Shapes: B = any leading axes, C = classes. Student first, teacher second, logits in, one value per example out.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.core.check import positive, same_shape
from limbeck.core.errors import DataError, ShapeError, problem
from limbeck.core.schedules import Number
from limbeck.core.setting import setting
from limbeck.core.types import Named, Needs
from limbeck.objectives.divergence import Reduction, Scaling, expected, kl, log_pair, reduce, scale, widened
from limbeck.objectives.term import OnOutput, check_weight

__all__ = [
    "KL",
    "Label",
    "MSELogits",
    "MSEProbabilities",
    "SoftCrossEntropy",
    "label_cross_entropy",
    "mse_logits",
    "mse_probabilities",
    "soft_cross_entropy",
]


def soft_cross_entropy(
    student_BC: Tensor,
    teacher_BC: Tensor,
    *,
    temperature: float = 1.0,
    temperature_scaling: Scaling = "squared",
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy of the student under the teacher's softened answers, times temperature squared.

    It equals `kl` plus the teacher's entropy: the same gradient, a value that does not reach zero.

    Args:
        student_BC: student logits [..., C].
        teacher_BC: teacher logits [..., C].
        temperature: both sides are divided by it before the softmax.
        temperature_scaling: "squared" multiplies by T², "none" leaves the bare cross-entropy.
        reduction: "none" gives one value per example, [...].

    Raises:
        ShapeError: the shapes differ.

    Source: Hinton, Vinyals & Dean 2015, section 2.
    """
    log_s, log_t = log_pair("soft_cross_entropy", student_BC, teacher_BC, temperature=temperature)
    return reduce(scale(expected(log_t, -log_s), temperature, temperature_scaling), reduction)


def mse_logits(student_BC: Tensor, teacher_BC: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Squared error of logits, averaged over classes.

    Unlike the divergences it sees a constant added to all logits: it asks for the same numbers, not the same answers.

    Args:
        student_BC: student logits [..., C].
        teacher_BC: teacher logits [..., C].
        reduction: "none" gives one value per example, [...].

    Raises:
        ShapeError: the shapes differ.

    Source: Ba & Caruana 2014, "Do deep nets really need to be deep?", section 2.2.
    """
    same_shape("mse_logits", student=student_BC, teacher=teacher_BC)
    return reduce((widened(student_BC) - widened(teacher_BC)).square().mean(-1), reduction)


def mse_probabilities(
    student_BC: Tensor,
    teacher_BC: Tensor,
    *,
    temperature: float = 1.0,
    temperature_scaling: Scaling = "squared",
    reduction: Reduction = "mean",
) -> Tensor:
    """Squared error of softened probabilities: summed over classes (the Brier form), averaged over samples.

    Args:
        student_BC: student logits [..., C].
        teacher_BC: teacher logits [..., C]; probabilities p go in as log p.
        temperature: both sides are divided by it before the softmax.
        temperature_scaling: "squared" multiplies by T².
        reduction: "none" gives one value per example, [...].

    Raises:
        ShapeError: the shapes differ.

    Source: the quadratic score of Brier 1950, with the teacher's answers in the place of the outcome.
    """
    log_s, log_t = log_pair("mse_probabilities", student_BC, teacher_BC, temperature=temperature)
    value = (log_s.exp() - log_t.exp()).square().sum(-1)
    return reduce(scale(value, temperature, temperature_scaling), reduction)


def label_cross_entropy(
    student_BC: Tensor, y: Tensor, *, smoothing: float = 0.0, reduction: Reduction = "mean"
) -> Tensor:
    """Cross-entropy with true labels; a sample without a label (-1, or an all-zero soft label) costs nothing.

    Args:
        student_BC: student logits [..., C].
        y: class numbers [...], or soft labels [..., C] as mixing makes them (they may be narrower than the logits).
        smoothing: share of the label spread evenly over all classes (Szegedy et al. 2016, section 7).
        reduction: "none" gives one value per example, [...].

    Raises:
        ShapeError: labels and logits do not line up.
    """
    log_s = widened(student_BC).log_softmax(-1)
    if y.is_floating_point():
        if y.shape[:-1] != log_s.shape[:-1] or y.shape[-1] > log_s.shape[-1]:
            raise _labels_do_not_fit(student_BC, y)
        soft = F.pad(y, (0, log_s.shape[-1] - y.shape[-1])).to(log_s)
        has_label = soft.sum(-1, keepdim=True)
        soft = (1 - smoothing) * soft + smoothing * has_label / log_s.shape[-1]
        return reduce(-expected(soft.log(), log_s), reduction)
    if y.shape != log_s.shape[:-1]:
        raise _labels_do_not_fit(student_BC, y)
    try:
        flat = F.nll_loss(log_s.flatten(0, -2), y.flatten(), ignore_index=-1, reduction="none").view(y.shape)
    except IndexError:  # a data set that was not looked through beforehand
        wrong = f"labels go from {int(y.min())} to {int(y.max())}, the student has {log_s.shape[-1]} classes"
        raise DataError(problem("label", wrong, "give the student an output a class, or mend the labels")) from None
    if smoothing:
        flat = (1 - smoothing) * flat - smoothing * torch.where(y == -1, 0.0, log_s.mean(-1))
    return reduce(flat, reduction)


def _labels_do_not_fit(logits: Tensor, y: Tensor) -> ShapeError:
    wrong = f"logits are {tuple(logits.shape)}, labels are {tuple(y.shape)}"
    return ShapeError(problem("label", wrong, "give one class number a sample, or soft labels [..., classes]"))


def _softened(kind: str, weight: Number, temperature: float) -> None:
    check_weight(kind, weight)
    positive(f"{kind}.temperature", temperature)


@setting
class KL(OnOutput):
    """Match the teacher's soft answers. The formula is `kl`."""

    kind: Literal["kl"] = "kl"
    weight: Number = 1.0
    temperature: float = 2.0
    on: str = "logits"

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        _softened(self.kind, self.weight, self.temperature)

    def __call__(self, student: Named, teacher: Named, batch: Named) -> Tensor:  # noqa: ARG002 - all terms share a form
        """One value per example."""
        return kl(student[self.on], teacher[self.on], temperature=self.temperature, reduction="none")


@setting
class SoftCrossEntropy(OnOutput):
    """Match the teacher's soft answers by cross-entropy. The formula is `soft_cross_entropy`."""

    kind: Literal["soft_cross_entropy"] = "soft_cross_entropy"
    weight: Number = 1.0
    temperature: float = 2.0
    on: str = "logits"

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        _softened(self.kind, self.weight, self.temperature)

    def __call__(self, student: Named, teacher: Named, batch: Named) -> Tensor:  # noqa: ARG002
        """One value per example."""
        return soft_cross_entropy(student[self.on], teacher[self.on], temperature=self.temperature, reduction="none")


@setting
class MSELogits(OnOutput):
    """Match the teacher's logits number by number. The formula is `mse_logits`."""

    kind: Literal["mse_logits"] = "mse_logits"
    weight: Number = 1.0
    on: str = "logits"

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        check_weight(self.kind, self.weight)

    def __call__(self, student: Named, teacher: Named, batch: Named) -> Tensor:  # noqa: ARG002
        """One value per example."""
        return mse_logits(student[self.on], teacher[self.on], reduction="none")


@setting
class MSEProbabilities(OnOutput):
    """Match the teacher's probabilities by squared error. The formula is `mse_probabilities`."""

    kind: Literal["mse_probabilities"] = "mse_probabilities"
    weight: Number = 1.0
    temperature: float = 1.0
    on: str = "logits"

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        _softened(self.kind, self.weight, self.temperature)

    def __call__(self, student: Named, teacher: Named, batch: Named) -> Tensor:  # noqa: ARG002
        """One value per example."""
        return mse_probabilities(student[self.on], teacher[self.on], temperature=self.temperature, reduction="none")


@setting
class Label(OnOutput):
    """Match the true labels. The formula is `label_cross_entropy`."""

    kind: Literal["label"] = "label"
    weight: Number = 1.0
    smoothing: float = 0.0
    on: str = "logits"

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        check_weight(self.kind, self.weight)
        if not 0 <= self.smoothing < 1:
            raise ShapeError(problem("label.smoothing", f"{self.smoothing} is no share", "give 0 or more, below 1"))

    def needs(self) -> Needs:
        """The student's output and the labels; no teacher."""
        return Needs(student=frozenset({self.on}), batch=frozenset({"y"}))

    def __call__(self, student: Named, teacher: Named, batch: Named) -> Tensor:  # noqa: ARG002
        """One value per example."""
        return label_cross_entropy(student[self.on], batch["y"], smoothing=self.smoothing, reduction="none")
