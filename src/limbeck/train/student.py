"""The student as the loop sees it: a model read as named tensors, with the heads that terms asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limbeck.core.taps import Inputs, Outputs, Reader
from limbeck.core.types import Named
from limbeck.objectives import Term
from limbeck.objectives.heads import make_head

__all__ = ["Student"]


class Student(nn.Module):
    """`batch -> Named` with projected layers beside the plain ones. Heads train with the model and fall away after."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.reader = reader
        self.heads = nn.ModuleList()
        self._roads: list[tuple[str, str]] = []

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
        names = frozenset().union(*(term.needs().student for term in objective))
        paths = {path for path, _ in model.named_modules() if path}
        taps = [name for name in names if name.partition("@")[0] in paths]
        student = cls(Reader(model, taps=taps, inputs=inputs, outputs=outputs, name="student"))
        signal = student.reader.probe(example, names)
        for term in objective:
            for request in term.heads():
                shapes = tuple(signal[request.source].shape), tuple(teacher_signal[request.target].shape)
                student.heads.append(make_head(request.form, *shapes, request.name))
                student._roads.append((request.source, request.name))
        return student

    @property
    def model(self) -> nn.Module:
        """The user's own module."""
        return self.reader.model

    def forward(self, batch: Named) -> dict[str, Tensor]:
        """Outputs, layers and projected layers by name."""
        return self._projected(self.reader(batch))

    def probe(self, batch: Named) -> dict[str, Tensor]:
        """The same without gradient, in evaluation mode, leaving everything as it was."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            return self._projected(self.reader.probe(batch))

    def _projected(self, signal: dict[str, Tensor]) -> dict[str, Tensor]:
        for (source, name), head in zip(self._roads, self.heads, strict=True):
            signal[name] = head(signal[source])
        return signal

    def close(self) -> None:
        """Remove the hooks from the user's module."""
        self.reader.close()
