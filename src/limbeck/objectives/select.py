"""Terms around a term: only the tokens that count, or only some of the student's classes.

Shapes: B = batch, N = tokens, V = vocabulary, C = classes, n = tokens of a batch that count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.core.check import whole
from limbeck.core.errors import ConfigError, ShapeError, problem
from limbeck.core.schedules import Number, value_at
from limbeck.core.setting import setting
from limbeck.core.types import Named, Needs
from limbeck.objectives.heads import Head
from limbeck.objectives.sequence import ULD, shifted
from limbeck.objectives.term import AnyTerm, Term, check_weight, weighted, within

__all__ = ["Classes", "Tokens"]


class _Changed(Mapping[str, Tensor]):
    """Named tensors that are changed when they are read, so that what nobody reads costs nothing."""

    def __init__(self, named: Named, change: Callable[[str, Tensor], Tensor]) -> None:
        self.named, self.change = named, change

    def __getitem__(self, name: str) -> Tensor:
        return self.change(name, self.named[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.named)

    def __len__(self) -> int:
        return len(self.named)


def _check_inner(kind: str, term: Term) -> None:
    """Refuse what is no term, or chooses tokens itself."""
    where = f"{kind}.term"
    if isinstance(term, type) or not hasattr(term, "needs"):
        raise ConfigError(problem(where, f"{term!r} is no term", "give one, such as limbeck.KL()"))
    if any(isinstance(each, Tokens) for each in within(term)):
        mend = "put `tokens` outside, as in Tokens(term=Classes(term=KL(), student=(0, 1)))"
        raise ConfigError(problem(where, f"{term.kind!r} already chooses tokens", mend))


@setting
class Tokens:
    """Apply a term to the tokens that count; each is a sample to it, and the mean is over all of them in a step.

    Matches: what the term inside matches, at the positions whose label is there; the others are never looked at, so
        what they hold (NaN included) reaches neither value nor gradient.
    Formula: the term's, on [n, ...] in the place of [B, N, ...]; labels `y` are those that the positions answer to.
    Source: the masked mean of next-token losses; here one count for a step, as `accumulate` and processes need it.
    Defaults: labels in `y`, [B, N], with −100 for none, as text collators make them; each position answers to the next
        label (`shift=0` for masked and encoder models).
    Helps: language models: prompts, padding and packed ends cost nothing.
    Cost: a copy of the tokens that count.
    Limits: outputs with tokens on their second axis, [B, N, ...]. With `ULD`, the mean is over the student's tokens,
        those beyond the teacher's end included.
    """

    kind: Literal["tokens"] = "tokens"
    term: AnyTerm
    weight: Number = 1.0
    column: str = "y"
    ignore: int = -100
    shift: int = 1

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        check_weight(self.kind, self.weight)
        whole("tokens.shift", self.shift, least=0)
        _check_inner(self.kind, self.term)
        if any(hasattr(each, "terms") for each in within(self.term)):
            mend = "put `tokens` inside, around each of its terms"
            raise ConfigError(problem("tokens.term", f"{self.term.kind!r} holds several terms", mend))

    def needs(self) -> Needs:
        """What the term inside needs, with the labels of this one's column."""
        student, teacher, batch = self.term.needs()
        return Needs(student, teacher, (batch - {"y"}) | {self.column})

    def heads(self) -> tuple[Head, ...]:
        """Those of the term inside."""
        return self.term.heads()

    def units(self, batch: Named) -> Tensor:
        """How many tokens of valid samples count."""
        return self._mask(batch, self._labels(batch)).sum()

    def _labels(self, batch: Named) -> Tensor:
        labels = batch[self.column]
        if labels.dim() != 2:
            wrong = f"the column {self.column!r} is {tuple(labels.shape)}"
            raise ShapeError(problem("tokens.column", wrong, "name the column of token labels [B, N]"))
        return shifted(labels, ignore=self.ignore, shift=self.shift)

    def _mask(self, batch: Named, labels_BN: Tensor) -> Tensor:
        return (labels_BN != self.ignore) & batch["valid"].unsqueeze(-1)

    def __call__(self, student: Named, teacher: Named, batch: Named) -> Tensor:
        """One value per token [B, N], 0 where it does not count."""
        labels_BN = self._labels(batch)
        mask_BN = self._mask(batch, labels_BN)
        tokens = mask_BN.shape[1]
        if isinstance(self.term, ULD):  # the one term that compares different numbers of tokens
            tokens = min(tokens, *(side[self.term.on].shape[1] for side in (student, teacher)))
        at = mask_BN[:, :tokens].nonzero(as_tuple=True)

        def picked(name: str, x: Tensor) -> Tensor:
            if x.dim() < 2 or len(x) != len(mask_BN) or name.endswith("@weight"):
                return x
            if x.shape[1] != mask_BN.shape[1] and not isinstance(self.term, ULD):
                wrong = f"{name!r} is {tuple(x.shape)}, the labels are {tuple(mask_BN.shape)}"
                raise ShapeError(problem("tokens", wrong, "give outputs [B, N, ...] with the tokens of the labels"))
            return x[at]

        own = {"valid": batch["valid"][at[0]], "y": labels_BN[at]}
        rest = {name: batch[name] for name in self.term.needs().batch - {"y"}}
        some = {name: x[at] if x.shape[:2] == mask_BN.shape else x[at[0]] for name, x in rest.items()} | own
        if not len(at[0]):  # nothing to pay, but a gradient of nothing, as elsewhere
            nothing = student[min(self.term.needs().student)].flatten()[:0].sum()
            return nothing + torch.zeros(mask_BN.shape, device=mask_BN.device)
        value_n = weighted(self.term, _Changed(student, picked), _Changed(teacher, picked), some)
        return value_n.new_zeros(mask_BN.shape).index_put(at, value_n)


