"""Losses on outputs that take the true class and the others apart.

Shapes: B = any leading axes, C = classes. Student first, teacher second, labels third, logits in, one value per example
out. In the formulas t and s are softened probabilities, y the true class, and a hat means "renormalised without y".
"""

from __future__ import annotations

import warnings
from typing import ClassVar, Literal

import torch
from torch import Tensor

from limbeck.core.check import same_shape
from limbeck.core.schedules import Number
from limbeck.core.setting import setting
from limbeck.objectives.label import Chosen, chosen
from limbeck.objectives.logspace import (
    Heat,
    Reduction,
    Scaling,
    classes_of,
    expected,
    log_pair,
    reduce,
    scale,
    softened,
)
from limbeck.objectives.temperature import Temperature
from limbeck.objectives.term import Formula, Labelled, Softened, check_weights

RULED_OUT = -1e30
"""The logit of a class that is left out: far below any other, and finite, so that nothing has to be masked later."""

__all__ = ["DKD", "NKD", "dkd", "nkd"]


def dkd(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: Heat = 4.0,
    temperature_scaling: Scaling = "squared",
    ignore: int = -1,
    reduction: Reduction = "mean",
) -> Tensor:
    """Decoupled distillation: α·KL of (true class, rest) + β·KL among the other classes, times temperature squared.

    KL = TCKD + (1 − t_y)·NCKD couples the two: where the teacher is sure, what it knows of the other classes is all but
    muted. Here both have a weight of their own.

    Args:
        student_BC: student logits [..., C].
        teacher_BC: teacher logits [..., C].
        labels: class numbers [...], or soft labels [..., C]: the expectation over their two heaviest classes. A sample
            without a label has nothing to single out and costs nothing.
        alpha: weight of the true class against the rest (TCKD).
        beta: weight of the other classes among themselves (NCKD).
        temperature: both sides are divided by it before the softmax; a number, or one for each example.
        temperature_scaling: "squared" multiplies by T².
        ignore: the class number of samples without a label; -1 always is one.
        reduction: "none" gives one value per example, [...].

    Raises:
        ShapeError: shapes differ, or there are fewer than two classes.
        DataError: a label is no class of the student's.

    Source: Zhao et al. 2022, "Decoupled knowledge distillation", eq. 7 and section 4.1. The released code
    masks logits by subtracting 1000 and takes the log of a softmax; here the true class is ruled out in log-space.
    """
    same_shape("dkd", student=student_BC, teacher=teacher_BC)
    classes_of("dkd", least=2, student=student_BC)
    if student_BC.shape[-1] == 2:
        warnings.warn("dkd: with two classes nothing is left beside the true one, so beta has no say", stacklevel=2)
    s, t = (softened("dkd", x, temperature) for x in (student_BC, teacher_BC))
    label = chosen("dkd", s, labels, ignore=ignore)
    value = sum(
        label.share[..., k] * (alpha * _target_kl(s, t, index) + beta * _others_kl(s, t, index))
        for k, index in _each(label)
    )
    assert isinstance(value, Tensor)
    return reduce(scale(value, temperature, temperature_scaling), reduction)


def _each(label: Chosen) -> list[tuple[int, Tensor]]:
    """The classes that labels name, [..., 1] each, with their place."""
    return [(k, index.unsqueeze(-1)) for k, index in enumerate(label.classes.unbind(-1))]


def _without(logits_BC: Tensor, index_B1: Tensor) -> Tensor:
    """The logits with one class ruled out."""
    return logits_BC.scatter(-1, index_B1, RULED_OUT)


def _target_kl(s: Tensor, t: Tensor, index_B1: Tensor) -> Tensor:
    """KL between (true class, rest) of both sides, from logits."""
    sides = []
    for x in (t, s):
        split = torch.cat([x.gather(-1, index_B1), _without(x, index_B1).logsumexp(-1, keepdim=True)], -1)
        sides.append(split.log_softmax(-1))
    return expected(sides[0], sides[0] - sides[1])


def _others_kl(s: Tensor, t: Tensor, index_B1: Tensor) -> Tensor:
    """KL among the classes that are not the true one, each side renormalised, from logits."""
    log_s, log_t = (_without(x, index_B1).log_softmax(-1) for x in (s, t))
    return expected(log_t, log_t - log_s)


