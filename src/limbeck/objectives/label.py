"""Losses on labels, and what a label means to the losses that read one beside the teacher.

A label is a class number, -1 (or `ignore`) for none, or a soft label over the classes, as mixing makes them; all zeros
are none. Losses that single out the true class take a soft label as an expectation: the loss for its two heaviest
classes, weighed by their shares. For mixup and cutmix, which mix two, that is exact.

Shapes: B = any leading axes, C = classes, K = 1 or 2 classes of a label.
"""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.core.check import one_of, positive
from limbeck.core.errors import ConfigError, DataError, ShapeError, problem
from limbeck.core.schedules import Number
from limbeck.core.setting import setting
from limbeck.core.types import Named, Needs
from limbeck.objectives.divergence import kl
from limbeck.objectives.logspace import Reduction, expected, reduce, softened, widened
from limbeck.objectives.term import Formula, OnOutput, check_weight

__all__ = ["Chosen", "Label", "TeacherFree", "label_cross_entropy", "teacher_free"]


class Chosen(NamedTuple):
    """The classes that a label names and their shares, both [..., K]; the shares of a sample sum to 1, or are all 0."""

    classes: Tensor
    share: Tensor


def chosen(where: str, logits_BC: Tensor, y: Tensor, *, ignore: int = -1) -> Chosen:
    """What the labels single out.

    Raises:
        ShapeError: labels and logits do not line up.
        DataError: a label is no class of the student's.
    """
    if y.is_floating_point():
        if y.shape[:-1] != logits_BC.shape[:-1] or y.shape[-1] > logits_BC.shape[-1]:
            raise _labels_do_not_fit(logits_BC, y, where)
        share, index = y.to(logits_BC.dtype).topk(min(2, y.shape[-1]), -1)
        whole = share.sum(-1, keepdim=True)
        return Chosen(index, share / torch.where(whole == 0, 1.0, whole))
    if y.shape != logits_BC.shape[:-1]:
        raise _labels_do_not_fit(logits_BC, y, where)
    labelled = (y != ignore) & (y != -1)
    _in_range(y, labelled, logits_BC.shape[-1])
    return Chosen(torch.where(labelled, y, 0).unsqueeze(-1), labelled.unsqueeze(-1).to(logits_BC.dtype))


