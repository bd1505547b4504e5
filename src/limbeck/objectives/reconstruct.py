"""Losses whose head is more than a projection: it predicts with a variance, fuses several layers, or fills gaps.

The heads themselves are in `makers.py`.

Shapes: B = batch, C = channels or width, H, W = positions. What the head made first, the teacher's layer second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.core.check import one_of, same_shape
from limbeck.core.errors import ConfigError, ShapeError, problem
from limbeck.core.schedules import Number
from limbeck.core.setting import setting
from limbeck.core.types import Named, Needs
from limbeck.objectives.heads import Head, width_of
from limbeck.objectives.logspace import Reduction, gap, reduce, widened
from limbeck.objectives.makers import FLOOR, Fusing, Generating, Regressing, scale_of
from limbeck.objectives.term import check_weight

__all__ = ["MaskedGenerative", "Review", "Variational", "masked_generative", "review", "variational"]


def variational(mean: Tensor, log_scale: Tensor, target: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Negative log-likelihood of the teacher's layer under a Gaussian about the student's guess, less a constant.

    The variance of a channel is softplus(log_scale) + 1e-5, the same for all samples. The value may be negative; for a
    given variance it is least where the guess is right.

    Args:
        mean: the guess, vectors [B, C], tokens [B, N, C] or maps [B, C, H, W].
        log_scale: one number for each channel, [C].
        target: the teacher's layer.
        reduction: "none" gives one value per example, [B].

    Raises:
        ShapeError: the shapes differ, or `log_scale` is not one number for each channel.

    Source: Ahn et al. 2019, "Variational information distillation for knowledge transfer", eq. 5.
    """
    same_shape("variational", mean=mean, target=target)
    if mean.dim() < 2 or log_scale.shape != (width_of(tuple(mean.shape)),):
        wrong = f"log_scale is {tuple(log_scale.shape)}, mean is {tuple(mean.shape)}"
        raise ShapeError(problem("variational", wrong, "give [B, ...] layers and one number for each channel"))
    variance = F.softplus(widened(log_scale)) + FLOOR
    if mean.dim() == 4:
        variance = variance[:, None, None]
    value = (gap(mean, target) / variance).flatten(1)
    return reduce((value.sum(1) / value.shape[1] + variance.log().mean()) / 2, reduction)


def review(students: Sequence[Tensor], teachers: Sequence[Tensor], *, reduction: Reduction = "mean") -> Tensor:
    """Hierarchical context loss, summed over pairs of maps: squared errors of the maps and of their pooled versions.

    A pair's maps are compared as they are (weight 1), then averaged to 4x4, 2x2 and 1x1 where that is smaller on both
    sides, each with half the weight of the one before; the sum is divided by the sum of the weights.

    Args:
        students: maps [B, C, H, W], already fused to the teacher's shapes.
        teachers: the teacher's maps.
        reduction: "none" gives one value per example, [B].

    Raises:
        ShapeError: the numbers of maps or their shapes differ, or something is no map.

    Source: Chen et al. 2021, "Distilling knowledge via knowledge review", section 3.3.
    """
    if len(students) != len(teachers) or not students:
        wrong = f"there are {len(students)} maps of the student and {len(teachers)} of the teacher"
        raise ShapeError(problem("review", wrong, "give as many on both sides, and at least one"))
    pairs = list(zip(students, teachers, strict=True))
    for student, teacher in pairs:
        same_shape("review", student=student, teacher=teacher)
        if student.dim() != 4:
            raise ShapeError(problem("review", f"student is {tuple(student.shape)}", "give maps [B, C, H, W]"))
    return reduce(torch.stack([_hierarchical(widened(s), widened(t)) for s, t in pairs]).sum(0), reduction)


