"""The few types that all layers share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

__all__ = ["RESERVED", "Named", "Needs", "Teacher"]

Named = Mapping[str, Tensor]
"""Named tensors: a batch, or a signal (what a model says about a batch)."""

RESERVED = frozenset({"id", "valid", "view", "y"})
"""Keys of a batch that are never handed to a model."""


class Needs(NamedTuple):
    """The names that a term reads, asked once before training."""

    student: frozenset[str] = frozenset()
    teacher: frozenset[str] = frozenset()
    batch: frozenset[str] = frozenset()


@runtime_checkable
class Teacher(Protocol):
    """Anything that turns a batch into a signal, without gradient and without changing itself."""

    def fingerprint(self) -> str:
        """A digest that changes when the answers would."""
        ...

    def __call__(self, batch: Named) -> Named:
        """The signal for one batch."""
        ...
