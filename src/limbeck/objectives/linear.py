"""KL from hidden states and output weights, without the logits of all tokens ever being there at once.

Shapes: N = tokens (any leading axes), D and E = widths of the student and of the teacher, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from limbeck.core.check import positive, whole
from limbeck.core.errors import ShapeError, problem
from limbeck.core.schedules import Number
from limbeck.core.setting import setting
from limbeck.core.types import Named, Needs
from limbeck.objectives.heads import Head
from limbeck.objectives.logspace import Reduction, Scaling, reduce, scale, widened
from limbeck.objectives.term import check_weight

__all__ = ["LinearKL", "linear_kl"]


def linear_kl(
    student_ND: Tensor,
    student_VD: Tensor,
    teacher_NE: Tensor,
    teacher_VE: Tensor,
    *,
    temperature: float = 1.0,
    temperature_scaling: Scaling = "squared",
    chunk: int = 256,
    reduction: Reduction = "mean",
) -> Tensor:
    """`kl` between softmax(hidden · weightᵀ) of both sides, holding the logits of `chunk` tokens at a time.

    Gradients are computed along with the values, for weight 1 a token, and scaled when the real ones arrive. That is
    exact where all values get the same gradient, as in any mean or sum; where they do not, the gradient of the weight
    takes a second pass over the logits. There is no second derivative, no gradient for the teacher, and no
    `torch.compile(fullgraph=True)`: the graph breaks here.

    Args:
        student_ND: the student's hidden states [..., D], as its output layer takes them.
        student_VD: the weight of the student's output layer [V, D].
        teacher_NE: the teacher's hidden states [..., E], of the same tokens.
        teacher_VE: the weight of the teacher's output layer [V, E]. Where one vocabulary is longer (padded), the rows
            that only one side has are left out.
        temperature: both sides are divided by it before the softmax.
        temperature_scaling: "squared" multiplies by T², "none" leaves the bare divergence.
        chunk: tokens at a time; three buffers of chunk · V numbers are held.
        reduction: "none" gives one value per token, [...].

    Raises:
        ShapeError: hidden states, weights or tokens do not line up.
        ConfigError: a setting is impossible.

    Source: Hinton et al. 2015, section 2; the chunks as in Hsu et al. 2024, "Liger kernel", section 3.2.
    """
    _fit(student_ND, student_VD, teacher_NE, teacher_VE)
    positive("linear_kl.temperature", temperature)
    whole("linear_kl.chunk", chunk)
    value: Tensor = _LinearKL.apply(  # type: ignore[no-untyped-call]
        student_ND.reshape(-1, student_ND.shape[-1]),
        student_VD,
        teacher_NE.reshape(-1, teacher_NE.shape[-1]),
        teacher_VE,
        (float(temperature), chunk, torch.is_grad_enabled()),
    )
    return reduce(scale(value.view(student_ND.shape[:-1]), temperature, temperature_scaling), reduction)


def _fit(student_ND: Tensor, student_VD: Tensor, teacher_NE: Tensor, teacher_VE: Tensor) -> None:
    sides = (student_ND, student_VD), (teacher_NE, teacher_VE)
    widths = all(weight.dim() == 2 and hidden.shape[-1:] == weight.shape[1:] for hidden, weight in sides)
    if not widths or student_ND.shape[:-1] != teacher_NE.shape[:-1]:
        seen = " and ".join(f"{tuple(hidden.shape)} with weight {tuple(weight.shape)}" for hidden, weight in sides)
        mend = "give hidden states [..., D] of the same tokens and weights [V, D]"
        raise ShapeError(problem("linear_kl", f"student and teacher are {seen}", mend))


class _Sides(NamedTuple):
    """Hidden states and weights in one type of at least float32, the weights cut to their common rows."""

    student: Tensor
    student_weight: Tensor
    teacher: Tensor
    teacher_weight: Tensor

    @classmethod
    def of(cls, *given: Tensor) -> _Sides:
        rows = min(given[1].shape[0], given[3].shape[0])
        dtype = widened(given[0]).dtype
        student, student_weight, teacher, teacher_weight = (x.detach().to(dtype) for x in given)
        return cls(student, student_weight[:rows], teacher, teacher_weight[:rows])

    def chunks(self, temperature: float, chunk: int) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Rows, log s, log t, and room for as much again; the next chunk takes the same three places.

        Operations with `out=`, unlike others, are left alone by autocast: inside a chunk there is no half precision.
        """
        tokens, rows = self.student.shape[0], self.student_weight.shape[0]
        room, log_s, log_t = (self.student.new_empty(min(chunk, tokens), rows) for _ in range(3))
        for start in range(0, tokens, chunk):
            at = slice(start, min(start + chunk, tokens))
            size = at.stop - start
            for hidden, weight, out in (
                (self.student, self.student_weight, log_s),
                (self.teacher, self.teacher_weight, log_t),
            ):
                torch.mm(hidden[at] / temperature, weight.T, out=room[:size])
                torch.log_softmax(room[:size], -1, out=out[:size])
            yield at, log_s[:size], log_t[:size], room[:size]


