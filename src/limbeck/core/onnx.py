"""An ONNX file and the session of ONNX Runtime that answers from it. Its inputs are checked before any work."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from limbeck.core.errors import ModelError, nearest, problem
from limbeck.core.extras import need
from limbeck.core.taps import Inputs
from limbeck.core.types import RESERVED, Named

__all__ = ["Array", "OnnxFile", "OnnxInput"]

_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(float16)": torch.float16,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}

Array = npt.NDArray[Any]


class OnnxInput(NamedTuple):
    """An input of the file. `batch` is its fixed number of samples, or None; `shape` has None where a side is free."""

    name: str
    dtype: torch.dtype
    batch: int | None
    shape: tuple[int | None, ...]


class OnnxFile:
    """A file that ONNX Runtime answers from. Its session is made when it is first needed.

    A file with a fixed number of samples is asked in parts of that size, the last of them filled up. Inputs take the
    file's types.

    Args:
        path: the file; weights in files beside it belong to it.
        where: what errors call what the file is for.
        why: the same in words, where the packages are missing.
        threads: of ONNX Runtime; as many as torch has when None.

    Raises:
        ModelError: there is no such file.
        ExtraError: ONNX Runtime is not installed.
    """

    def __init__(self, path: str | Path, *, where: str, why: str, threads: int | None = None) -> None:
        self.path, self.threads, self._why = Path(path), threads, why
        if not self.path.is_file():
            raise ModelError(problem(where, f"there is no file {str(path)!r}", "name an .onnx file"))
        self._runtime = need("onnxruntime", extra="onnx", why=why)
        self.session: Any = None
        self.inputs: tuple[OnnxInput, ...] = ()
        self.outputs: tuple[str, ...] = ()

    @property
    def version(self) -> str:
        """The runtime's."""
        return str(self._runtime.__version__)

    @property
    def providers(self) -> list[str] | None:
        """Where the session runs; None before it is made."""
        return None if self.session is None else list(self.session.get_providers())

    def digest(self) -> str:
        """The sha256 of the file and of the files that hold its weights."""
        total = hashlib.sha256()
        for path in (self.path, *self.beside()):
            try:
                with path.open("rb") as file:
                    total.update(hashlib.file_digest(file, "sha256").digest())
            except OSError as error:
                wrong = f"its weights {path.name!r} cannot be read ({error.strerror})"
                raise ModelError(problem(str(self.path), wrong, "put them beside the file")) from None
        return total.hexdigest()

    def beside(self) -> list[Path]:
        """The files beside it that hold its weights."""
        onnx = need("onnx", extra="onnx", why=self._why)
        try:
            names = sorted(set(_external(onnx.load(str(self.path), load_external_data=False).graph)))
        except Exception as error:
            raise self._damaged(error) from None
        return [self.path.parent / name for name in names]

    def _damaged(self, error: Exception) -> ModelError:
        wrong = f"it cannot be read as ONNX ({' '.join(str(error).split())[:200]})"
        return ModelError(problem(str(self.path), wrong, "export or copy the file again"))

    def open(self, device: torch.device | None = None, *, optimized: Path | None = None) -> None:
        """Make the session, where there is none.

        Args:
            device: a GPU is used where ONNX Runtime has one; anything else is the CPU.
            optimized: where the graph is written as the runtime runs it, after its own optimisation.

        Raises:
            ModelError: the file is damaged, or its inputs are no tensors of samples.
        """
        if self.session is not None:
            return
        options = self._runtime.SessionOptions()
        # As many threads as torch has, and none that spin while it waits: both share the cores with the student.
        options.intra_op_num_threads = self.threads or torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        wanted = ["CUDAExecutionProvider"] if device is not None and device.type == "cuda" else []
        there = self._runtime.get_available_providers()
        providers = [name for name in [*wanted, "CPUExecutionProvider"] if name in there]
        try:
            session = self._runtime.InferenceSession(str(self.path), options, providers=providers)
        except Exception as error:
            raise self._damaged(error) from None
        self.inputs = tuple(self._input(each) for each in session.get_inputs())
        sizes = {each.batch for each in self.inputs if each.batch is not None}
        if len(sizes) > 1:
            mend = "export it with one batch size, or a free one"
            wrong = f"its inputs have fixed batches of {sorted(sizes)}"
            raise ModelError(problem(str(self.path), wrong, mend))
        self.outputs = tuple(each.name for each in session.get_outputs() if each.type.startswith("tensor("))
        self.session = session

    def close(self) -> None:
        """Let go of the session and its memory."""
        self.session = None

    @property
    def batch(self) -> int | None:
        """The number of samples that it is made for; None where that is free."""
        return next((each.batch for each in self.inputs if each.batch is not None), None)

    def _input(self, given: Any) -> OnnxInput:
        if given.type not in _TYPES:
            wrong = f"its input {given.name!r} is a {given.type}"
            raise ModelError(problem(str(self.path), wrong, "give a file whose inputs are tensors of numbers"))
        if not given.shape:
            wrong = f"its input {given.name!r} is a single number, with no axis for samples"
            raise ModelError(problem(str(self.path), wrong, "export it with that number filled in"))
        sides = [side if isinstance(side, int) and side > 0 else None for side in given.shape]
        return OnnxInput(given.name, _TYPES[given.type], sides[0], tuple(sides[1:]))

    def check(self, values: list[Tensor]) -> None:
        """Hold tensors, in the file's order, against its inputs.

        Raises:
            ModelError: a shape or a type does not fit.
        """
        for given, value in zip(self.inputs, values, strict=True):
            self._check_input(given, value)

    def _check_input(self, given: OnnxInput, value: Tensor) -> None:
        shape = tuple(value.shape[1:])
        if not _fits(shape, given.shape):
            sides = ", ".join("any" if side is None else str(side) for side in given.shape)
            wrong = f"its input {given.name!r} takes ({sides}) a sample, the batch has {shape}"
            mend = "give data of that shape, or `inputs=` that makes it"
            if len(shape) == 3 and _fits((*shape[1:], shape[0]), given.shape):
                mend = 'its channels come last: give inputs=lambda batch: batch["x"].permute(0, 2, 3, 1)'
            raise ModelError(problem(str(self.path), wrong, mend))
        if value.dtype.is_floating_point != given.dtype.is_floating_point:
            wrong = f"its input {given.name!r} takes {_said(given.dtype)}, the batch has {_said(value.dtype)}"
            raise ModelError(problem(str(self.path), wrong, "give that column, or `inputs=` that makes it"))

    def values(self, batch: Named, inputs: Inputs = None) -> list[Tensor]:
        """The tensors of a batch that go in, in the file's order.

        Args:
            batch: tensors by column.
            inputs: which columns, in order, or as the file's name -> column, or a function of the batch that returns a
                tensor, a tuple in the file's order or a mapping by its names. None finds out.

        Raises:
            ModelError: an input gets nothing, or there are more columns than inputs.
        """
        names = [each.name for each in self.inputs]
        if callable(inputs):
            given = inputs(batch)
            if isinstance(given, Mapping):
                return [self._column(given, name) for name in names]
            values = list(given) if isinstance(given, tuple | list) else [given]
        elif isinstance(inputs, Mapping):
            return [self._column(batch, str(self._column(inputs, name))) for name in names]
        else:
            columns = list(inputs or self._columns(batch, names))
            values = [self._column(batch, column) for column in columns]
        if len(values) != len(names):
            wrong = f"it takes {', '.join(names)}, and {len(values)} columns go in"
            raise ModelError(problem(str(self.path), wrong, "say which with `inputs={its name: column}`"))
        return values

    def _columns(self, batch: Named, names: list[str]) -> list[str]:
        columns = [column for column in batch if column not in RESERVED]
        if all(name in columns for name in names):
            return names
        if all(c[0] == "x" and (c[1:] or "0").isdigit() for c in columns):
            return sorted(columns, key=lambda c: int(c[1:] or 0))
        return columns if len(columns) == len(names) == 1 else names

    def _column(self, batch: Mapping[str, Any], name: str) -> Any:
        if name not in batch:
            known = [column for column in batch if column not in RESERVED]
            raise ModelError(problem(str(self.path), f"its input {name!r} gets nothing", nearest(name, known)))
        return batch[name]

    def arrays(self, values: list[Tensor]) -> dict[str, Array]:
        """The tensors, in the file's order, as arrays of its types, by its names."""
        return {
            given.name: np.ascontiguousarray(value.detach().to("cpu", given.dtype).numpy())
            for given, value in zip(self.inputs, values, strict=True)
        }

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Its outputs by name."""
        return self._run(arrays) if self.batch is None else self._in_parts(arrays, self.batch)

    def _run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        return dict(zip(self.outputs, self.session.run(list(self.outputs), dict(arrays)), strict=True))

    def _in_parts(self, arrays: Mapping[str, Array], size: int) -> dict[str, Array]:
        """Parts of the size that the file is made for; the last sample fills up the last part."""
        total = len(next(iter(arrays.values())))
        rows = np.minimum(np.arange(math.ceil(total / size) * size), total - 1).reshape(-1, size)
        parts = [self._run({name: value[at] for name, value in arrays.items()}) for at in rows]
        for name, value in parts[0].items():
            if not value.ndim or len(value) != size:
                wrong = f"its output {name!r} has {value.shape} for {size} samples"
                raise ModelError(problem(str(self.path), wrong, "export it with one row a sample"))
        return {name: np.concatenate([part[name] for part in parts])[:total] for name in self.outputs}


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(w in (None, s) for s, w in zip(shape, wanted, strict=True))


def _said(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _external(graph: Any) -> Iterator[str]:
    """The files beside it that hold weights, those of inner graphs too."""
    for tensor in graph.initializer:
        yield from _locations(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            for tensor in (attribute.t, *attribute.tensors):
                yield from _locations(tensor)
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _external(inner)


def _locations(tensor: Any) -> Iterator[str]:
    if tensor.data_location == 1:  # TensorProto.EXTERNAL
        yield from (entry.value for entry in tensor.external_data if entry.key == "location")
