"""Terms that hold terms and weigh them: by sample, and against each other. Each is a setting, not a trainer.

Weights over the run are schedules (`weight=Linear(start=0.9, end=0.0)`); moving temperatures are in `temperature.py`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.core.check import one_of, whole
from limbeck.core.errors import ConfigError, ShapeError, problem
from limbeck.core.schedules import Number, value_at
from limbeck.core.setting import setting
from limbeck.core.types import Named, Needs
from limbeck.objectives.heads import Head
from limbeck.objectives.label import chosen
from limbeck.objectives.temperature import certainty
from limbeck.objectives.term import AnyTerm, check_weight, union, units, values, weighted

__all__ = ["Balanced", "GradientNorm", "Uncertainty", "Weighed"]

_BY = ("certainty", "uncertainty", "correct")


@setting
class Weighed:
    """Weigh the samples of another term by what the teacher says of them.

    Matches: what the term it holds matches.
    Formula: w · term; w = 1 − H(t) / log C ("certainty"), H(t) / log C ("uncertainty"), or the share of the label that
        the teacher's top class holds ("correct": 1 where it is right, 0 where it is wrong); never below `floor`.
    Source: ours; the entropy weights are those of the term-weight schedules that several text distillers carry.
    Defaults: certainty, no floor; entropy at T = 1.
    Helps: teachers that are wrong or unsure on part of the data; unlabelled samples from elsewhere.
    Cost: one softmax of the teacher.
    Limits: weights are not renormalised, so less is learned from each batch; "correct" needs labels, and gives samples
        without one the floor.
    """

    kind: Literal["weighed"] = "weighed"
    term: AnyTerm
    weight: Number = 1.0
    by: Literal["certainty", "uncertainty", "correct"] = "certainty"
    on: str = "logits"
    floor: float = 0.0

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        check_weight(self.kind, self.weight)
        one_of("weighed.by", self.by, _BY)
        if not 0 <= self.floor <= 1:
            raise ConfigError(problem("weighed.floor", f"{self.floor} is no share", "give a number from 0 to 1"))

    def needs(self) -> Needs:
        """What the term needs, and the teacher's output."""
        own = Needs(teacher=frozenset({self.on}), batch=frozenset({"y"} if self.by == "correct" else ()))
        return union([self.term.needs(), own])

    def heads(self) -> tuple[Head, ...]:
        """The term's."""
        return self.term.heads()

    def units(self, batch: Named) -> Tensor:
        """The term's."""
        return units(self.term, batch)

    def __call__(self, student: Named, teacher: Named, batch: Named) -> Tensor:
        """One value per example (or token)."""
        value = weighted(self.term, student, teacher, batch)
        share = self._share(teacher[self.on], batch)
        if share.dim() > value.dim():
            share = share.flatten(value.dim()).mean(-1)
        return value * share.view(share.shape + (1,) * (value.dim() - share.dim()))

    def _share(self, logits_BC: Tensor, batch: Named) -> Tensor:
        if self.by == "correct":
            label = chosen("weighed", logits_BC, batch["y"])
            right = (label.classes == logits_BC.argmax(-1, keepdim=True)) * label.share
            return right.sum(-1).clamp_min(self.floor)
        sure = certainty(logits_BC)
        return (sure if self.by == "certainty" else 1 - sure).clamp_min(self.floor)


@setting
class Uncertainty:
    """A learned weight for each term, exp(−s), at the price of s / 2: Kendall, Gal & Cipolla 2018, section 3.2."""

    kind: Literal["uncertainty"] = "uncertainty"


@setting
class GradientNorm:
    """Weights that give each term the gradient norm of the first at the student's layer `at`, times its own weight.

    Norms are measured every so many steps, by one more backward pass a term from its loss to that layer, and averaged.
    In the spirit of Chen et al. 2018 (GradNorm), whose weights are learned towards equal norms; here they are set.
    """

    kind: Literal["gradient_norm"] = "gradient_norm"
    at: str
    every: int = 10
    decay: float = 0.9

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        whole("gradient_norm.every", self.every)
        if not 0 <= self.decay < 1:
            raise ConfigError(problem("gradient_norm.decay", f"{self.decay} is no decay", "give 0 or more, below 1"))


Balance = Uncertainty | GradientNorm


class Gauge(nn.Module):
    """The numbers behind a balance, given to its term in the student's signal: learned ones, or measured ones.

    Measured ones are written by the term, after its members' losses are known; they live here to be saved.
    """

    def __init__(self, name: str, terms: int, *, learned: bool) -> None:
        super().__init__()
        self.name = name
        if learned:
            self.numbers: Tensor = nn.Parameter(torch.zeros(terms))
        else:
            self.register_buffer("numbers", torch.zeros(terms + 1))  # the last counts the calls

    def forward(self, student: Named, teacher: Named, batch: Named) -> dict[str, Tensor]:  # noqa: ARG002
        """The numbers."""
        return {self.name: self.numbers}


