"""Losses on inner layers: what the teacher sees on the way to its answer.

Shapes: B = batch, C = channels or width, N = tokens, HW = positions. Student first, teacher second.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from limbeck.core.check import positive, same_shape
from limbeck.core.errors import ConfigError, problem
from limbeck.core.schedules import Number
from limbeck.core.setting import setting
from limbeck.objectives.geometry import rows, unit
from limbeck.objectives.logspace import Reduction, gap, reduce, widened
from limbeck.objectives.term import Formula, OnLayers

__all__ = [
    "ActivationBoundary",
    "Cosine",
    "Factor",
    "Hint",
    "activation_boundary",
    "cosine",
    "factor",
    "hint",
]


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
    if reduction == "mean":  # examples are of one size: one pass over all values, in one order of memory
        return gap(student.contiguous(), teacher.contiguous(), "mean")
    value = gap(student, teacher).flatten(1)
    return reduce(value.sum(1) / value.shape[1], reduction)


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
    value = 1 - (unit(student, along) * unit(teacher, along)).sum(along)
    return reduce(value.flatten(1).mean(1) if value.dim() > 1 else value, reduction)


def activation_boundary(
    student: Tensor, teacher: Tensor, *, margin: float = 1.0, reduction: Reduction = "mean"
) -> Tensor:
    """Squared hinge on which side of zero each unit is: summed over units, 0 beyond the margin on the teacher's side.

    Args:
        student: the student's layer before its ReLU, already projected to the teacher's shape.
        teacher: the teacher's layer before its ReLU.
        margin: how far beyond zero the student has to be.
        reduction: "none" gives one value per example, [B].

    Raises:
        ShapeError: the shapes differ.
        ConfigError: the margin is not above zero.

    Source: Heo et al. 2019, "Knowledge transfer via distillation of activation boundaries formed by hidden neurons".
    """
    positive("activation_boundary.margin", margin)
    same_shape("activation_boundary", student=student, teacher=teacher)
    s = widened(student)
    return reduce(torch.where(teacher > 0, margin - s, margin + s).relu().square().flatten(1).sum(1), reduction)


def factor(student: Tensor, teacher: Tensor, *, p: float = 1.0, reduction: Reduction = "mean") -> Tensor:
    """Mean of |difference|^p between two factors, each flattened and normalised to length one: blind to their scale.

    Args:
        student: the student's factor, of the teacher's shape.
        teacher: the teacher's factor.
        p: at least 1.
        reduction: "none" gives one value per example, [B].

    Raises:
        ShapeError: the shapes differ.
        ConfigError: p is below 1.

    Source: Kim et al. 2018, "Paraphrasing complex network: network compression via factor transfer", section 3.2 (there
    summed; the released code takes the mean).
    """
    check_power("factor.p", p)
    same_shape("factor", student=student, teacher=teacher)
    apart = (unit(rows(student)) - unit(rows(teacher))).abs()
    return reduce((apart if p == 1 else apart.pow(p)).sum(1) / apart.shape[1], reduction)


def check_power(where: str, p: float) -> None:
    """Refuse powers below 1, whose gradient at zero is infinite."""
    positive(where, p)
    if p < 1:
        raise ConfigError(problem(where, f"{p!r} is below 1", "give 1 or more"))


@setting
class Hint(OnLayers):
    """Match an inner layer by squared error, through a projection where the shapes differ. The formula is `hint`.

    Matches: a layer's activations, number by number.
    Formula: mean of (h(f_s) − f_t)² over everything but the batch; h is the head.
    Source: Romero et al. 2015 (FitNets), eq. 3.
    Defaults: a linear head where shapes differ; weight 1 (the often-copied benchmark uses 100 on maps).
    Helps: few labels and deep students; as a first stage, or beside `KL`.
    Cost: one pass over the layer, and the head.
    Limits: it also copies what no later layer reads; a weight that is too large holds the student back.
    """

    formula: ClassVar[Formula] = staticmethod(hint)
    kind: Literal["hint"] = "hint"


@setting
class Cosine(OnLayers):
    """Match the direction of an inner layer, through a projection where the shapes differ. The formula is `cosine`.

    Matches: directions, blind to lengths.
    Formula: 1 − cos(h(f_s), f_t), along channels or width, mean over positions or tokens.
    Source: Sanh et al. 2019 (DistilBERT), section 3.
    Defaults: a linear head where shapes differ; weight 1.
    Helps: embeddings and transformer layers, whose lengths mean little.
    Cost: one pass over the layer, and the head.
    Limits: zero vectors have no direction: they cost 1 and teach nothing.
    """

    formula: ClassVar[Formula] = staticmethod(cosine)
    kind: Literal["cosine"] = "cosine"


@setting
class ActivationBoundary(OnLayers):
    """Match which units are on, through a projection where the shapes differ. The formula is `activation_boundary`.

    Matches: the signs of pre-activations, with a margin.
    Formula: Σ (s + m)₊² where t ≤ 0, Σ (m − s)₊² where t > 0, over everything but the batch; s = h(f_s).
    Source: Heo et al. 2019.
    Defaults: m = 1, a linear head where shapes differ; weight 0.003, the factor of the code (there halved a layer).
    Helps: a first stage before training on labels, and few samples.
    Cost: one pass over the layer, and the head.
    Limits: tap what comes before a ReLU (such as "relu@in"); a sum, so large layers weigh more.
    """

    formula: ClassVar[Formula] = staticmethod(activation_boundary)
    kind: Literal["activation_boundary"] = "activation_boundary"
    weight: Number = 0.003
    margin: float = 1.0

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        OnLayers.__post_init__(self)
        positive("activation_boundary.margin", self.margin)


@setting
class Factor(OnLayers):
    """Match a teacher's factor by a translated layer of the student. The formula is `factor`.

    Matches: a layer of the teacher as a whole, blind to its scale.
    Formula: mean of |h(f_s) / ‖h(f_s)‖ − f_t / ‖f_t‖|^p over everything but the batch.
    Source: Kim et al. 2018 (factor transfer), section 3.2.
    Defaults: p = 1, a linear head (the translator) where shapes differ; weight 500, the authors'.
    Helps: teachers much larger than the student, whose layer is worth compressing first.
    Cost: one pass over the layer, and the head.
    Limits: the paraphraser is not made here: train it on the teacher, and let the teacher give its output.
    """

    formula: ClassVar[Formula] = staticmethod(factor)
    kind: Literal["factor"] = "factor"
    weight: Number = 500.0
    p: float = 1.0

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        OnLayers.__post_init__(self)
        check_power("factor.p", self.p)
