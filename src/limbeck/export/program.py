"""A module as a torch program: a `.pt2` file that runs without the code of its class."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.errors import ModelError, problem
from limbeck.core.parity import Parity
from limbeck.core.types import Named
from limbeck.evaluation.macs import Example
from limbeck.export.onnx import Traced, about, quiet, traced
from limbeck.export.parity import FLOAT, prove, write_parity
from limbeck.export.whole import staged

__all__ = ["ProgramModel", "to_program"]

_NAMES = "limbeck.json"


class ProgramModel(nn.Module):
    """A `.pt2` file that is called like the module it was made from, with its inputs in order or by name.

    One output called "logits" comes back alone, any other as a mapping by name.

    Args:
        path: the file, as `to_program` wrote it.
        record: the record of its parity, where it was just made.

    Raises:
        ModelError: there is no such file, or it is no such program.
    """

    def __init__(self, path: str | Path, *, record: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.path, self.record = Path(path), dict(record or {})
        if not self.path.is_file():
            raise ModelError(problem("program", f"there is no file {str(path)!r}", "name a .pt2 file"))
        names = {_NAMES: ""}
        try:
            with quiet():
                self.program = torch.export.load(self.path, extra_files=names).module()
            self.columns: tuple[str, ...] = tuple(json.loads(names[_NAMES])["inputs"])
        except Exception as error:
            wrong = f"it cannot be read as a program of limbeck's ({' '.join(str(error).split())[:200]})"
            raise ModelError(problem(str(path), wrong, "export or copy the file again")) from None

    def forward(self, *values: Tensor, **named: Tensor) -> Any:
        """The program's answer."""
        return _alone(self.answer({**dict(zip(self.columns, values, strict=False)), **named}))

    def train(self, mode: bool = True) -> ProgramModel:  # noqa: ARG002 - as in torch
        """A program has one mode, that of evaluation, and stays in it."""
        return self

    def answer(self, batch: Named) -> dict[str, Tensor]:
        """The program's outputs by name, to inputs by name."""
        lacks = [name for name in self.columns if name not in batch]
        if lacks:
            mend = f"give {', '.join(self.columns)}"
            raise ModelError(problem(str(self.path), f"its input {lacks[0]!r} gets nothing", mend))
        return dict(self.program(*(batch[name] for name in self.columns)))


def _alone(answers: dict[str, Tensor]) -> Any:
    return answers["logits"] if list(answers) == ["logits"] else answers


def to_program(
    model: nn.Module,
    example: Example,
    path: str | Path,
    *,
    samples: Example | None = None,
    bound: Parity = FLOAT,
) -> ProgramModel:
    """Write a model as a torch program (`torch.export`), in evaluation mode, with the number of samples left free.

    The model stays as it is. The record of parity is written beside the file.

    Args:
        model: the module.
        example: a batch: a tensor, a tuple of tensors, or tensors by keyword, samples on the first axis.
        path: the file, which ends in `.pt2`.
        samples: real samples that parity is proved on, in the example's form; the example when None.
        bound: how far the program's answers may be from the model's.

    Raises:
        ModelError: the model cannot be exported, or the answers are beyond the bound; nothing is written then.
        CheckpointError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise ModelError(problem("program", f"{path.name!r} is no name for a program", "let it end in .pt2"))
    ready = traced(model, example, where="program")
    samples = ready.named(example if samples is None else samples)
    with staged(path) as file:
        free = ready.write(partial(_write, ready, file), lambda: ProgramModel(file).answer, where="program")
        parity = prove("program", ready.answer, ProgramModel(file).answer, samples, bound)
        batch = None if free else ready.size
        record = write_parity(file, parity, kind="program", **about(model, "torch"), batch=batch)
    return ProgramModel(path, record=record)


def _write(ready: Traced, path: Path, shapes: Any) -> None:
    program = torch.export.export(ready.model, ready.example, dynamic_shapes=shapes)
    torch.export.save(program, path, extra_files={_NAMES: json.dumps({"inputs": ready.inputs})})
