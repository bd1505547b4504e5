"""Losses on real-valued labels.

Shapes: B = batch, K = any further axes. Student first, teacher second, labels last; one value per example out.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from limbeck.core.check import not_negative
from limbeck.core.errors import ShapeError, problem
from limbeck.core.schedules import Number
from limbeck.core.setting import setting
from limbeck.core.types import Named, Needs
from limbeck.objectives.logspace import Reduction, reduce, widened
from limbeck.objectives.term import OnOutput, check_weights

__all__ = ["BoundedError", "SquaredError", "bounded_error", "squared_error"]


def squared_error(student_BK: Tensor, target_BK: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Squared error to real-valued labels, the mean over everything but the batch.

    Args:
        student_BK: the student's numbers, [B] or [B, ...].
        target_BK: the labels in the same shape ([B] and [B, 1] are one). NaN is a missing label, which costs nothing
            (it counts in the mean with 0).
        reduction: "none" gives one value per example, [B].

    Raises:
        ShapeError: the shapes differ.

    Source: Gauss 1809; for distillation Chen et al. 2017, section 3.3.
    """
    student, target = _lined_up("squared_error", student=student_BK, target=target_BK)
    error = torch.where(target.isnan(), 0.0, student - target)
    return reduce(_per_example(error.square()), reduction)


def bounded_error(
    student_BK: Tensor,
    teacher_BK: Tensor,
    target_BK: Tensor,
    *,
    margin: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """The student's squared error to the labels, where it is not better than the teacher's by more than `margin`.

    The teacher is a bound and not an example: what it says of a number is never imitated, and where the student has
    passed it there is nothing left to pay.

    Args:
        student_BK: the student's numbers, [B] or [B, ...].
        teacher_BK: the teacher's, in the same shape.
        target_BK: the labels in the same shape ([B] and [B, 1] are one). NaN is a missing label, which costs nothing.
        margin: how much better than the teacher's squared error the student has to be.
        reduction: "none" gives one value per example, [B].

    Raises:
        ShapeError: the shapes differ.
        ConfigError: the margin is negative.

    Source: Chen et al. 2017, "Learning efficient object detection models with knowledge distillation", eq. 5 (there for
    the four numbers of a box together, here for each number).
    """
    not_negative("bounded_error.margin", margin)
    student, teacher, target = _lined_up("bounded_error", student=student_BK, teacher=teacher_BK, target=target_BK)
    error, bound = student - target, (teacher.detach() - target).square()
    worse = error.detach().square() + margin > bound  # never, where the label is missing
    return reduce(_per_example(torch.where(worse, error, 0.0).square()), reduction)


def _lined_up(where: str, **named: Tensor) -> list[Tensor]:
    """The tensors in the student's type and one shape, where a last axis of one number does not count."""
    even = {name: x.squeeze(-1) if x.dim() == 2 and x.shape[-1] == 1 else x for name, x in named.items()}
    if len({x.shape for x in even.values()}) > 1 or even["student"].dim() < 1:
        seen = ", ".join(f"{name} is {tuple(x.shape)}" for name, x in named.items())
        raise ShapeError(problem(where, seen, "give as many numbers a sample on each side, [B] or [B, ...]"))
    dtype = widened(even["student"]).dtype
    return [x.to(dtype) for x in even.values()]


def _per_example(value: Tensor) -> Tensor:
    return value.sum(tuple(range(1, value.dim()))) / math.prod(value.shape[1:]) if value.dim() > 1 else value


@setting
class SquaredError(OnOutput):
    """Match real-valued labels. The formula is `squared_error`.

    Matches: the numbers in the batch's column `target`; no teacher takes part.
    Formula: mean of (z − y)² over the numbers of a sample; 0 where y is NaN.
    Source: Gauss 1809; Chen et al. 2017, section 3.3.
    Defaults: the column `y`, [B, K], which is what data calls its label.
    Helps: regression, beside `MSELogits` or `BoundedError`, as `Label` beside `KL`.
    Cost: next to nothing.
    Limits: labels of different sizes weigh by the square of their size: standardise them first.
    """

    kind: Literal["squared_error"] = "squared_error"
    target: str = "y"

    def needs(self) -> Needs:
        """The student's output and the labels; no teacher."""
        return Needs(student=frozenset({self.on}), batch=frozenset({self.target}))

    def __call__(self, student: Named, teacher: Named, batch: Named) -> Tensor:  # noqa: ARG002 - terms share a form
        """One value per example."""
        return squared_error(student[self.on], batch[self.target], reduction="none")


@setting
class BoundedError(OnOutput):
    """Match real-valued labels only where the student is no better than the teacher. The formula is `bounded_error`.

    Matches: the numbers in the batch's column `target`, as long as the teacher is nearer to them than the student.
    Formula: mean of (z_s − y)² where (z_s − y)² + margin > (z_t − y)², else 0; 0 where y is NaN.
    Source: Chen et al. 2017, eq. 5.
    Defaults: margin 0; the paper weighs it 0.5 beside the plain error.
    Helps: teachers of numbers, whose errors have no bound, so that imitating them can mislead.
    Cost: next to nothing.
    Limits: its value jumps to zero where the student passes the teacher; a weak teacher soon asks for nothing.
    """

    kind: Literal["bounded_error"] = "bounded_error"
    target: str = "y"
    margin: Number = 0.0

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        OnOutput.__post_init__(self)
        check_weights(self.kind, margin=self.margin)

    def needs(self) -> Needs:
        """The named output on both sides, and the labels."""
        return Needs(frozenset({self.on}), frozenset({self.on}), frozenset({self.target}))

    def __call__(self, student: Named, teacher: Named, batch: Named) -> Tensor:
        """One value per example."""
        assert isinstance(self.margin, int | float), "schedules are settled before a term is called"
        sides = student[self.on], teacher[self.on], batch[self.target]
        return bounded_error(*sides, margin=self.margin, reduction="none")
