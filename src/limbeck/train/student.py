"""The student as the loop sees it: a model read as named tensors, with the heads that terms asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limbeck.core.errors import ConfigError, problem
from limbeck.core.still import undisturbed
from limbeck.core.taps import Inputs, Outputs, Reader, taps_in
from limbeck.core.types import Named
from limbeck.objectives import Term
from limbeck.objectives.heads import Head

__all__ = ["Student"]


class Student(nn.Module):
    """`batch -> Named`, with what the heads give beside the plain names. Heads train along and fall away after.

    Called with the teacher's signal, as in training, it runs the heads; called with a batch alone, as for scores, only
    the model.
    """

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.reader = reader
        self.heads = nn.ModuleList()
        self.wanted: frozenset[str] = frozenset()

    @classmethod
    def build(
        cls,
        model: nn.Module,
        objective: Sequence[Term],
        example: Named,
        teacher_signal: Named,
        *,
        inputs: Inputs = None,
        outputs: Outputs = None,
    ) -> Student:
        """Find the layers that the terms read, and size their heads by one dry run on `example`.

        Raises:
            ModelError: the model cannot be called with the example, or lacks a layer or output.
            ShapeError: no projection leads to the teacher's shape.
        """
        names = frozenset[str]().union(*(term.needs().student for term in objective))
        student = cls(Reader(model, taps=taps_in(model, names), inputs=inputs, outputs=outputs, name="student"))
        student.wanted = names
        signal = student.reader.probe(example, names)
        device = next(iter(signal.values())).device
        for head in _different(objective):
            student.heads.append(head(signal, teacher_signal).to(device))
        return student

    @property
    def model(self) -> nn.Module:
        """The user's own module."""
        return self.reader.model

    def forward(self, batch: Named, teacher: Named | None = None) -> dict[str, Tensor]:
        """Outputs and layers by name; with the teacher's signal, what the terms read and what the heads give.

        What no term reads is left out there: it would look as if it took part in the loss.
        """
        signal: dict[str, Tensor] = self.reader(batch)
        if teacher is None:
            return signal
        plain = frozenset(signal) - self.wanted
        return {name: v for name, v in self._with_heads(signal, teacher, batch).items() if name not in plain}

    def probe(self, batch: Named, teacher: Named) -> dict[str, Tensor]:
        """The same without gradient, in evaluation mode, leaving everything as it was."""
        with torch.random.fork_rng(devices=[]), undisturbed(self.heads), torch.no_grad():
            return self._with_heads(self.reader.probe(batch), teacher, batch)

    def idle(self, batch: Named, teacher: Named) -> frozenset[str]:
        """The parameters that no term depends on, found by a try that leaves everything as it was."""
        with torch.random.fork_rng(devices=[]), undisturbed(self), torch.enable_grad():
            roots = [value.grad_fn for value in self(batch, teacher).values() if value.grad_fn is not None]
        seen, found = set(roots), set()
        while roots:
            node = roots.pop()
            if hasattr(node, "variable"):
                found.add(id(node.variable))
            fresh = {after for after, _ in node.next_functions if after is not None} - seen
            seen |= fresh
            roots += fresh
        return frozenset(n for n, p in self.named_parameters() if p.requires_grad and id(p) not in found)

    def _with_heads(self, signal: dict[str, Tensor], teacher: Named, batch: Named) -> dict[str, Tensor]:
        for head in self.heads:
            signal.update(head(signal, teacher, batch))
        return signal

    def close(self) -> None:
        """Remove the hooks from the user's module."""
        self.reader.close()


def _different(objective: Sequence[Term]) -> list[Head]:
    """The heads that the terms ask for; those that ask for the same share one.

    Raises:
        ConfigError: two ask for different ones under one name, where one would take the place of the other.
    """
    wanted: dict[str, Head] = {}
    for term in objective:
        for head in term.heads():
            if wanted.setdefault(head.name, head) != head:
                wrong = f"two terms of the kind {term.kind!r} on the same layers want different heads"
                raise ConfigError(problem("objective", wrong, "leave one of them out, or tap another layer for it"))
    return list(wanted.values())