class _LinearKL(torch.autograd.Function):
    """One value a token, with gradients for the student's hidden states and weight."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        temperature, chunk, recorded = ctx.how = given[4]
        ctx.save_for_backward(*given[:4])
        sides = _Sides.of(*given[:4])
        hidden, weight = (recorded and needed for needed in ctx.needs_input_grad[:2])
        ctx.to_ND = torch.empty_like(sides.student) if hidden else None
        ctx.to_VD = torch.zeros_like(given[1], dtype=sides.student_weight.dtype) if weight else None
        value_N = sides.student.new_empty(sides.student.shape[0])
        for at, log_s, log_t, room in sides.chunks(temperature, chunk):
            t = torch.exp(log_t, out=room)
            torch.sum(log_t.sub_(log_s).mul_(t), -1, out=value_N[at])
            if hidden or weight:
                pull = log_s.exp_().sub_(t).div_(temperature)
                _spread(pull, at, sides, ctx.to_ND, ctx.to_VD)
        return value_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        given, (temperature, chunk, _) = ctx.saved_tensors, ctx.how
        to_ND, to_VD = ctx.to_ND, ctx.to_VD
        if to_ND is not None:
            to_ND = to_ND * grad_N.unsqueeze(-1)
        if to_VD is not None and bool((grad_N == grad_N[:1]).all()):
            to_VD = to_VD * grad_N[:1].sum()
        elif to_VD is not None:
            sides = _Sides.of(*given)
            to_VD = torch.zeros_like(to_VD)
            for at, log_s, log_t, _room in sides.chunks(temperature, chunk):
                pull = log_s.exp_().sub_(log_t.exp_()).mul_(grad_N[at].unsqueeze(-1) / temperature)
                _spread(pull, at, sides, None, to_VD)
        return to_ND, to_VD, None, None, None


def _spread(pull: Tensor, at: slice, sides: _Sides, to_ND: Tensor | None, to_VD: Tensor | None) -> None:
    """Carry the gradient of a chunk's logits on to its hidden states and to the weight."""
    if to_ND is not None:
        torch.mm(pull, sides.student_weight, out=to_ND[at])
    if to_VD is not None:
        to_VD[: pull.shape[1]].addmm_(pull.T, sides.student[at])


@setting
class LinearKL:
    """Match the teacher's soft answers from hidden states and output weights. The formula is `linear_kl`.

    Matches: what `KL` matches, over a vocabulary too large to hold the answers of all tokens.
    Formula: T² Σ t (log t − log s), with t, s = softmax(hidden · weightᵀ / T).
    Source: Hinton et al. 2015, section 2.
    Defaults: T = 1; 256 tokens at a time.
    Helps: language models: memory falls from tokens × vocabulary to chunk × vocabulary. Name a layer's weight as
        `student_weight="lm_head@weight"`, and what goes into it as `student="lm_head@in"`.
    Cost: the same products as with whole logits; one more pass where tokens weigh differently (a ragged last batch).
    Limits: output layers without a bias, scale or cap; the same tokens and the same words on both sides; the models
        should not compute their logits as well, or the saving is lost.
    """

    kind: Literal["linear_kl"] = "linear_kl"
    student: str
    student_weight: str
    teacher: str
    teacher_weight: str
    weight: Number = 1.0
    temperature: Number = 1.0
    chunk: int = 256

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        check_weight(self.kind, self.weight)
        whole("linear_kl.chunk", self.chunk)
        if not callable(self.temperature):
            positive("linear_kl.temperature", self.temperature)

    def needs(self) -> Needs:
        """Hidden states and a weight on each side."""
        return Needs(frozenset({self.student, self.student_weight}), frozenset({self.teacher, self.teacher_weight}))

    def heads(self) -> tuple[Head, ...]:
        """None."""
        return ()

    def __call__(self, student: Named, teacher: Named, batch: Named) -> Tensor:  # noqa: ARG002 - terms share a form
        """One value per token."""
        assert isinstance(self.temperature, int | float), "schedules are settled before a term is called"
        left = student[self.student], student[self.student_weight]
        right = teacher[self.teacher], teacher[self.teacher_weight]
        return linear_kl(*left, *right, temperature=self.temperature, chunk=self.chunk, reduction="none")
