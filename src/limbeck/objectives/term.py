"""What a term is: one weighted loss between a student's signal and a teacher's, as frozen settings.

A term of one's own derives from one of the bases below, names its `formula`, and adds its settings as fields: each
field that the base does not know is handed to the formula under its own name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor

from limbeck.core.check import not_negative, one_of
from limbeck.core.errors import ConfigError, ShapeError, problem
from limbeck.core.schedules import Number, value_at
from limbeck.core.setting import setting, tagged
from limbeck.core.types import Named, Needs
from limbeck.objectives.heads import HEAD_FORMS, Head, Projecting
from limbeck.objectives.temperature import Temperature, check_temperature, heads_of, heat

__all__ = [
    "AnyTerm",
    "BatchWide",
    "Formula",
    "Labelled",
    "OnLayers",
    "OnOutput",
    "Softened",
    "Term",
    "check_share",
    "check_weight",
    "check_weights",
    "relates",
    "same_batch",
    "union",
    "units",
    "values",
    "weighted",
    "within",
]

Formula = Callable[..., Tensor]
"""A pure loss: student, teacher, settings by name, `reduction=`; one value per example with "none"."""


class Term(Protocol):
    """Frozen settings that can be called on (student signal, teacher signal, batch); one value per example.

    A value has the shape of the batch's `valid`, or further axes (tokens) that are averaged, unless the term says with
    `units(batch)` over how many values it is a mean.
    """

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

    def heads(self) -> tuple[Head, ...]:
        """What is trained beside the student for it."""
        ...

    def __call__(self, student: Named, teacher: Named, batch: Named) -> Tensor:
        """One value per example."""
        ...


if not TYPE_CHECKING:

    class AnyTerm:
        """In a field's place: any term, read from YAML by its `kind`; the table may hold terms that hold terms."""

        @classmethod
        def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
            """What pydantic asks of a type that says itself how it is read."""
            from limbeck.objectives import TERMS  # noqa: PLC0415 - whole by the time anything is read

            return handler.generate_schema(tagged(TERMS))

else:
    AnyTerm = Term


def _own(cls: type, base: type) -> tuple[str, ...]:
    """The fields that a term adds to its base: its formula's settings."""
    known = {field.name for field in dataclasses.fields(base)}
    return tuple(field.name for field in dataclasses.fields(cls) if field.name not in known)


@setting
class OnOutput:
    """For terms that compare the named output `on` of both sides as it is."""

    formula: ClassVar[Formula]
    kind: str = ""
    weight: Number = 1.0
    on: str = "logits"

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        check_weight(self.kind, self.weight)

    def needs(self) -> Needs:
        """The named output on both sides."""
        return Needs(frozenset({self.on}), frozenset({self.on}))

    def heads(self) -> tuple[Head, ...]:
        """None."""
        return ()

    def settings(self, student: Named, teacher: Named) -> dict[str, Any]:  # noqa: ARG002
        """What is handed to the formula."""
        return {name: getattr(self, name) for name in _own(type(self), OnOutput)}

    def __call__(self, student: Named, teacher: Named, batch: Named) -> Tensor:  # noqa: ARG002 - terms share a form
        """One value per example."""
        given = self.settings(student, teacher)
        return type(self).formula(student[self.on], teacher[self.on], **given, reduction="none")


@setting
class Softened(OnOutput):
    """For terms on outputs that are softened by a temperature: a number, a schedule, by sample, or learned."""

    temperature: Temperature = 2.0

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        check_weight(self.kind, self.weight)
        check_temperature(f"{self.kind}.temperature", self.temperature)

    def heads(self) -> tuple[Head, ...]:
        """The learned temperature, where there is one."""
        return heads_of(self._heat_name, self.temperature)

    @property
    def _heat_name(self) -> str:
        return f"{self.kind}:{self.on}:temperature"

    def settings(self, student: Named, teacher: Named) -> dict[str, Any]:
        """What is handed to the formula."""
        now = heat(self._heat_name, self.temperature, student, lambda: teacher[self.on])
        return {name: getattr(self, name) for name in _own(type(self), Softened)} | {"temperature": now}


@setting
class Labelled(Softened):
    """For softened terms that also read the labels `y`; their formula takes them third."""

    def needs(self) -> Needs:
        """The named output on both sides, and the labels."""
        return Needs(frozenset({self.on}), frozenset({self.on}), frozenset({"y"}))

    def __call__(self, student: Named, teacher: Named, batch: Named) -> Tensor:
        """One value per example."""
        given = self.settings(student, teacher)
        return type(self).formula(student[self.on], teacher[self.on], batch["y"], **given, reduction="none")


