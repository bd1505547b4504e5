"""Losses on relations: how the samples of a batch stand to each other, so that widths may differ.

Shapes: B = batch, D = width (maps and tokens are flattened to rows). Student first, teacher second.
A value [B] holds what each sample adds: its mean is the loss of the batch.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.core.check import not_negative, one_of, same_shape, whole
from limbeck.core.schedules import Number
from limbeck.core.setting import setting
from limbeck.objectives.geometry import distances, products, rows, unit
from limbeck.objectives.logspace import Reduction, gap, reduce
from limbeck.objectives.term import BatchWide, Formula, OnLayers, check_weights, same_batch

__all__ = [
    "CKA",
    "PKT",
    "RKD",
    "Correlation",
    "Similarity",
    "cka",
    "correlation",
    "pkt",
    "rkd",
    "rkd_angle",
    "rkd_distance",
    "similarity",
]


def similarity(student: Tensor, teacher: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Similarity-preserving: squared difference of the Gram matrices F·Fᵀ with rows of length one, over B².

    Args:
        student: the student's layer [B, ...].
        teacher: the teacher's layer [B, ...], of any width.
        reduction: "none" gives one value per example, [B]: that of its row.

    Raises:
        ShapeError: the numbers of samples differ.

    Source: Tung & Mori 2019, "Similarity-preserving knowledge distillation", section 3.
    """
    same_batch("similarity", student=student, teacher=teacher)
    s, t = (unit(products(x, x)) for x in (rows(student), rows(teacher)))
    return reduce(gap(s, t).sum(1) / len(s), reduction)


