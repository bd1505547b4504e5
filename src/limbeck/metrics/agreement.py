"""How alike student and teacher answer, whatever the labels say. Shapes: N = samples, C = classes."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.core.errors import DataError, ShapeError, problem
from limbeck.metrics.quality import check_logits
from limbeck.metrics.regression import average_ranks, row_correlation

__all__ = [
    "disagreements",
    "teacher_kl",
    "teacher_kl_per_sample",
    "teacher_rank",
    "teacher_rank_per_sample",
    "top1_agreement",
]


def top1_agreement(student_NC: Tensor, teacher_NC: Tensor) -> float:
    """Share of samples on which student and teacher name the same top class, from 0 to 1.

    Raises:
        DataError: there is no sample.
        ModelError: logits are no finite [N, C] table.
        ShapeError: student and teacher differ in shape.
    """
    _check("agreement", student_NC, teacher_NC)
    return int((student_NC.argmax(dim=1) == teacher_NC.argmax(dim=1)).sum()) / len(student_NC)


def teacher_kl(student_NC: Tensor, teacher_NC: Tensor) -> float:
    """Mean KL(teacher || student) of the softmaxed logits, in nats, in log space.

    Raises:
        DataError: there is no sample.
        ModelError: logits are no finite [N, C] table.
        ShapeError: student and teacher differ in shape.
    """
    return float(teacher_kl_per_sample(student_NC, teacher_NC).mean())


def teacher_kl_per_sample(student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
    """KL(teacher || student) in nats, float64, one value a sample; infinite where only the student rules a class out.

    Raises:
        DataError: there is no sample.
        ModelError: logits are no finite [N, C] table.
        ShapeError: student and teacher differ in shape.
    """
    _check("KL to the teacher", student_NC, teacher_NC)
    log_s, log_t = (x.double().log_softmax(dim=1) for x in (student_NC, teacher_NC))
    # A class the teacher rules out adds 0 by the limit p ln p -> 0; the product alone would be NaN.
    terms_NC = torch.where(log_t.isneginf(), 0.0, log_t.exp() * (log_t - log_s))
    # Rounding can leave -1e-17 at equality, and a divergence is never negative.
    return terms_NC.sum(dim=1).clamp_min(0)


def teacher_rank(student_NC: Tensor, teacher_NC: Tensor) -> float | None:
    """Mean rank correlation of student and teacher logits, from -1 to 1: 1 is the same order of all classes.

    None where no sample has one, because on one side all logits are equal.

    Raises:
        DataError: there is no sample.
        ModelError: logits are no finite [N, C] table.
        ShapeError: student and teacher differ in shape.
    """
    value_N = teacher_rank_per_sample(student_NC, teacher_NC)
    found = value_N[~value_N.isnan()]
    return float(found.mean()) if len(found) else None


def teacher_rank_per_sample(student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
    """Spearman's rank correlation over the classes, float64, one value a sample; equal logits share their mean rank.

    NaN for a sample on which all logits of one side are equal: they rank nothing. Masked classes (-inf) rank lowest.

    Raises:
        DataError: there is no sample.
        ModelError: logits are no finite [N, C] table.
        ShapeError: student and teacher differ in shape.
    """
    _check("rank correlation with the teacher", student_NC, teacher_NC)
    return row_correlation(average_ranks(student_NC), average_ranks(teacher_NC))


def disagreements(student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
    """Indices of the samples whose top class differs, the largest KL(teacher || student) first.

    Raises:
        DataError: there is no sample.
        ModelError: logits are no finite [N, C] table.
        ShapeError: student and teacher differ in shape.
    """
    apart = teacher_kl_per_sample(student_NC, teacher_NC)
    where = (student_NC.argmax(dim=1) != teacher_NC.argmax(dim=1)).nonzero().flatten()
    return where[apart[where].argsort(descending=True, stable=True)]


def _check(where: str, student_NC: Tensor, teacher_NC: Tensor) -> None:
    check_logits(f"{where}, student", student_NC)
    check_logits(f"{where}, teacher", teacher_NC)
    if student_NC.shape != teacher_NC.shape:
        raise ShapeError(
            problem(
                where,
                f"student is {list(student_NC.shape)}, teacher is {list(teacher_NC.shape)}",
                "give both the same samples and classes",
            )
        )
    if not len(student_NC):
        raise DataError(problem(where, "there is no sample", "give at least one sample"))