@setting
class OnLayers:
    """For terms that compare the layer `student` with the layer `teacher` through a projection of the form `head`."""

    formula: ClassVar[Formula]
    kind: str = ""
    student: str
    teacher: str
    weight: Number = 1.0
    head: str = "auto"

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        check_weight(self.kind, self.weight)
        one_of(f"{self.kind}.head", self.head, HEAD_FORMS)

    def needs(self) -> Needs:
        """One layer on each side."""
        return Needs(frozenset({self.student}), frozenset({self.teacher}))

    def heads(self) -> tuple[Head, ...]:
        """One projection from the student's layer to the teacher's shape; none where they are compared as they are."""
        if self.head == "none":
            return ()
        return (Projecting(name=self.projected, source=self.student, target=self.teacher, form=self.head),)

    @property
    def projected(self) -> str:
        """The name under which the student's signal holds the layer that is compared."""
        if self.head == "none":
            return self.student
        return f"{self.kind}:{self.student}>{self.teacher}" + ("" if self.head == "auto" else f":{self.head}")

    def settings(self) -> dict[str, Any]:
        """What is handed to the formula."""
        return {name: getattr(self, name) for name in _own(type(self), OnLayers)}

    def __call__(self, student: Named, teacher: Named, batch: Named) -> Tensor:  # noqa: ARG002 - terms share a form
        """One value per example."""
        left, right = student[self.projected], teacher[self.teacher]
        return type(self).formula(left, right, **self.settings(), reduction="none")


class BatchWide:
    """Mixed in before a base: the formula relates samples to each other, so only the valid ones may take part."""

    __slots__ = ()

    def __call__(self, student: Named, teacher: Named, batch: Named) -> Tensor:
        """One value per example, 0 where a sample is not valid; the mean over valid ones is the loss of the batch."""
        valid = batch["valid"]
        whole: Any = super().__call__  # type: ignore[misc]
        if bool(valid.all()):
            value: Tensor = whole(student, teacher, batch)
            return value
        index = valid.nonzero().squeeze(-1)
        if not len(index):
            return torch.zeros(len(valid), device=valid.device) + (next(iter(student.values())) * 0).nan_to_num().sum()
        few = (_picked(side, index, len(valid)) for side in (student, teacher, batch))
        some: Tensor = whole(*few)
        return some.new_zeros(len(valid), *some.shape[1:]).index_copy(0, index, some)


def _picked(named: Named, index: Tensor, samples: int) -> dict[str, Tensor]:
    """The chosen samples of everything that has an axis of samples."""
    return {k: v[index] if v.dim() and v.shape[0] == samples else v for k, v in named.items()}


def units(term: Term, batch: Named) -> Tensor:
    """Over how many values the term is a mean: the valid samples, unless it says otherwise."""
    own: Any = getattr(term, "units", None)
    counted: Tensor = own(batch) if own is not None else batch["valid"].sum()
    return counted


def values(term: Term, student: Named, teacher: Named, batch: Named) -> Tensor:
    """The term's values, one for each of its units: further axes are averaged, unless it says that they are units."""
    value = term(student, teacher, batch)
    samples = batch["valid"].dim()
    return value if hasattr(term, "units") or value.dim() <= samples else value.flatten(samples).mean(-1)


def within(term: Any) -> Iterator[Any]:
    """The term and all terms that it holds."""
    yield term
    held = (*getattr(term, "terms", ()), *((term.term,) if hasattr(term, "term") else ()))
    for each in held:
        yield from within(each)


def relates(term: Term) -> bool:
    """Whether it, or a term that it holds, relates the samples of a batch to each other."""
    return any(isinstance(each, BatchWide) for each in within(term))


def weighted(term: Term, student: Named, teacher: Named, batch: Named) -> Tensor:
    """The values of a term that another one holds: its own weight counts, and the outer one's multiplies it."""
    own = value_at(term.weight, 0.0)
    value = values(term, student, teacher, batch)
    return value if own == 1.0 else own * value


def check_weight(kind: str, weight: Number) -> None:
    """Refuse a weight that is neither a number of at least zero nor a schedule."""
    if callable(weight):
        return
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise ConfigError(problem(f"{kind}.weight", f"{weight!r} is no number", "give a number or a schedule"))
    not_negative(f"{kind}.weight", weight)


def check_weights(kind: str, **named: Number) -> None:
    """Refuse inner weights that are neither numbers of at least zero nor schedules."""
    for name, value in named.items():
        if not callable(value):
            not_negative(f"{kind}.{name}", value)


def check_share(where: str, value: Number, *, low: str, high: str) -> None:
    """Refuse a share that is not above 0 and below 1, naming the losses at the ends."""
    if callable(value):
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        wrong = f"{value!r} is not above 0 and below 1 (at 0 it is `{low}`, at 1 `{high}`)"
        raise ConfigError(problem(where, wrong, "give a share between the two, or take the loss at the end"))


def same_batch(where: str, **named: Tensor) -> None:
    """Refuse layers of different numbers of samples."""
    sizes = {name: value.shape[:1] for name, value in named.items()}
    if len(set(sizes.values())) > 1 or any(value.dim() < 2 for value in named.values()):
        seen = ", ".join(f"{name} is {tuple(value.shape)}" for name, value in named.items())
        raise ShapeError(problem(where, seen, "give the same samples on both sides, [B, ...] each"))


def union(needs: Iterable[Needs]) -> Needs:
    """All names of several terms."""
    sides = list(zip(*needs, strict=True))
    return Needs(*(frozenset().union(*side) for side in sides))