def rkd_distance(student: Tensor, teacher: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Smooth-L1 of the distances between samples, each side in units of its own mean distance.

    Args:
        student: the student's layer [B, ...].
        teacher: the teacher's layer [B, ...], of any width.
        reduction: "none" gives one value per example, [B]: the mean over its distances (that to itself included).

    Raises:
        ShapeError: the numbers of samples differ.

    Source: Park et al. 2019, "Relational knowledge distillation", section 3.2.1.
    """
    same_batch("rkd_distance", student=student, teacher=teacher)
    return reduce(_by_distance(_relative(student), _relative(teacher)), reduction)


def rkd_angle(student: Tensor, teacher: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Smooth-L1 of the cosines of the angles that all triples of samples span.

    Cosines come from the distances (law of cosines), so no [B, B, D] differences are held. A side that is nothing
    beside the mean distance has no direction: its cosines are 0.

    Args:
        student: the student's layer [B, ...].
        teacher: the teacher's layer [B, ...], of any width.
        reduction: "none" gives one value per example, [B]: the mean over the B² angles with their vertex at it.

    Raises:
        ShapeError: the numbers of samples differ.

    Source: Park et al. 2019, "Relational knowledge distillation", section 3.2.2.
    """
    same_batch("rkd_angle", student=student, teacher=teacher)
    return reduce(_by_angle(_relative(student), _relative(teacher)), reduction)


def rkd(
    student: Tensor, teacher: Tensor, *, distance: float = 25.0, angle: float = 50.0, reduction: Reduction = "mean"
) -> Tensor:
    """`distance` times `rkd_distance` plus `angle` times `rkd_angle`, from one matrix of distances a side.

    Args:
        student: the student's layer [B, ...].
        teacher: the teacher's layer [B, ...], of any width.
        distance: weight of the distances.
        angle: weight of the angles; 0 spares the B³ cosines.
        reduction: "none" gives one value per example, [B].

    Raises:
        ShapeError: the numbers of samples differ.

    Source: Park et al. 2019, "Relational knowledge distillation", section 3.2.
    """
    same_batch("rkd", student=student, teacher=teacher)
    s, t = _relative(student), _relative(teacher)
    value = distance * _by_distance(s, t)
    return reduce(value + angle * _by_angle(s, t) if angle else value, reduction)


def _relative(x: Tensor) -> Tensor:
    """Distances between samples over the mean of those above 0."""
    apart = distances(rows(x))
    mean = apart.sum() / (apart > 0).sum().clamp_min(1)
    return apart / torch.where(mean == 0, 1.0, mean)


def _by_distance(s_BB: Tensor, t_BB: Tensor) -> Tensor:
    return F.smooth_l1_loss(s_BB, t_BB, reduction="none").mean(1)


def _by_angle(s_BB: Tensor, t_BB: Tensor) -> Tensor:
    return F.smooth_l1_loss(_cosines(s_BB), _cosines(t_BB), reduction="none").mean((1, 2))


def _cosines(d_BB: Tensor) -> Tensor:
    """The cosine at j between i and k, [j, i, k], from relative distances."""
    none = d_BB <= torch.finfo(d_BB.dtype).eps
    inverse = torch.where(none, 0.0, math.sqrt(0.5) / torch.where(none, 1.0, d_BB))
    square = d_BB.square()
    twice = square[:, :, None] + square[:, None, :] - square
    return (twice * (inverse[:, :, None] * inverse[:, None, :])).clamp(-1, 1)


def pkt(student: Tensor, teacher: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Probabilistic transfer: KL between rows of cosine similarities, (1 + cos)/2, that are made to sum to one.

    As released: a sample counts among its own neighbours, 1e-7 is added inside the logarithm (so the value may fall
    below 0 by that much), and the mean is over all B² pairs.

    Args:
        student: the student's layer [B, ...].
        teacher: the teacher's layer [B, ...], of any width.
        reduction: "none" gives one value per example, [B]: the mean over its row.

    Raises:
        ShapeError: the numbers of samples differ.

    Source: Passalis & Tefas 2018, "Learning deep representations with probabilistic knowledge transfer", section 3.
    """
    same_batch("pkt", student=student, teacher=teacher)
    s, t = _neighbours(student), _neighbours(teacher)
    return reduce((t * ((t + 1e-7) / (s + 1e-7)).log()).mean(1), reduction)


def _neighbours(x: Tensor) -> Tensor:
    """How likely each sample (column) is as a neighbour of each other (row)."""
    x_BD = unit(rows(x))
    near = ((1 + products(x_BD, x_BD)) / 2).clamp_min(0)
    return near / near.sum(1, keepdim=True)


def correlation(
    student: Tensor,
    teacher: Tensor,
    *,
    form: Literal["code", "paper"] = "code",
    gamma: float = 0.4,
    order: int = 2,
    reduction: Reduction = "mean",
) -> Tensor:
    """Correlation congruence, in either of two forms that have little in common.

    "code" is what the authors released: the inner product of |f_s − f_t| of each sample with that of the next one in
    the batch, averaged over these B − 1 pairs. It depends on the order of the batch and needs equal widths.
    "paper" compares Σ_p e^(−2γ) (2γ)^p / p! · cos^p, a Gaussian kernel to the order `order`, by squared error.

    Args:
        student: the student's layer [B, ...].
        teacher: the teacher's layer [B, ...]; of any width with "paper".
        form: "code" or "paper".
        gamma: the sharpness of the kernel ("paper").
        order: the last power of its series ("paper").
        reduction: "none" gives one value per example, [B]: half of each of its pairs ("code"), or its row ("paper").

    Raises:
        ShapeError: the numbers of samples differ, or the widths with "code".

    Source: Peng et al. 2019, "Correlation congruence for knowledge distillation", section 3.
    """
    one_of("correlation.form", form, ("code", "paper"))
    same_batch("correlation", student=student, teacher=teacher)
    s, t = rows(student), rows(teacher)
    if form == "paper":
        return reduce((_kernel(s, gamma, order) - _kernel(t, gamma, order)).square().mean(1), reduction)
    same_shape("correlation", student=s, teacher=t)
    apart, number = (s - t).abs(), max(len(s) - 1, 1)
    both = apart[:-1] * apart[1:]
    if reduction == "mean":
        return both.sum() / number
    pairs = F.pad(both.sum(1) * (len(s) / (2 * number)), (1, 1))
    return reduce(pairs[1:] + pairs[:-1], reduction)


def _kernel(x_BD: Tensor, gamma: float, order: int) -> Tensor:
    """The series by Horner's rule, without the constant, which both sides share."""
    x_BD = unit(x_BD)
    cos = products(x_BD, x_BD)
    value = torch.zeros_like(cos)
    for p in range(order, 0, -1):
        value = cos * (value + math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p))
    return value


def cka(student: Tensor, teacher: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """One minus linear centred kernel alignment: blind to turns, lengths and shifts of either side.

    Where only one side tells samples apart it is 1; where neither does, as for a single sample, 0.

    Args:
        student: the student's layer [B, ...].
        teacher: the teacher's layer [B, ...], of any width.
        reduction: "none" gives one value per example, [B]; it belongs to the batch and is shared by all.

    Raises:
        ShapeError: the numbers of samples differ.

    Source: Kornblith et al. 2019, "Similarity of neural network representations revisited", section 3 (biased HSIC).
    """
    same_batch("cka", student=student, teacher=teacher)
    s, t = _centred(student), _centred(teacher)
    (B, wide), narrow = s.shape, t.shape[1]
    if B * (wide + narrow) <= wide * wide + wide * narrow + narrow * narrow:
        gram_s, gram_t = (_gram(x) for x in (s, t))
        silent = (gram_s.diagonal().sum() == 0) & (gram_t.diagonal().sum() == 0)
        aligned = (gram_s * gram_t).sum()
    else:
        s, t = unit(s, (0, 1)), unit(t, (0, 1))
        silent = (s == 0).all() & (t == 0).all()
        own = [torch.linalg.vector_norm(products(x.mT, x.mT)) for x in (s, t)]
        lengths = own[0] * own[1]
        aligned = products(s.mT, t.mT).square().sum() / torch.where(lengths == 0, 1.0, lengths)
    return reduce(torch.where(silent, 0.0, 1 - aligned).expand(B), reduction)


def _centred(x: Tensor) -> Tensor:
    """Rows with mean 0; the first row goes before the mean, so that constants become exact 0."""
    x_BD = rows(x)
    x_BD = x_BD - x_BD[:1].detach()
    return x_BD - x_BD.mean(0)


def _gram(x_BD: Tensor) -> Tensor:
    """Inner products of samples, overall of length one; over their trace first, so that no square of them vanishes."""
    gram = products(x_BD, x_BD)
    trace = gram.detach().diagonal().sum()
    return unit(gram / torch.where(trace == 0, 1.0, trace), (0, 1))


@setting
class Similarity(BatchWide, OnLayers):
    """Match which samples are alike. The formula is `similarity` (SP).

    Matches: each sample's pattern of similarities to the batch, blind to its overall size.
    Formula: ‖G_s − G_t‖² / B², G = F Fᵀ with rows of length one.
    Source: Tung & Mori 2019, section 3.
    Defaults: weight 3000, the often-copied benchmark's; no head, widths may differ.
    Helps: students of another family or width, beside labels or `KL`.
    Cost: one product of the batch with itself a side.
    Limits: relations are those of one micro-batch, and the value falls as 1/B: the weight goes with the batch size.
    """

    formula: ClassVar[Formula] = staticmethod(similarity)
    kind: Literal["similarity"] = "similarity"
    weight: Number = 3000.0
    head: str = "none"


@setting
class RKD(BatchWide, OnLayers):
    """Match the distances between samples and the angles between triples. The formula is `rkd`.

    Matches: the shape of the cloud of samples, blind to turns, shifts and scale.
    Formula: `distance` · smooth-L1 of distances over their mean + `angle` · smooth-L1 of cosines.
    Source: Park et al. 2019, section 3.2.
    Defaults: distance 25 and angle 50, the authors'; weight 1; no head, widths may differ.
    Helps: embeddings and retrieval, where distances are what is used.
    Cost: B² distances and B³ cosines a side; `angle=0` spares these.
    Limits: angles cost 4·B³ bytes a copy (B = 256: 67 MB); those of near duplicates are uncertain in float32.
    """

    formula: ClassVar[Formula] = staticmethod(rkd)
    kind: Literal["rkd"] = "rkd"
    head: str = "none"
    distance: Number = 25.0
    angle: Number = 50.0

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        OnLayers.__post_init__(self)
        check_weights(self.kind, distance=self.distance, angle=self.angle)


@setting
class PKT(BatchWide, OnLayers):
    """Match each sample's probabilities of having the others for neighbours. The formula is `pkt`.

    Matches: cosine similarities in a batch, as distributions.
    Formula: mean over pairs of t log(t / s), rows of (1 + cos)/2 that sum to one.
    Source: Passalis & Tefas 2018, section 3.
    Defaults: weight 30000, the often-copied benchmark's; no head, widths may differ.
    Helps: the layer before the classifier, whatever the two widths.
    Cost: one product of the batch with itself a side.
    Limits: relations are those of one micro-batch, and the value falls as 1/B: the weight goes with the batch size.
    """

    formula: ClassVar[Formula] = staticmethod(pkt)
    kind: Literal["pkt"] = "pkt"
    weight: Number = 30000.0
    head: str = "none"


@setting
class Correlation(BatchWide, OnLayers):
    """Match how samples correlate. The formula is `correlation` (CC).

    Matches: "code": layers, number by number, in neighbouring samples at once; "paper": kernels between samples.
    Formula: mean of Σ |Δ_i| |Δ_i+1|, Δ = f_s − f_t; or of (k_s − k_t)², k a Gaussian kernel's series in the cosine.
    Source: Peng et al. 2019, section 3; the two forms are the released code's and the paper's.
    Defaults: form "code", weight 0.02 and a linear head where shapes differ, as released; γ = 0.4, order 2.
    Helps: beside `KL`; "paper" where widths differ (`head="none"`).
    Cost: one pass ("code"), or one product of the batch with itself a side ("paper").
    Limits: "code" depends on the order of the batch and is 0 for a single sample, or when every other one matches.
    """

    formula: ClassVar[Formula] = staticmethod(correlation)
    kind: Literal["correlation"] = "correlation"
    weight: Number = 0.02
    form: Literal["code", "paper"] = "code"
    gamma: Number = 0.4
    order: int = 2

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        OnLayers.__post_init__(self)
        one_of("correlation.form", self.form, ("code", "paper"))
        whole("correlation.order", self.order)
        if not callable(self.gamma):
            not_negative("correlation.gamma", self.gamma)


@setting
class CKA(BatchWide, OnLayers):
    """Match two layers up to a turn, a shift and a scale. The formula is `cka`.

    Matches: the similarities of a batch as a whole, most of all along its widest directions.
    Formula: 1 − ‖Xᵀ Y‖² / (‖Xᵀ X‖ ‖Yᵀ Y‖), centred.
    Source: Kornblith et al. 2019, section 3.
    Defaults: weight 1; no head, widths may differ.
    Helps: students of another family; it is bounded by 1 and needs no projection.
    Cost: three products of the layers, or two of the batch with itself, whichever is cheaper.
    Limits: biased towards 0 when the batch is small beside the widths; B of at least 64 is wise.
    """

    formula: ClassVar[Formula] = staticmethod(cka)
    kind: Literal["cka"] = "cka"
    head: str = "none"