def nkd(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels: Tensor,
    *,
    gamma: float = 1.5,
    temperature: Heat = 1.0,
    temperature_scaling: Scaling = "squared",
    ignore: int = -1,
    reduction: Reduction = "mean",
) -> Tensor:
    """Normalised distillation: −t_y·log s_y (at T = 1), plus γ·T²·cross-entropy among the other classes, renormalised.

    Both parts are cross-entropies, as in the paper and its code, so the value at equality is not zero, and the first
    part goes on pulling the true class up: it stands in for the label, weighed by the teacher's belief in it.

    Args:
        student_BC: student logits [..., C].
        teacher_BC: teacher logits [..., C].
        labels: class numbers [...], or soft labels [..., C]: the expectation over their two heaviest classes (the
            released code takes the heaviest). A sample without a label costs nothing.
        gamma: weight of the other classes.
        temperature: of the other classes only; a number, or one for each example.
        temperature_scaling: "squared" multiplies the second part by T².
        ignore: the class number of samples without a label; -1 always is one.
        reduction: "none" gives one value per example, [...].

    Raises:
        ShapeError: shapes differ, or there are fewer than two classes.
        DataError: a label is no class of the student's.

    Source: Yang et al. 2023, "From knowledge distillation to self-knowledge distillation", eq. 6.
    """
    same_shape("nkd", student=student_BC, teacher=teacher_BC)
    classes_of("nkd", least=2, student=student_BC)
    log_s, log_t = log_pair("nkd", student_BC, teacher_BC)
    s, t = (softened("nkd", x, temperature) for x in (student_BC, teacher_BC))
    label = chosen("nkd", s, labels, ignore=ignore)
    parts = []
    for k, index in _each(label):
        hit = -(log_t.gather(-1, index).exp() * log_s.gather(-1, index)).squeeze(-1)
        rest_s, rest_t = (_without(x, index).log_softmax(-1) for x in (s, t))
        rest = scale(-expected(rest_t, rest_s), temperature, temperature_scaling)
        parts.append(label.share[..., k] * (hit + gamma * rest))
    return reduce(torch.stack(parts).sum(0), reduction)


@setting
class DKD(Labelled):
    """Match the true class and the other classes apart. The formula is `dkd`.

    Matches: how sure the teacher is of the true class, and, as much as one likes, what it says of the others.
    Formula: T² [α KL((t_y, 1 − t_y) ‖ (s_y, 1 − s_y)) + β KL(t̂ ‖ ŝ)], t̂ and ŝ renormalised without y.
    Source: Zhao et al. 2022, eq. 7.
    Defaults: α = 1, β = 8, T = 4, the paper's for CIFAR-100; its own β ranges from 0.5 to 10 over pairs.
    Helps: sure teachers, whose other classes `KL` mutes. Warm it up: `weight=Linear(start=0.0, end=1.0, until=0.1)`.
    Cost: two softmaxes a side; twice that with soft labels.
    Limits: with two classes β has no say; unlabelled samples cost nothing; β is sensitive.
    """

    formula: ClassVar[Formula] = staticmethod(dkd)
    kind: Literal["dkd"] = "dkd"
    temperature: Temperature = 4.0
    alpha: Number = 1.0
    beta: Number = 8.0
    ignore: int = -1

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        Softened.__post_init__(self)
        check_weights(self.kind, alpha=self.alpha, beta=self.beta)


@setting
class NKD(Labelled):
    """Match the true class by the teacher's belief and the others renormalised. The formula is `nkd`.

    Matches: the true class, weighed by the teacher's belief in it, and the shape of the other classes.
    Formula: −t_y log s_y − γ T² Σ t̂ log ŝ.
    Source: Yang et al. 2023, eq. 6.
    Defaults: γ = 1.5, T = 1, the released code's for ImageNet (1.5 and 1 there; other pairs differ).
    Helps: beside labels, as `DKD`, with one dial less.
    Cost: two softmaxes a side; twice that with soft labels.
    Limits: not zero at equality; with two classes only the first part is left.
    """

    formula: ClassVar[Formula] = staticmethod(nkd)
    kind: Literal["nkd"] = "nkd"
    temperature: Temperature = 1.0
    gamma: Number = 1.5
    ignore: int = -1

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        Softened.__post_init__(self)
        check_weights(self.kind, gamma=self.gamma)
