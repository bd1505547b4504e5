"""Losses on sequences: which tokens count, other vocabularies, and teachers that are known by their top answers.

Shapes: B = any leading axes, N = tokens, V and U = vocabularies of the student and of the teacher, K = answers kept.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from limbeck.core.check import one_of, whole
from limbeck.core.errors import ConfigError, DataError, ShapeError, problem
from limbeck.core.setting import setting
from limbeck.core.types import Named, Needs
from limbeck.objectives.logspace import (
    Heat,
    Reduction,
    Scaling,
    complement,
    expected,
    reduce,
    scale,
    softened,
    widened,
)
from limbeck.objectives.temperature import ByEntropy, Temperature, heat
from limbeck.objectives.term import Formula, Softened

__all__ = ["ULD", "Direction", "Tail", "TopKKL", "token_mask", "topk_kl", "uld"]

Tail = Literal["bucket", "renormalize", "teacher", "raw"]
Direction = Literal["forward", "reverse"]
_TAILS = ("bucket", "renormalize", "teacher", "raw")


def shifted(labels_BN: Tensor, *, ignore: int = -100, shift: int = 1) -> Tensor:
    """The label that each position answers to: the one `shift` further on, and `ignore` where there is none.

    Args:
        labels_BN: token numbers [..., N], `ignore` where nothing is asked.
        ignore: the number of "no label".
        shift: 1 for models that predict the next token, 0 for those that predict the token itself.

    Raises:
        ConfigError: the shift is negative.
    """
    whole("shift", shift, least=0)
    return F.pad(labels_BN[..., shift:], (0, min(shift, labels_BN.shape[-1])), value=ignore)


def token_mask(labels_BN: Tensor, *, ignore: int = -100, shift: int = 1) -> Tensor:
    """Which positions count, as booleans [..., N]: those whose label is there. Arguments are those of `shifted`."""
    return shifted(labels_BN, ignore=ignore, shift=shift) != ignore


def uld(student_BV: Tensor, teacher_BU: Tensor, *, temperature: Heat = 1.0, reduction: Reduction = "mean") -> Tensor:
    """Universal logit distillation: Σ |s − t| over probabilities in falling order, whatever words they belong to.

    Args:
        student_BV: student logits [..., V].
        teacher_BU: teacher logits [..., U] of the same tokens; the smaller vocabulary is filled up with probability 0.
        temperature: both sides are divided by it before the softmax.
        reduction: "none" gives one value per token, [...]; from 0 to 2.

    Raises:
        ShapeError: the tokens do not line up.

    Source: Boizard et al. 2024, "Towards cross-tokenizer distillation", section 3.2.
    """
    if student_BV.shape[:-1] != teacher_BU.shape[:-1]:
        wrong = f"student is {tuple(student_BV.shape)}, teacher is {tuple(teacher_BU.shape)}"
        raise ShapeError(problem("uld", wrong, "give both the same tokens; only the vocabularies may differ"))
    s, t = (
        softened("uld", x, temperature).softmax(-1).sort(-1, descending=True).values for x in (student_BV, teacher_BU)
    )
    size = max(s.shape[-1], t.shape[-1])
    s, t = (F.pad(x, (0, size - x.shape[-1])) for x in (s, t))
    return reduce((s - t).abs().sum(-1), reduction)


def topk_kl(
    student_BV: Tensor,
    ids_BK: Tensor,
    log_probs_BK: Tensor,
    *,
    tail: Tail = "bucket",
    direction: Direction = "forward",
    temperature: Heat = 1.0,
    temperature_scaling: Scaling = "squared",
    reduction: Reduction = "mean",
) -> Tensor:
    """KL to a teacher that is known by its k likeliest answers.

    What is not known is the tail, and what to do about it changes the loss:

    - "bucket" takes all other answers as one. It is a divergence, never above the full KL, and equal to it for k = V.
    - "renormalize" compares the k answers among themselves and is blind to how much both sides give the others.
    - "teacher" gives the teacher's whole mass to the k answers and compares with the student's full distribution; it
      teaches that the others are impossible and is never zero while the student thinks otherwise.
    - "raw" sums over the k answers and leaves it there; it is no divergence and can be negative.

    A temperature divides the teacher's log-probabilities, with the tail as one answer where it has a part, and
    renormalises. That is exact only for k = V: how the mass of the tail spreads is not known.

    Args:
        student_BV: student logits [..., V].
        ids_BK: the answers, int64 [..., K], in any order.
        log_probs_BK: the teacher's log-probabilities of them at T = 1; −inf marks places that are not filled.
        tail: what to make of the answers beyond the k.
        direction: "forward" is KL(t ‖ s), "reverse" KL(s ‖ t), where a tail too small for the type of `log_probs_BK`
            counts as the smallest that it can tell (eps).
        temperature: both sides are divided by it before the softmax.
        temperature_scaling: "squared" multiplies by T².
        reduction: "none" gives one value per token, [...].

    Raises:
        ShapeError: tokens or answers do not line up.
        DataError: an answer is no class of the student's.
        ConfigError: a setting is impossible.

    Source: Hinton et al. 2015, section 2; the coarser KL is a data-processing bound (Cover & Thomas, section 2.8).
    """
    _check_tail("topk_kl", tail, direction)
    _check_answers(student_BV, ids_BK, log_probs_BK)
    z, given = softened("topk_kl", student_BV, temperature), widened(log_probs_BK)
    empty = given == -torch.inf
    ids = torch.where(empty, ids_BK.gather(-1, given.argmax(-1, keepdim=True)), ids_BK)  # doubles rule out once
    picked, rest_s = _Split.apply(z, ids)  # type: ignore[no-untyped-call]
    picked = picked.masked_fill(empty, -torch.inf)
    if tail in ("renormalize", "teacher"):
        log_t = softened("topk_kl", given, temperature).log_softmax(-1)
    else:
        rest_t = complement(given.logsumexp(-1, keepdim=True))
        if direction == "reverse":
            rest_t = rest_t.clamp_min(math.log(torch.finfo(log_probs_BK.dtype).eps))
        whole_V = (~empty).sum(-1, keepdim=True) == z.shape[-1]
        rest_t = rest_t.masked_fill(whole_V, -torch.inf)  # k = V: nothing is left, and rounding is no answer
        log_t = softened("topk_kl", torch.cat([given, rest_t], -1), temperature).log_softmax(-1)
    log_s = (picked if tail == "renormalize" else torch.cat([picked, rest_s], -1)).log_softmax(-1)
    if tail in ("teacher", "raw"):
        log_s, log_t = log_s[..., : ids.shape[-1]], log_t[..., : ids.shape[-1]]
    value = expected(log_t, log_t - log_s) if direction == "forward" else expected(log_s, log_s - log_t)
    return reduce(scale(value, temperature, temperature_scaling), reduction)


_CACHED = 1 << 18
"""Values that are worked on at a time: a megabyte, which stays in cache from one pass to the next."""


class _Split(torch.autograd.Function):
    """Logits of the answers, and the logsumexp of all others; one pass over the logits on the way back."""

    @staticmethod
    def forward(ctx: Any, z_BV: Tensor, ids_BK: Tensor) -> tuple[Tensor, Tensor]:
        lowest = torch.finfo(z_BV.dtype).min  # finite, so that the softmax is defined where there are no others
        share, rest = torch.empty_like(z_BV), torch.empty_like(z_BV[..., :1])
        flat = [x.reshape(-1, x.shape[-1]) for x in (z_BV, ids_BK)] + [x.view(-1, x.shape[-1]) for x in (share, rest)]
        rows = max(1, len(flat[0]) if torch.compiler.is_compiling() else _CACHED // z_BV.shape[-1])
        for z, ids, share_bV, rest_b1 in zip(*(torch.split(x, rows) for x in flat), strict=True):
            others = z.scatter(-1, ids, lowest)
            torch.softmax(others, -1, out=share_bV)
            # The largest value over its share; amax, because max with its place is many times slower.
            torch.sub(others.amax(-1, keepdim=True), share_bV.amax(-1, keepdim=True).log_(), out=rest_b1)
        none = rest <= lowest / 2
        ctx.save_for_backward(share, none, ids_BK)
        return z_BV.gather(-1, ids_BK), rest.masked_fill_(none, -torch.inf)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BK: Tensor, grad_B1: Tensor) -> tuple[Tensor, None]:
        share, none, ids_BK = ctx.saved_tensors
        back = share * grad_B1.masked_fill(none, 0.0)
        return back.scatter_add_(-1, ids_BK, grad_BK), None


def _check_tail(where: str, tail: str, direction: str) -> None:
    one_of(f"{where}.tail", tail, _TAILS)
    one_of(f"{where}.direction", direction, ("forward", "reverse"))
    if direction == "reverse" and tail != "bucket":
        wrong = f"with tail={tail!r} it is blind beyond the k answers, so the student could move its mass there"
        raise ConfigError(problem(f"{where}.direction", wrong, 'take tail="bucket", or direction="forward"'))


def _check_answers(student_BV: Tensor, ids_BK: Tensor, log_probs_BK: Tensor) -> None:
    lead, answers = student_BV.shape[:-1], ids_BK.shape[-1:]
    if ids_BK.shape != log_probs_BK.shape or ids_BK.shape[:-1] != lead or answers > student_BV.shape[-1:]:
        shapes = tuple(student_BV.shape), tuple(ids_BK.shape), tuple(log_probs_BK.shape)
        wrong = "student is {}, ids are {}, log_probs are {}".format(*shapes)
        raise ShapeError(problem("topk_kl", wrong, "give [..., V], [..., K] and [..., K] with K of at most V"))
    if ids_BK.dtype != torch.int64:
        raise DataError(problem("topk_kl", f"ids are {ids_BK.dtype}", "give them as torch.int64"))
    if ids_BK.device.type == "cpu" and not torch.compiler.is_compiling() and ids_BK.numel():  # elsewhere a look waits
        low, high = int(ids_BK.min()), int(ids_BK.max())
        if low < 0 or high >= student_BV.shape[-1]:
            wrong = f"ids go from {low} to {high}, the student has {student_BV.shape[-1]} classes"
            raise DataError(problem("topk_kl", wrong, "give answers of the student's own vocabulary, from 0"))


@setting
class ULD(Softened):
    """Match sorted probabilities, whatever words they belong to. The formula is `uld`.

    Matches: how the mass is spread over ranks: how sure the teacher is, and of how many words.
    Formula: Σ |s − t| over probabilities in falling order, the smaller vocabulary filled up with zeros.
    Source: Boizard et al. 2024, section 3.2.
    Defaults: T = 1; the paper weighs it 1 beside the labels.
    Helps: a teacher with another tokenizer, beside a term on labels.
    Cost: one softmax and one sort a side.
    Limits: blind to which word is meant, so it cannot teach alone. Where one side has more tokens, its last ones are
        cut off: the k-th token is compared with the k-th, however the tokenizers cut the text.
    """

    formula: ClassVar[Formula] = staticmethod(uld)
    kind: Literal["uld"] = "uld"
    temperature: Temperature = 1.0

    def __call__(self, student: Named, teacher: Named, batch: Named) -> Tensor:  # noqa: ARG002 - terms share a form
        """One value per token, for as many as both sides have."""
        s, t = student[self.on], teacher[self.on]
        if s.dim() > 2 and t.dim() > 2:
            tokens = min(s.shape[-2], t.shape[-2])
            s, t = s[..., :tokens, :], t[..., :tokens, :]
        now = heat(self._heat_name, self.temperature, student, lambda: t)
        return uld(s, t, temperature=now, reduction="none")


@setting
class TopKKL(Softened):
    """Match a teacher that is known by its k likeliest answers. The formula is `topk_kl`.

    Matches: the k answers and, as `tail` says, how much is left for the others.
    Formula: T² Σ t (log t − log s) over k answers and one for all others ("bucket").
    Source: Hinton et al. 2015, section 2; the tail as one answer is a coarser KL (Cover & Thomas, section 2.8).
    Defaults: the bucket, which alone is a divergence on what is known; T = 1; answers that the teacher gives as
        `logits.ids` and `logits.log_probs`. With `k`, the k likeliest of its whole output `on` are taken here.
    Helps: large vocabularies, whose answers cannot be kept whole, and services that give no more than a few.
    Cost: two passes over the student's logits; none over the teacher's, unless `k` is given.
    Limits: a temperature other than 1 is not exact (how the tail spreads is not known), and a sure teacher says little
        beyond its first answer.
    """

    formula: ClassVar[Formula] = staticmethod(topk_kl)
    kind: Literal["topk_kl"] = "topk_kl"
    temperature: Temperature = 1.0
    ids: str = "logits.ids"
    log_probs: str = "logits.log_probs"
    k: int | None = None
    tail: Tail = "bucket"
    direction: Direction = "forward"

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        Softened.__post_init__(self)
        _check_tail("topk_kl", self.tail, self.direction)
        if self.k is not None:
            whole("topk_kl.k", self.k)
        elif isinstance(self.temperature, ByEntropy):
            wrong = "the entropy of the teacher is not known from a few answers"
            raise ConfigError(
                problem("topk_kl.temperature", wrong, "give a number, or `k` with a teacher's whole output")
            )

    def needs(self) -> Needs:
        """The student's output, and the teacher's answers or its whole output."""
        answers = {self.ids, self.log_probs} if self.k is None else {self.on}
        return Needs(frozenset({self.on}), frozenset(answers))

    def __call__(self, student: Named, teacher: Named, batch: Named) -> Tensor:  # noqa: ARG002 - terms share a form
        """One value per token."""
        if self.k is None:
            ids, log_probs = teacher[self.ids], teacher[self.log_probs]
        else:
            dense = widened(teacher[self.on]).log_softmax(-1)
            log_probs, ids = dense.topk(min(self.k, dense.shape[-1]), -1)
        now = heat(self._heat_name, self.temperature, student, lambda: teacher[self.on])
        return topk_kl(
            student[self.on],
            ids,
            log_probs,
            tail=self.tail,
            direction=self.direction,
            temperature=now,
            reduction="none",
        )
