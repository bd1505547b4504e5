"""Losses on relations inside a sample: how its tokens attend to each other.

Shapes: B = batch, N = tokens, D = width. Student first, teacher second, one value per example out.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from limbeck.core.check import whole
from limbeck.core.errors import ShapeError, problem
from limbeck.core.setting import setting
from limbeck.core.types import Named, Needs
from limbeck.objectives.geometry import products
from limbeck.objectives.logspace import Reduction, expected, reduce, widened
from limbeck.objectives.term import Formula, OnLayers

__all__ = ["AttentionRelation", "attention_relation"]


def attention_relation(
    student: Tensor, teacher: Tensor, *, heads: int = 1, mask: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """KL(teacher ‖ student) of softmax(X·Xᵀ/√d), how a sample's tokens attend to each other, averaged over tokens.

    X are queries, keys or values; each side is cut into the same number of relation heads, with a width d of its own.

    Args:
        student: the student's tokens [B, N, D].
        teacher: the teacher's tokens [B, N, D'].
        heads: relation heads, by which both widths divide; the models' own numbers of heads have no say.
        mask: which tokens are real, [B, N]; the others are left out as rows and as columns.
        reduction: "none" gives one value per example, [B]; 0 for an example without a real token.

    Raises:
        ShapeError: samples or tokens differ, or a width does not divide by `heads`.

    Source: Wang et al. 2021, "MiniLMv2: multi-head self-attention relation distillation", section 3.
    """
    whole("attention_relation.heads", heads)
    _check_tokens(student, teacher, heads, mask)
    real = None if mask is None else mask.bool()
    log_s, log_t = (_relations(x, heads, real) for x in (student, teacher))
    value = expected(log_t, log_t - log_s).mean(1).sum(1)
    return reduce(value / (student.shape[1] if real is None else real.sum(1).clamp_min(1)), reduction)


def _relations(x_BND: Tensor, heads: int, real_BN: Tensor | None) -> Tensor:
    """Log-probabilities [B, heads, N, N].

    Tokens that are not real become zeros, so that their rows are even on both sides and add nothing. A sample without
    any real token keeps its columns, so that its rows are even too, and not NaN.
    """
    x_BND = widened(x_BND) if real_BN is None else widened(x_BND).masked_fill(~real_BN[..., None], 0.0)
    x = x_BND.reshape(*x_BND.shape[:2], heads, -1).transpose(1, 2)
    scores = products(x, x) / math.sqrt(x.shape[-1])
    if real_BN is not None:
        hidden = ~real_BN & real_BN.any(1, keepdim=True)
        scores = scores.masked_fill(hidden[:, None, None], -torch.inf)
    return scores.log_softmax(-1)


def _check_tokens(student: Tensor, teacher: Tensor, heads: int, mask: Tensor | None) -> None:
    sides = {"student": student, "teacher": teacher}
    seen = ", ".join(f"{name} is {tuple(x.shape)}" for name, x in sides.items())
    if any(x.dim() != 3 or x.shape[:2] != student.shape[:2] for x in sides.values()):
        raise ShapeError(problem("attention_relation", seen, "give both as [samples, tokens, width], the same tokens"))
    if any(x.shape[2] % heads for x in sides.values()):
        raise ShapeError(problem("attention_relation", f"{seen}, with {heads} heads", "give heads that divide both"))
    if mask is not None and mask.shape != student.shape[:2]:
        wrong = f"the mask is {tuple(mask.shape)}, {seen}"
        raise ShapeError(problem("attention_relation", wrong, "give a mask of [samples, tokens]"))


@setting
class AttentionRelation(OnLayers):
    """Match how the tokens of a sample attend to each other. The formula is `attention_relation`.

    Matches: relations of queries, keys or values (tap one each in a term of its own), blind to widths and head counts.
    Formula: mean over tokens and heads of KL(t ‖ s) of softmax(X Xᵀ / √d).
    Source: Wang et al. 2021 (MiniLMv2), section 3.
    Defaults: one relation head, no mask, weight 1; the paper takes 48 heads and more.
    Helps: small transformers of large ones; take a teacher's layer near, not always at, its end.
    Cost: N² relations a head and a side.
    Limits: both sides must have the same tokens.
    """

    formula: ClassVar[Formula] = staticmethod(attention_relation)
    kind: Literal["attention_relation"] = "attention_relation"
    head: str = "none"
    relation_heads: int = 1
    mask: str | None = None

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        OnLayers.__post_init__(self)
        whole("attention_relation.relation_heads", self.relation_heads)

    def needs(self) -> Needs:
        """One layer on each side, and the mask."""
        return OnLayers.needs(self)._replace(batch=frozenset({self.mask} if self.mask else ()))

    def __call__(self, student: Named, teacher: Named, batch: Named) -> Tensor:
        """One value per example."""
        left, right = student[self.projected], teacher[self.teacher]
        mask = None if self.mask is None else batch[self.mask]
        return attention_relation(left, right, heads=self.relation_heads, mask=mask, reduction="none")
