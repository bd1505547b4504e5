"""What a term is: one weighted loss between a student's signal and a teacher's."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from limbeck.core.check import not_negative
from limbeck.core.errors import ConfigError, problem
from limbeck.core.schedules import Number
from limbeck.core.types import Named, Needs

__all__ = ["HeadRequest", "OnLayers", "OnOutput", "Term", "check_weight"]


class HeadRequest(NamedTuple):
    """A projection that a term wants on the student's side: `source` shaped like the teacher's `target`."""

    name: str
    source: str
    target: str
    form: str


class Term(Protocol):
    """Frozen settings that can be called on (student signal, teacher signal, batch); one value per example."""

    @property
    def kind(self) -> str:
        """The name in the table."""
        ...

    @property
    def weight(self) -> Number:
        """The weight, or a schedule of it over the run."""
        ...

    def needs(self) -> Needs:
        """The names it reads, asked once before training."""
        ...

    def heads(self) -> tuple[HeadRequest, ...]:
        """The projections it wants on the student's side."""
        ...

    def __call__(self, student: Named, teacher: Named, batch: Named) -> Tensor:
        """One value per example."""
        ...


class OnOutput:
    """For terms that compare the named output `on` of both sides as it is."""

    __slots__ = ()
    on: str

    def needs(self) -> Needs:
        """The named output on both sides."""
        return Needs(frozenset({self.on}), frozenset({self.on}))

    def heads(self) -> tuple[HeadRequest, ...]:
        """No projection."""
        return ()


class OnLayers:
    """For terms that compare the layer `student` with the layer `teacher` through a projection of the form `head`."""

    __slots__ = ()
    kind: str
    student: str
    teacher: str
    head: str

    def needs(self) -> Needs:
        """One layer on each side."""
        return Needs(frozenset({self.student}), frozenset({self.teacher}))

    def heads(self) -> tuple[HeadRequest, ...]:
        """One projection from the student's layer to the teacher's shape."""
        return (HeadRequest(self.projected, self.student, self.teacher, self.head),)

    @property
    def projected(self) -> str:
        """The name under which the student's signal holds the projected layer."""
        return f"{self.kind}:{self.student}>{self.teacher}"


def check_weight(kind: str, weight: Number) -> None:
    """Refuse a weight that is neither a number of at least zero nor a schedule."""
    if callable(weight):
        return
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise ConfigError(problem(f"{kind}.weight", f"{weight!r} is no number", "give a number or a schedule"))
    not_negative(f"{kind}.weight", weight)