@setting
class Classes:
    """Apply a term to some of the student's classes: those that a narrower teacher knows, in the teacher's order.

    Matches: what the term inside matches, among these classes; how much the student gives the others is left free.
    Formula: the term's, on the student's logits `on` of these classes; a label becomes its place among them, any other
        label none (−1), and a soft label keeps its shares of them.
    Source: a softmax over the shared classes, as in Li & Hoiem 2016 ("Learning without forgetting", section 3).
    Defaults: none to choose.
    Helps: a student that learns more than its teacher knows, or from several teachers with parts of the classes each.
        A teacher that knows more is cut with `limbeck.teacher(classes=...)` instead.
    Cost: a copy of the student's logits of these classes.
    Limits: samples of other classes are compared as well; where the teacher misleads on them, leave them out.
    """

    kind: Literal["classes"] = "classes"
    term: AnyTerm
    student: tuple[int, ...]
    weight: Number = 1.0
    on: str = "logits"

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        check_weight(self.kind, self.weight)
        _check_inner(self.kind, self.term)
        if self.on not in self.term.needs().student:
            mend = f"give a term on the student's {self.on!r}, such as KL, or name its output in `on`"
            raise ConfigError(problem("classes.term", f"{self.term.kind!r} reads no output {self.on!r}", mend))
        for number in self.student:
            whole("classes.student", number, least=0)
        if not self.student or len(set(self.student)) != len(self.student):
            wrong = f"{self.student} are not distinct class numbers"
            raise ConfigError(problem("classes.student", wrong, "name each class once, from 0"))

    def needs(self) -> Needs:
        """What the term inside needs."""
        return self.term.needs()

    def heads(self) -> tuple[Head, ...]:
        """Those of the term inside."""
        return self.term.heads()

    def __call__(self, student: Named, teacher: Named, batch: Named) -> Tensor:
        """One value per example."""

        def student_s(name: str, x: Tensor) -> Tensor:
            if name != self.on:
                return x
            if max(self.student) >= x.shape[-1]:
                wrong = f"class {max(self.student)} is asked for, the student has {x.shape[-1]}"
                raise ConfigError(problem("classes.student", wrong, "name classes that the student has, from 0"))
            return x.index_select(-1, torch.tensor(self.student, device=x.device))

        def label_s(name: str, x: Tensor) -> Tensor:
            return among(x, self.student) if name == "y" else x

        value = self.term(_Changed(student, student_s), teacher, _Changed(batch, label_s))
        return value_at(self.term.weight, 0.0) * value


def among(y: Tensor, classes: tuple[int, ...]) -> Tensor:
    """Labels as places among these classes, −1 for any other; the shares of soft labels [..., C] of these classes."""
    index = torch.tensor(classes, device=y.device)
    if y.is_floating_point():
        return F.pad(y, (0, max(0, max(classes) + 1 - y.shape[-1]))).index_select(-1, index)
    hit = y.unsqueeze(-1) == index
    return torch.where(hit.any(-1), hit.long().argmax(-1), -1)