def label_cross_entropy(
    student_BC: Tensor,
    y: Tensor,
    *,
    smoothing: float = 0.0,
    temperature: float = 1.0,
    ignore: int = -1,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy with true labels; a sample without a label (`ignore`, or an all-zero soft label) costs nothing.

    Args:
        student_BC: student logits [..., C].
        y: class numbers [...], or soft labels [..., C] as mixing makes them (they may be narrower than the logits).
        smoothing: share of the label spread evenly over all classes (Szegedy et al. 2016, section 7).
        temperature: the logits are divided by it before the softmax, with no factor to make up for it.
        ignore: the class number of samples without a label; -1 always is one.
        reduction: "none" gives one value per example, [...].

    Raises:
        ShapeError: labels and logits do not line up.
        DataError: a label is no class of the student's.

    Source: Szegedy et al. 2016, "Rethinking the inception architecture", section 7, for the smoothing;
    Papernot et al. 2016, "Distillation as a defense to adversarial perturbations", section IV, for the temperature.
    """
    student_BC = softened("label", student_BC, temperature)
    if y.is_floating_point():
        log_s = widened(student_BC).log_softmax(-1)
        if y.shape[:-1] != log_s.shape[:-1] or y.shape[-1] > log_s.shape[-1]:
            raise _labels_do_not_fit(student_BC, y)
        soft = F.pad(y, (0, log_s.shape[-1] - y.shape[-1])).to(log_s.dtype)
        has_label = soft.sum(-1, keepdim=True)
        soft = (1 - smoothing) * soft + smoothing * has_label / log_s.shape[-1]
        return reduce(-expected(soft.log(), log_s), reduction)
    if y.shape != student_BC.shape[:-1]:
        raise _labels_do_not_fit(student_BC, y)
    y = y if ignore == -1 else y.masked_fill(y == ignore, -1)
    flat, index = widened(student_BC), y
    if y.dim() != 1:
        flat, index = flat.reshape(-1, flat.shape[-1]), y.reshape(-1)
    try:
        kind = "none" if reduction == "none" else "sum"
        value = F.cross_entropy(flat, index, ignore_index=-1, label_smoothing=smoothing, reduction=kind)
    except IndexError:  # torch looks on a CPU, where it costs nothing
        _in_range(y, y != -1, student_BC.shape[-1])
        raise
    one_of("reduction", reduction, ("mean", "sum", "none"))
    if reduction == "none":
        return value.view(y.shape)
    return value / y.numel() if reduction == "mean" else value


def teacher_free(
    student_BC: Tensor, y: Tensor, *, correct: float = 0.9, temperature: float = 20.0, reduction: Reduction = "mean"
) -> Tensor:
    """T² KL(v ‖ s), both softened, where the virtual teacher v gives the label `correct` and shares the rest evenly.

    Args:
        student_BC: student logits [..., C].
        y: class numbers [...] with -1 for none, or soft labels [..., C]; a sample without a label costs nothing.
        correct: what the label gets, above 1/C and below 1.
        temperature: both sides are divided by it before the softmax.
        reduction: "none" gives one value per example, [...].

    Raises:
        ShapeError: labels and logits do not line up.
        DataError: a label is no class of the student's.

    Source: Yuan et al. 2020, "Revisiting knowledge distillation via label smoothing regularization", eqs. 9 and 10.
    """
    classes = student_BC.shape[-1]
    if y.is_floating_point():
        if y.shape[:-1] != student_BC.shape[:-1] or y.shape[-1] > classes:
            raise _labels_do_not_fit(student_BC, y, "teacher_free")
        share = F.pad(y, (0, classes - y.shape[-1])).to(widened(student_BC).dtype)
    else:
        index, known = chosen("teacher_free", student_BC, y)
        share = F.one_hot(index.squeeze(-1), classes) * widened(known)
    whole = share.sum(-1)
    share = share / torch.where(whole == 0, 1.0, whole).unsqueeze(-1)
    rest = (1 - correct) / max(classes - 1, 1)
    virtual = (rest + (correct - rest) * share).log()
    value = kl(widened(student_BC), virtual.to(widened(student_BC).dtype), temperature=temperature, reduction="none")
    return reduce(torch.where(whole == 0, 0.0, value), reduction)


def _in_range(y: Tensor, labelled: Tensor, classes: int) -> None:
    """Refuse class numbers that the student has not; on a CPU only, where a look costs nothing."""
    if y.device.type != "cpu" or torch.compiler.is_compiling() or not y.numel():
        return
    low, high = torch.where(labelled, y, 0).aminmax()
    if low >= 0 and high < classes:
        return
    seen = y[labelled]
    wrong = f"labels go from {int(seen.min())} to {int(seen.max())}, the student has {classes} classes"
    raise DataError(problem("label", wrong, "give the student an output a class, or mend the labels"))


def _labels_do_not_fit(logits: Tensor, y: Tensor, where: str = "label") -> ShapeError:
    wrong = f"logits are {tuple(logits.shape)}, labels are {tuple(y.shape)}"
    return ShapeError(problem(where, wrong, "give one class number a sample, or soft labels [..., classes]"))


@setting
class Label(OnOutput):
    """Match the true labels. The formula is `label_cross_entropy`.

    Matches: the labels; no teacher takes part.
    Formula: −log s of the label; Σ −y log s for soft labels; 0 where there is none. s = softmax(logits / T).
    Source: Szegedy et al. 2016, section 7, for the smoothing.
    Defaults: T = 1 and no smoothing: a teacher's soft answers beside it do that work.
    Helps: beside any other term, wherever labels are right.
    Cost: one softmax.
    Limits: samples without a label count in the mean, so it weighs by the share of labels in a batch.
    """

    kind: Literal["label"] = "label"
    smoothing: float = 0.0
    temperature: float = 1.0
    ignore: int = -1

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        check_weight(self.kind, self.weight)
        if not 0 <= self.smoothing < 1:
            raise ConfigError(problem("label.smoothing", f"{self.smoothing} is no share", "give 0 or more, below 1"))
        positive("label.temperature", self.temperature)

    def needs(self) -> Needs:
        """The student's output and the labels; no teacher."""
        return Needs(student=frozenset({self.on}), batch=frozenset({"y"}))

    def __call__(self, student: Named, teacher: Named, batch: Named) -> Tensor:  # noqa: ARG002
        """One value per example."""
        given = {"smoothing": self.smoothing, "temperature": self.temperature, "ignore": self.ignore}
        return label_cross_entropy(student[self.on], batch["y"], **given, reduction="none")  # type: ignore[arg-type]


@setting
class TeacherFree(OnOutput):
    """Match a virtual teacher that is made from the labels: a control for what a teacher's own answers add.

    Matches: a distribution that gives the label most and all other classes the same. The formula is `teacher_free`.
    Formula: T² KL(v ‖ s), v and s softened, v = `correct` at the label and (1 − correct)/(C − 1) elsewhere.
    Source: Yuan et al. 2020 (Tf-KD, the regularisation), eqs. 9 and 10.
    Defaults: 0.9 correct and T = 20, of the paper's range; beside `Label`, as any soft target.
    Helps: as a control beside label smoothing: what it gains, a teacher gets no credit for.
    Cost: one softmax.
    Limits: it knows nothing of which wrong answers are nearly right. Samples without a label cost nothing.
    """

    formula: ClassVar[Formula] = staticmethod(teacher_free)
    kind: Literal["teacher_free"] = "teacher_free"
    correct: Number = 0.9
    temperature: Number = 20.0

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        check_weight(self.kind, self.weight)
        if not callable(self.correct) and not 0 < self.correct < 1:
            raise ConfigError(problem("teacher_free.correct", f"it is {self.correct}", "give a number between 0 and 1"))
        if not callable(self.temperature):
            positive("teacher_free.temperature", self.temperature)

    def needs(self) -> Needs:
        """The student's output and the labels; no teacher."""
        return Needs(student=frozenset({self.on}), batch=frozenset({"y"}))

    def __call__(self, student: Named, teacher: Named, batch: Named) -> Tensor:  # noqa: ARG002
        """One value per example."""
        given = {"correct": self.correct, "temperature": self.temperature}
        return teacher_free(student[self.on], batch["y"], **given, reduction="none")  # type: ignore[arg-type]
