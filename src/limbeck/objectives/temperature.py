"""Temperatures that are no fixed number: by schedule, by sample, or learned against the student.

Every term with a temperature takes any of these in its place; none needs a trainer of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Union

import torch
from torch import Tensor, nn

from limbeck.core.check import not_negative, positive
from limbeck.core.errors import ConfigError, problem
from limbeck.core.schedules import Linear, Number, Schedule
from limbeck.core.setting import setting
from limbeck.core.types import Named
from limbeck.objectives.heads import Head
from limbeck.objectives.logspace import Heat, expected, widened

__all__ = ["ByEntropy", "Curriculum", "Temperature", "certainty", "check_temperature", "reversed_gradient"]


@setting
class ByEntropy:
    """A temperature for each sample: `sure` where the teacher is certain, `unsure` where all its classes are alike.

    T = unsure + (sure − unsure)·(1 − H(t) / log C), with the entropy of the teacher's answer at T = 1: sharp answers
    are softened until they say something about the other classes, soft ones are left alone.
    """

    kind: Literal["by_entropy"] = "by_entropy"
    sure: float = 4.0
    unsure: float = 1.0

    def __post_init__(self) -> None:
        """Refuse impossible temperatures."""
        positive("by_entropy.sure", self.sure)
        positive("by_entropy.unsure", self.unsure)


@setting
class Curriculum:
    """A temperature that is learned by a reversed gradient: it moves to where matching is hardest (CTKD).

    T = low + span·sigmoid(parameter), one for all samples. The reversal is multiplied by `strength`, which rises over
    the run, so that the task gets harder as the student gets better.

    Source: Li et al. 2023, "Curriculum temperature for knowledge distillation", sections 3.2 and 3.3 (global version;
    released code: low 1, span 20, strength along a cosine over the first 10 epochs).
    """

    kind: Literal["curriculum"] = "curriculum"
    low: float = 1.0
    span: float = 20.0
    start: float = 4.0
    strength: Number = Linear(start=0.0, end=1.0, until=0.5)

    def __post_init__(self) -> None:
        """Refuse impossible ranges."""
        positive("curriculum.low", self.low)
        positive("curriculum.span", self.span)
        if not callable(self.strength):
            not_negative("curriculum.strength", self.strength)
        if not self.low < self.start < self.low + self.span:
            wrong = f"{self.start} lies outside {self.low} to {self.low + self.span}"
            raise ConfigError(problem("curriculum.start", wrong, "start between low and low + span"))


if TYPE_CHECKING:
    Temperature = Union[Number, ByEntropy, Curriculum]  # noqa: UP007
else:
    Temperature = Union[float, Schedule, ByEntropy, Curriculum]  # noqa: UP007


def check_temperature(where: str, value: Any) -> None:
    """Refuse what is neither a number above zero nor one of the forms of this file nor a schedule."""
    if not (isinstance(value, ByEntropy | Curriculum) or callable(value)):
        positive(where, value)


class Learned(nn.Module):
    """The one learned number behind a `Curriculum`, given under its name in the student's signal."""

    def __init__(self, name: str, setting: Curriculum) -> None:
        super().__init__()
        self.name, self.low, self.span = name, setting.low, setting.span
        share = (setting.start - setting.low) / setting.span
        self.raw = nn.Parameter(torch.tensor([math.log(share / (1 - share))]))

    def forward(self, student: Named, teacher: Named, batch: Named) -> dict[str, Tensor]:  # noqa: ARG002
        """The temperature."""
        return {self.name: self.low + self.span * self.raw.sigmoid().squeeze(0)}


@setting
class LearnedHead:
    """Asks for the learned number of a `Curriculum`."""

    name: str
    setting: Curriculum

    def __call__(self, student: Named, teacher: Named) -> nn.Module:  # noqa: ARG002 - all heads are made alike
        """The module."""
        return Learned(self.name, self.setting)


def heads_of(name: str, temperature: Any) -> tuple[Head, ...]:
    """The head that a temperature needs, if any."""
    return (LearnedHead(name=name, setting=temperature),) if isinstance(temperature, Curriculum) else ()


def heat(name: str, temperature: Any, student: Named, teacher_BC: Callable[[], Tensor]) -> Heat:
    """The temperature as a number or a tensor."""
    if isinstance(temperature, ByEntropy):
        sure, unsure = temperature.sure, temperature.unsure
        return unsure + (sure - unsure) * certainty(teacher_BC())
    if isinstance(temperature, Curriculum):
        assert isinstance(temperature.strength, int | float), "schedules are settled before a term is called"
        return reversed_gradient(student[name], float(temperature.strength))
    return float(temperature)


def certainty(logits_BC: Tensor) -> Tensor:
    """1 − H / log C per example, without gradient: 1 where one class has all, 0 where all are alike."""
    log_p = widened(logits_BC.detach()).log_softmax(-1)
    entropy = -expected(log_p, log_p)
    return (1 - entropy / math.log(max(log_p.shape[-1], 2))).clamp(0, 1)


class _Reversed(torch.autograd.Function):
    """The identity, whose gradient is multiplied by −strength."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * grad, None


def reversed_gradient(x: Tensor, strength: float = 1.0) -> Tensor:
    """The identity going forward; going back, the gradient times −`strength` (Ganin & Lempitsky 2015, section 3)."""
    out: Tensor = _Reversed.apply(x, strength)  # type: ignore[no-untyped-call]
    return out
