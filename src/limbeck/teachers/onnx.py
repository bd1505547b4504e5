"""An ONNX file as a teacher, through ONNX Runtime."""

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
from limbeck.core.normalize import Normalize
from limbeck.core.taps import Inputs, Outputs
from limbeck.core.types import RESERVED, Named
from limbeck.teachers.black_box import BlackBox
from limbeck.teachers.signal import FLOOR, Classes, Gives

__all__ = ["OnnxTeacher"]

_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(float16)": torch.float16,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}
_LOGITS = ("logits", "output", "outputs", "out", "prediction", "predictions", "scores", "probabilities")

Array = npt.NDArray[Any]


class _Input(NamedTuple):
    """An input of the file. `batch` is its fixed number of samples, or None; `shape` has None where a side is free."""

    name: str
    dtype: torch.dtype
    batch: int | None
    shape: tuple[int | None, ...]


class OnnxTeacher(BlackBox):
    """A file that ONNX Runtime answers from, with its outputs by name.

    A file with a fixed number of samples is asked in parts of that size, the last of them filled up. Inputs take the
    file's types; shapes are checked before any work. An inner value can be read where the file has it as an output.

    Args:
        path: the file; weights in files beside it belong to it.
        inputs: which columns go in: in order, as the file's name -> column, or a function of the batch that returns a
            tensor, a tuple in the file's order or a mapping by its names. None finds out.
        outputs: new name -> the file's name; None takes the output called "logits", or a name like it, or the first.
        threads: of ONNX Runtime; as many as torch has when None.

    Raises:
        ModelError: there is no such file, or it is no ONNX file.
    """

    noun = "the ONNX file"

    def __init__(
        self,
        path: str | Path,
        *,
        inputs: Inputs = None,
        outputs: Outputs = None,
        normalize: Normalize | None = None,
        classes: Classes | None = None,
        gives: Gives | None = None,
        floor: float = FLOOR,
        threads: int | None = None,
    ) -> None:
        super().__init__(inputs=inputs, outputs=outputs, normalize=normalize, classes=classes, gives=gives, floor=floor)
        self.path, self.threads = Path(path), threads
        if not self.path.is_file():
            mend = "name an .onnx file"
            raise ModelError(problem("teacher", f"there is no file {str(path)!r}", mend))
        self._runtime = need("onnxruntime", extra="onnx", why="an ONNX file as the teacher")
        self._session: Any = None
        self._inputs: tuple[_Input, ...] = ()
        self._outputs: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """The file's name."""
        return f"the ONNX file {self.path.name}"

    @property
    def form(self) -> Mapping[str, Any]:
        """The runtime's version, and where it runs."""
        providers = self._session.get_providers() if self._session is not None else None
        return {"onnxruntime": self._runtime.__version__, "providers": providers}

    def about(self) -> dict[str, Any]:
        """The digest of the file and of the files that hold its weights."""
        return {"sha256": self._digest()}

    def _digest(self) -> str:
        onnx = need("onnx", extra="onnx", why="an ONNX file as the teacher")
        total = hashlib.sha256()
        try:
            names = sorted(set(_external(onnx.load(str(self.path), load_external_data=False).graph)))
        except Exception as error:
            raise self._damaged(error) from None
        for path in (self.path, *(self.path.parent / name for name in names)):
            try:
                with path.open("rb") as file:
                    total.update(hashlib.file_digest(file, "sha256").digest())
            except OSError as error:
                wrong = f"its weights {path.name!r} cannot be read ({error.strerror})"
                raise ModelError(problem(str(self.path), wrong, "put them beside the file")) from None
        return total.hexdigest()

    def _damaged(self, error: Exception) -> ModelError:
        wrong = f"it cannot be read as ONNX ({' '.join(str(error).split())[:200]})"
        return ModelError(problem(str(self.path), wrong, "export or copy the file again"))

    def ready(self, names: frozenset[str], batch: Named, device: torch.device | None) -> None:  # noqa: ARG002
        """Load the file where it was not, and hold the batch against its inputs.

        Raises:
            ModelError: the file is damaged, or its inputs don't fit the batch.
        """
        if self._session is None:
            self._load(device)
        for given, value in zip(self._inputs, self._values(batch), strict=True):
            self._check_input(given, value)

    def _load(self, device: torch.device | None) -> None:
        options = self._runtime.SessionOptions()
        # As many threads as torch has, and none that spin while it waits: both share the cores with the student.
        options.intra_op_num_threads = self.threads or torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        wanted = ["CUDAExecutionProvider"] if device is not None and device.type == "cuda" else []
        there = self._runtime.get_available_providers()
        providers = [name for name in [*wanted, "CPUExecutionProvider"] if name in there]
        try:
            session = self._runtime.InferenceSession(str(self.path), options, providers=providers)
        except Exception as error:
            raise self._damaged(error) from None
        self._inputs = tuple(self._input(each) for each in session.get_inputs())
        sizes = {each.batch for each in self._inputs if each.batch is not None}
        if len(sizes) > 1:
            mend = "export it with one batch size, or a free one"
            wrong = f"its inputs have fixed batches of {sorted(sizes)}"
            raise ModelError(problem(str(self.path), wrong, mend))
        self._outputs = tuple(each.name for each in session.get_outputs() if each.type.startswith("tensor("))
        self._session = session

    def _input(self, given: Any) -> _Input:
        if given.type not in _TYPES:
            wrong = f"its input {given.name!r} is a {given.type}"
            raise ModelError(problem(str(self.path), wrong, "give a file whose inputs are tensors of numbers"))
        if not given.shape:
            wrong = f"its input {given.name!r} is a single number, with no axis for samples"
            raise ModelError(problem(str(self.path), wrong, "export it with that number filled in"))
        sides = [side if isinstance(side, int) and side > 0 else None for side in given.shape]
        return _Input(given.name, _TYPES[given.type], sides[0], tuple(sides[1:]))

    def _check_input(self, given: _Input, value: Tensor) -> None:
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

    def _values(self, batch: Named) -> list[Tensor]:
        """The tensors that go in, in the file's order."""
        names = [each.name for each in self._inputs]
        if callable(self.inputs):
            given = self.inputs(batch)
            if isinstance(given, Mapping):
                return [self._column(given, name) for name in names]
            values = list(given) if isinstance(given, tuple | list) else [given]
        elif isinstance(self.inputs, Mapping):
            return [self._column(batch, str(self._column(self.inputs, name))) for name in names]
        else:
            columns = list(self.inputs or self._columns(batch, names))
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

    def answer(self, batch: Named) -> dict[str, Array]:
        """The file's outputs by name."""
        if self._session is None:
            self._load(None)
        arrays = {
            given.name: np.ascontiguousarray(value.detach().to("cpu", given.dtype).numpy())
            for given, value in zip(self._inputs, self._values(batch), strict=True)
        }
        fixed = next((each.batch for each in self._inputs if each.batch is not None), None)
        found = self._run(arrays) if fixed is None else self._in_parts(arrays, fixed)
        if self.outputs is None:
            first = next((name for name in _LOGITS if name in found), next(iter(found)))
            found.setdefault("logits", found[first])
        return found

    def _run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        return dict(zip(self._outputs, self._session.run(list(self._outputs), dict(arrays)), strict=True))

    def _in_parts(self, arrays: Mapping[str, Array], size: int) -> dict[str, Array]:
        """Parts of the size that the file is made for; the last sample fills up the last part."""
        total = len(next(iter(arrays.values())))
        rows = np.minimum(np.arange(math.ceil(total / size) * size), total - 1).reshape(-1, size)
        parts = [self._run({name: value[at] for name, value in arrays.items()}) for at in rows]
        for name, value in parts[0].items():
            if not value.ndim or len(value) != size:
                wrong = f"its output {name!r} has {value.shape} for {size} samples"
                raise ModelError(problem(str(self.path), wrong, "export it with one row a sample"))
        return {name: np.concatenate([part[name] for part in parts])[:total] for name in self._outputs}

    def close(self) -> None:
        """Let go of the session and its memory."""
        self._session = None


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