def _hierarchical(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """The loss of one pair, [B]."""
    sides: tuple[Tensor, ...] = (student_BCHW, teacher_BCHW)
    value, weight, total = _mean_square(*sides), 1.0, 1.0
    for size in (4, 2, 1):
        if size < min(student_BCHW.shape[2:]):
            weight /= 2
            total += weight
            if all(length % size == 0 for length in sides[0].shape[2:]):  # averages of even averages are averages
                pooled = sides = tuple(F.adaptive_avg_pool2d(x, size) for x in sides)
            else:
                pooled = tuple(F.adaptive_avg_pool2d(x, size) for x in (student_BCHW, teacher_BCHW))
            value = value + weight * _mean_square(*pooled)
    return value / total


def _mean_square(student: Tensor, teacher: Tensor) -> Tensor:
    return gap(student, teacher).sum((1, 2, 3)) / math.prod(student.shape[1:])


def masked_generative(student: Tensor, teacher: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Squared error of what was generated from a masked layer, summed over everything but the batch.

    Args:
        student: what the generator made of the student's masked layer.
        teacher: the teacher's layer.
        reduction: "none" gives one value per example, [B].

    Raises:
        ShapeError: the shapes differ.

    Source: Yang et al. 2022, "Masked generative distillation", section 3.
    """
    same_shape("masked_generative", student=student, teacher=teacher)
    return reduce(gap(student, teacher).flatten(1).sum(1), reduction)


@setting
class OnePair:
    """For terms with a head of their own from the layer `student` to the layer `teacher`."""

    kind: str = ""
    student: str
    teacher: str
    weight: Number = 1.0

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        check_weight(self.kind, self.weight)

    def needs(self) -> Needs:
        """One layer on each side."""
        return Needs(frozenset({self.student}), frozenset({self.teacher}))

    @property
    def made(self) -> str:
        """The name under which the student's signal holds what the head made."""
        return f"{self.kind}:{self.student}>{self.teacher}"


@setting
class Variational(OnePair):
    """Match a layer as well as the student can predict it, channel by channel. The formula is `variational`.

    Matches: a layer's activations, each channel as exactly as it can be predicted.
    Formula: mean of ½ [(h(f_s) − f_t)² / σ² + log σ²]; the head h and the variance σ² of each channel are learned.
    Source: Ahn et al. 2019, eq. 5.
    Defaults: three 1x1 convolutions on maps, one linear map elsewhere; σ² starts at 5; weight 1, as in their code.
    Helps: teachers of which only some channels can be had from the student: the others fade by themselves.
    Cost: one pass over the layer, and the head.
    Limits: not zero at equality, and negative once it predicts well; the head may do the student's work.
    """

    kind: Literal["variational"] = "variational"

    def heads(self) -> tuple[Head, ...]:
        """A regressor with its variances."""
        return (Regressing(name=self.made, source=self.student, target=self.teacher),)

    def __call__(self, student: Named, teacher: Named, batch: Named) -> Tensor:  # noqa: ARG002 - terms share a form
        """One value per example."""
        mean, log_scale = student[self.made], student[scale_of(self.made)]
        return variational(mean, log_scale, teacher[self.teacher], reduction="none")


@setting
class Review:
    """Match maps by fusing the student's deep ones into its shallow ones. The formula is `review`.

    Matches: each layer's map, from this and all deeper layers of the student.
    Formula: Σ over layers of the mean squared error of maps and of their 4x4, 2x2 and 1x1 averages.
    Source: Chen et al. 2021 (ReviewKD), sections 3.2 (fusion) and 3.3 (loss).
    Defaults: the fusion is min(512, channels of the deepest layer) wide; weight 1, where their code has 0.6 to 5.
    Helps: convolutional students, ends of stages; warm it up, `weight=Linear(start=0.0, end=1.0, until=0.1)`.
    Cost: a 1x1 and a 3x3 convolution for each layer, wide ones: as much again as a small student.
    Limits: maps only; batch norm in the fusion needs more than one value for each channel of a training batch.
    """

    kind: Literal["review"] = "review"
    student: tuple[str, ...]
    teacher: tuple[str, ...]
    weight: Number = 1.0

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        check_weight(self.kind, self.weight)
        for side, names in (("student", self.student), ("teacher", self.teacher)):
            if not isinstance(names, tuple) or not names:
                mend = "give a tuple of layers, shallow to deep"
                raise ConfigError(problem(f"review.{side}", f"{names!r} names no layers", mend))
        if len(self.student) != len(self.teacher):
            wrong = f"{len(self.student)} layers of the student face {len(self.teacher)} of the teacher"
            raise ConfigError(problem("review", wrong, "name as many on both sides, shallow to deep"))

    def needs(self) -> Needs:
        """Its layers on each side."""
        return Needs(frozenset(self.student), frozenset(self.teacher))

    @property
    def made(self) -> tuple[str, ...]:
        """The names under which the student's signal holds the fused maps."""
        return tuple(f"review:{s}>{t}" for s, t in zip(self.student, self.teacher, strict=True))

    def heads(self) -> tuple[Head, ...]:
        """The fusion."""
        return (Fusing(names=self.made, sources=self.student, targets=self.teacher),)

    def __call__(self, student: Named, teacher: Named, batch: Named) -> Tensor:  # noqa: ARG002 - terms share a form
        """One value per example."""
        return review([student[k] for k in self.made], [teacher[k] for k in self.teacher], reduction="none")


@setting
class MaskedGenerative(OnePair):
    """Generate the teacher's map from the student's with parts of it masked. The formula is `masked_generative`.

    Matches: a map of the teacher, from what a random part of the student's map says of the whole.
    Formula: Σ (g(mask · h(f_s)) − f_t)² over everything but the batch; g is conv 3x3, ReLU, conv 3x3.
    Source: Yang et al. 2022 (MGD), section 3.
    Defaults: 65 % of positions masked and weight 2e-5, theirs for detection; for classification they mask 15 % of the
        last layer's channels, at 7e-5. h is the identity, or a 1x1 convolution where shapes differ.
    Helps: dense tasks; the student need not copy, only carry enough to tell.
    Cost: two 3x3 convolutions of the teacher's width.
    Limits: maps only; a sum, so large maps weigh more; masked in training only, where the seed decides what is masked.
    """

    kind: Literal["masked_generative"] = "masked_generative"
    weight: Number = 2e-5
    ratio: float = 0.65
    mask: Literal["positions", "channels"] = "positions"

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        OnePair.__post_init__(self)
        one_of("masked_generative.mask", self.mask, ("positions", "channels"))
        if not 0 <= self.ratio < 1:
            raise ConfigError(problem("masked_generative.ratio", f"{self.ratio!r} leaves nothing", "give 0 to below 1"))

    def heads(self) -> tuple[Head, ...]:
        """The masked generator."""
        names = {"name": self.made, "source": self.student, "target": self.teacher}
        return (Generating(**names, ratio=self.ratio, mask=self.mask),)

    def __call__(self, student: Named, teacher: Named, batch: Named) -> Tensor:  # noqa: ARG002 - terms share a form
        """One value per example."""
        return masked_generative(student[self.made], teacher[self.teacher], reduction="none")
