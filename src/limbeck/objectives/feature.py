"""Losses on inner layers: what the teacher sees on the way to its answer.

Shapes: B = batch, C = channels or width, N = tokens, HW = positions. Student first, teacher second.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from limbeck.core.check import one_of, same_shape
from limbeck.core.schedules import Number
from limbeck.core.setting import setting
from limbeck.core.types import Named
from limbeck.objectives.divergence import Reduction, reduce, widened
from limbeck.objectives.heads import HEAD_FORMS
from limbeck.objectives.term import OnLayers, check_weight

__all__ = ["Cosine", "Hint", "cosine", "hint"]


def hint(student: Tensor, teacher: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Mean squared error of two inner representations of one shape [B, ...].

    Args:
        student: the student's layer, already projected to the teacher's shape.
        teacher: the teacher's layer.
        reduction: "none" gives one value per example, [B].

    Raises:
        ShapeError: the shapes differ.

    Source: Romero et al. 2015, "FitNets", eq. 3 (there summed and halved; the mean keeps the scale level over widths).
    """
    same_shape("hint", student=student, teacher=teacher)
    return reduce((widened(student) - widened(teacher)).square().flatten(1).mean(1), reduction)


def cosine(student: Tensor, teacher: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """One minus the cosine of two inner representations: blind to their length.

    Vectors [B, C] and tokens [B, N, C] are compared along the last axis, maps [B, C, H, W] along channels; the value
    of an example is the mean over its tokens or positions.

    Args:
        student: the student's layer, already projected to the teacher's shape.
        teacher: the teacher's layer.
        reduction: "none" gives one value per example, [B].

    Raises:
        ShapeError: the shapes differ.

    Source: the direction term of Sanh et al. 2019, "DistilBERT", section 3.
    """
    same_shape("cosine", student=student, teacher=teacher)
    along = 1 if student.dim() == 4 else -1
    value = 1 - F.cosine_similarity(widened(student), widened(teacher), dim=along)
    return reduce(value.flatten(1).mean(1) if value.dim() > 1 else value, reduction)


@setting
class Hint(OnLayers):
    """Match an inner layer by squared error, through a projection where the shapes differ. The formula is `hint`."""

    student: str
    teacher: str
    kind: Literal["hint"] = "hint"
    weight: Number = 1.0
    head: str = "auto"

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        check_weight(self.kind, self.weight)
        one_of(f"{self.kind}.head", self.head, HEAD_FORMS)

    def __call__(self, student: Named, teacher: Named, batch: Named) -> Tensor:  # noqa: ARG002
        """One value per example."""
        return hint(student[self.projected], teacher[self.teacher], reduction="none")


@setting
class Cosine(OnLayers):
    """Match the direction of an inner layer, through a projection where the shapes differ. The formula is `cosine`."""

    student: str
    teacher: str
    kind: Literal["cosine"] = "cosine"
    weight: Number = 1.0
    head: str = "auto"

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        check_weight(self.kind, self.weight)
        one_of(f"{self.kind}.head", self.head, HEAD_FORMS)

    def __call__(self, student: Named, teacher: Named, batch: Named) -> Tensor:  # noqa: ARG002
        """One value per example."""
        return cosine(student[self.projected], teacher[self.teacher], reduction="none")