@setting
class GaugeHead:
    """Asks for the numbers of a balance."""

    name: str
    terms: int
    learned: bool

    def __call__(self, student: Named, teacher: Named) -> nn.Module:  # noqa: ARG002 - all heads are made alike
        """The module."""
        return Gauge(self.name, self.terms, learned=self.learned)


@setting
class Balanced:
    """Weigh several terms against each other as they are trained.

    Matches: what the terms it holds match.
    Formula: Σ w_i exp(−s_i) term_i + s_i / 2 with learned s ("uncertainty"), or Σ w_i (n_1 / n_i) term_i with n_i the
        running gradient norm of term_i at one layer ("gradient_norm").
    Source: Kendall, Gal & Cipolla 2018, section 3.2; after Chen et al. 2018 (GradNorm).
    Defaults: uncertainty: nothing to choose.
    Helps: terms of very different sizes, when there is no time to tune their weights.
    Cost: nothing for uncertainty; for gradient norms a backward pass a term, down to that layer, every few steps.
    Limits: learned weights follow the size of a loss, not its use: a useless but small term is weighed up. Terms on
        tokens cannot be mixed with terms on samples.
    """

    kind: Literal["balanced"] = "balanced"
    terms: tuple[AnyTerm, ...]
    by: Balance = Uncertainty()
    weight: Number = 1.0

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        check_weight(self.kind, self.weight)
        if len(self.terms) < 2:
            raise ConfigError(problem("balanced.terms", f"it holds {len(self.terms)}", "give two terms or more"))
        if not isinstance(self.by, Uncertainty | GradientNorm):
            mend = "give Uncertainty() or GradientNorm(at=...) of limbeck.objectives"
            raise ConfigError(problem("balanced.by", f"{self.by!r} is no balance", mend))
        if any(not callable(term.weight) and term.weight == 0 for term in self.terms):
            raise ConfigError(problem("balanced.terms", "a term has the weight 0", "leave that term out"))

    def needs(self) -> Needs:
        """What the terms need, and the layer where gradients are measured."""
        at = frozenset({self.by.at}) if isinstance(self.by, GradientNorm) else frozenset[str]()
        return union([*(term.needs() for term in self.terms), Needs(student=at)])

    def heads(self) -> tuple[Head, ...]:
        """The terms', and the numbers of the balance."""
        own = GaugeHead(name=self._name, terms=len(self.terms), learned=isinstance(self.by, Uncertainty))
        return (*(head for term in self.terms for head in term.heads()), own)

    @property
    def _name(self) -> str:
        return "balanced:" + "+".join(term.kind for term in self.terms)

    def units(self, batch: Named) -> Tensor:
        """The first term's."""
        return units(self.terms[0], batch)

    def __call__(self, student: Named, teacher: Named, batch: Named) -> Tensor:
        """One value per example (or token)."""
        each = [values(term, student, teacher, batch) for term in self.terms]
        if len({value.shape for value in each}) > 1:
            wrong = f"the terms give values of shapes {', '.join(str(tuple(v.shape)) for v in each)}"
            raise ShapeError(problem("balanced", wrong, "balance terms on samples, or terms on tokens, not both"))
        weights = [value_at(term.weight, 0.0) for term in self.terms]
        numbers = student[self._name]
        if isinstance(self.by, Uncertainty):
            parts = [w * v * (-s).exp() + s / 2 for w, v, s in zip(weights, each, numbers, strict=True)]
        else:
            if torch.is_grad_enabled():
                self._measure(self.by, each, student[self.by.at], numbers, batch["valid"])
            norms = numbers[:-1]
            known = norms > 0
            ratio = torch.where(known & known[0], norms[0] / torch.where(known, norms, 1.0), 1.0)
            parts = [w * v * r for w, v, r in zip(weights, each, ratio, strict=True)]
        return torch.stack(parts).sum(0)

    @staticmethod
    def _measure(by: GradientNorm, each: list[Tensor], layer: Tensor, numbers: Tensor, valid: Tensor) -> None:
        """Write the running gradient norms into `numbers`, in place."""
        calls = int(numbers[-1])
        if calls % by.every == 0 and layer.requires_grad:
            for i, value in enumerate(each):
                mask = valid.view(valid.shape + (1,) * (value.dim() - valid.dim()))
                whole_loss = torch.where(mask, value, 0.0).sum()
                (grad,) = torch.autograd.grad(whole_loss, layer, retain_graph=True, allow_unused=True)
                norm = torch.zeros(()) if grad is None else grad.detach().float().norm()
                numbers[i] = norm if calls == 0 else by.decay * numbers[i] + (1 - by.decay) * norm
        numbers[-1] += 1
