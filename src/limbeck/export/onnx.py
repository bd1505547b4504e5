"""A module as an ONNX file, and an ONNX file as a module."""

from __future__ import annotations

import copy
import inspect
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.core.errors import ModelError, problem
from limbeck.core.extras import need
from limbeck.core.onnx import Array, OnnxFile
from limbeck.core.parity import Parity, measure
from limbeck.core.records import write_json
from limbeck.core.taps import Inputs, flatten_output
from limbeck.core.types import RESERVED, Named
from limbeck.evaluation.macs import Example
from limbeck.export.parity import FLOAT, beside, prove, write_parity
from limbeck.export.whole import staged

__all__ = ["OnnxModel", "Traced", "about", "quiet", "to_onnx", "traced"]


class OnnxModel(nn.Module):
    """An ONNX file that is called like the module it was made from. It runs on the CPU, and has nothing to train.

    Called with tensors in the file's order, or by the file's names; with arrays it answers with arrays. One output
    called "logits" comes back alone, any other as a mapping by name. A file that is made for a fixed number of samples
    is asked in parts.

    Args:
        path: the file.
        threads: of ONNX Runtime; as many as torch has when None.
        record: the record of its parity, where it was just made.

    Raises:
        ModelError: there is no such file, or it is no ONNX file.
        ExtraError: ONNX Runtime is not installed.
    """

    def __init__(
        self, path: str | Path, *, threads: int | None = None, record: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.path, self.threads, self.record = Path(path), threads, dict(record or {})
        self._file = self._opened()

    def _opened(self) -> OnnxFile:
        file = OnnxFile(self.path, where="model", why="an ONNX file", threads=self.threads)
        file.open()
        return file

    @property
    def bytes(self) -> int:
        """What the file takes on disk, with the files that hold its weights."""
        return sum(file.stat().st_size for file in (self.path, *self._file.beside()))

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of its inputs, in order."""
        return tuple(each.name for each in self._file.inputs)

    def forward(self, *values: Tensor | Array, **named: Tensor | Array) -> Any:
        """The file's answer.

        Raises:
            ModelError: the inputs don't fit the file's.
        """
        given = {name: torch.as_tensor(value) for name, value in named.items()}
        given |= {f"x{i}" if len(values) > 1 else "x": torch.as_tensor(value) for i, value in enumerate(values)}
        answers: dict[str, Any] = self.answer(given)
        if any(isinstance(value, np.ndarray) for value in (*values, *named.values())):
            answers = {name: value.numpy() for name, value in answers.items()}
        return answers["logits"] if list(answers) == ["logits"] else answers

    def answer(self, batch: Named) -> dict[str, Tensor]:
        """The file's outputs by name, to inputs by name, on their device."""
        tensors = self.arguments(batch)
        found = self._file.run(self._file.arrays(tensors))
        return {name: torch.from_numpy(value).to(tensors[0].device) for name, value in found.items()}

    def arguments(self, batch: Named, inputs: Inputs = None) -> list[Tensor]:
        """The columns of a batch that go in, in the file's order.

        Raises:
            ModelError: an input gets nothing, or what does not fit.
        """
        tensors = self._file.values(batch, inputs)
        self._file.check(tensors)
        return tensors

    def feed(self, batch: Named) -> dict[str, Array]:
        """The first samples of a batch as the runtime takes them: one, or as many as the file is made for."""
        rows = torch.arange(self._file.batch or 1)
        return self._file.arrays([value[rows % len(value)] for value in self.arguments(batch)])

    def copy_to(self, path: Path) -> OnnxModel:
        """The same file, with those that hold its weights and its record, under another name.

        Raises:
            CheckpointError: it cannot be written.
        """
        with staged(path) as file:
            shutil.copyfile(self.path, file)
        if self.record:
            write_json(beside(path), self.record)
        return OnnxModel(path, threads=self.threads, record=self.record)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_file"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)  # a copy makes a session of its own
        self._file = self._opened()

    def extra_repr(self) -> str:
        """The file's name."""
        return str(self.path)


class Traced(NamedTuple):
    """What an exporter needs of a model: a private copy that takes positional tensors, and its names."""

    model: nn.Module
    """`tensors in order -> mapping by name`, on the CPU, in evaluation mode."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    example: tuple[Tensor, ...]
    """At least two samples, so that no exporter takes the one for a fixed number."""
    batched: tuple[bool, ...]
    """Which inputs have the samples on their first axis."""

    @property
    def size(self) -> int:
        """Samples of the example."""
        return len(self.example[0])

    def answer(self, batch: Named) -> Named:
        """The copy's answers to inputs by name."""
        return cast(Named, self.model(*(batch[name] for name in self.inputs)))

    def named(self, example: Example) -> dict[str, Tensor]:
        """An example as inputs by name."""
        values = _given(self.model.model, example).values()  # type: ignore[arg-type]
        return dict(zip(self.inputs, (value.cpu() for value in values), strict=True))

    def write(
        self, write: Callable[[Any], None], reread: Callable[[], Callable[[Named], Named]], *, where: str
    ) -> bool:
        """Export with the number of samples left free where that can be, else with the example's; whether it is free.

        Args:
            write: exports with these dynamic shapes.
            reread: what the written file answers with.
            where: what errors call it.

        Raises:
            ModelError: the model cannot be exported either way.
        """
        dim = torch.export.Dim("batch")
        free = (tuple({0: dim} if has else None for has in self.batched),)
        faults: list[Exception] = []
        for shapes in (free, None):
            try:
                with quiet(), torch.no_grad():
                    write(shapes)
                if shapes is None or self._holds(reread()):
                    return shapes is not None
            except OSError:
                raise
            except Exception as error:
                faults.append(error)
        said = str(faults[-1].__cause__ or faults[-1]).strip().splitlines()
        name = type(self.model.model).__name__
        wrong = f"{name} cannot be exported ({said[0] if said else type(faults[-1]).__name__})"
        mend = "take out what depends on the values of tensors, or what is no part of torch"
        raise ModelError(problem(where, wrong, mend)) from faults[-1]

    def _holds(self, exported: Callable[[Named], Named]) -> bool:
        """Whether it answers other numbers of samples as the model does: a tracer can take a number for a constant."""
        for count in (1, self.size + 1):
            rows = torch.arange(count) % self.size
            values = (x[rows] if has else x for x, has in zip(self.example, self.batched, strict=True))
            batch = dict(zip(self.inputs, values, strict=True))
            try:
                measured = measure(self.answer, exported, batch, outputs=self.outputs, layers=())
            except Exception:
                return False
            if not measured.within(FLOAT):
                return False
        return True


class _Flat(nn.Module):
    """A model that takes its inputs in order and answers with a flat mapping."""

    def __init__(self, model: nn.Module, positional: int, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self._positional, self._names = model, positional, names

    def forward(self, *values: Tensor) -> dict[str, Tensor]:
        """Answers by name."""
        keyword = dict(zip(self._names[self._positional :], values[self._positional :], strict=True))
        return flatten_output(self.model(*values[: self._positional], **keyword))


def traced(model: nn.Module, example: Example, *, where: str) -> Traced:
    """A private copy of a model, ready for an exporter; the model stays as it is.

    Raises:
        ModelError: the model cannot be copied, or called on the example.
    """
    given = _given(model, example)
    if not given or not all(isinstance(value, Tensor) and value.dim() for value in given.values()):
        raise ModelError(problem(where, "the example holds what is no tensor of samples", "give tensors alone"))
    positional = 0 if isinstance(example, Mapping) else len(given)
    size = len(next(iter(given.values())))
    batched = tuple(len(value) == size for value in given.values())
    values = tuple(
        torch.cat([value, value]) if size == 1 and free else value
        for value, free in zip((value.detach().cpu() for value in given.values()), batched, strict=True)
    )
    try:
        flat = _Flat(copy.deepcopy(model).cpu(), positional, tuple(given)).eval().requires_grad_(False)
        with torch.no_grad(), quiet():
            outputs = tuple(flat(*values))
    except Exception as error:
        wrong = f"{type(model).__name__} cannot be called on the example ({type(error).__name__}: {error})"
        raise ModelError(problem(where, wrong, "give a batch as the model's forward takes it")) from error
    return Traced(flat, tuple(given), outputs, values, batched)


def _given(model: nn.Module, example: Example) -> dict[str, Tensor]:
    """The example by the names of the model's parameters, in order."""
    if isinstance(example, Mapping):
        return {name: value for name, value in example.items() if name not in RESERVED}
    values = (example,) if isinstance(example, Tensor) else tuple(example)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [name for name, each in inspect.signature(model.forward).parameters.items() if each.kind in kinds]
    names += [f"x{i}" for i in range(len(names), len(values))]
    return dict(zip(names, values, strict=False))


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters and quantisers tell of their own insides, which is no news to a user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "")]
    levels = [logger.level for logger in loggers]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        # The fused encoder layer is one operation, which no exporter knows.
        torch.backends.mha.set_fastpath_enabled(False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def to_onnx(
    model: nn.Module,
    example: Example,
    path: str | Path,
    *,
    samples: Example | None = None,
    bound: Parity = FLOAT,
) -> OnnxModel:
    """Write a model as an ONNX file, in evaluation mode and its own precision, with the number of samples left free.

    Batch norms are folded into the convolutions before them. Inputs have the names of the model's parameters; an answer
    that is one tensor is called "logits". All other sides are those of the example. The model stays as it is. The
    record of parity is written beside the file. Where the number of samples cannot be left free, it is that of the
    example, and the record says so.

    Args:
        model: the module.
        example: a batch: a tensor, a tuple of tensors, or tensors by keyword, samples on the first axis.
        path: the file.
        samples: real samples that parity is proved on, in the example's form; the example when None.
        bound: how far the file's answers may be from the model's.

    Raises:
        ModelError: the model cannot be exported, or the file's answers are beyond the bound; nothing is written then.
        CheckpointError: the file cannot be written.
        ExtraError: the packages are not installed.
    """
    path = Path(path)
    for package in ("onnx", "onnxscript", "onnxruntime"):
        need(package, extra="onnx", why="export to ONNX")
    ready = traced(model, example, where="export to ONNX")
    samples = ready.named(example if samples is None else samples)
    with staged(path) as file:
        free = ready.write(partial(_write, ready, file), lambda: OnnxModel(file).answer, where="export to ONNX")
        parity = prove("export to ONNX", ready.answer, OnnxModel(file).answer, samples, bound)
        record = write_parity(file, parity, kind="onnx", **about(model), batch=None if free else ready.size)
    return OnnxModel(path, record=record)


def about(model: nn.Module, *packages: str) -> dict[str, Any]:
    """What a record says of the model and of the packages that it was made with."""
    versions = {name: version(name) for name in packages or ("torch", "onnx", "onnxruntime")}
    return {"model": type(model).__qualname__, "versions": versions}


def _write(ready: Traced, path: Path, shapes: Any) -> None:
    program = torch.onnx.export(
        ready.model,
        ready.example,
        dynamo=True,
        dynamic_shapes=shapes,
        input_names=list(ready.inputs),
        output_names=list(ready.outputs),
        verbose=False,
    )
    assert program is not None
    _forget(program.model)
    program.save(path)


def _forget(graphs: Any) -> None:
    """Take out what an exporter notes of its way: files and lines of this machine, as large as 8-bit weights."""
    for graph in graphs.graphs():
        graph.metadata_props.clear()
        for node in graph:
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()
