"""An ONNX file as a teacher, through ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from limbeck.core.normalize import Normalize
from limbeck.core.onnx import Array, OnnxFile
from limbeck.core.taps import Inputs, Outputs
from limbeck.core.types import Named
from limbeck.teachers.black_box import BlackBox
from limbeck.teachers.signal import FLOOR, Classes, Gives

__all__ = ["OnnxTeacher"]

_LOGITS = ("logits", "output", "outputs", "out", "prediction", "predictions", "scores", "probabilities")


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
        self._file = OnnxFile(path, where="teacher", why="an ONNX file as the teacher", threads=threads)

    @property
    def words(self) -> str:
        """The file's name."""
        return f"the ONNX file {self._file.path.name}"

    @property
    def form(self) -> Mapping[str, Any]:
        """The runtime's version, and where it runs."""
        return {"onnxruntime": self._file.version, "providers": self._file.providers}

    def about(self) -> dict[str, Any]:
        """The digest of the file and of the files that hold its weights."""
        return {"sha256": self._file.digest()}

    def ready(self, names: frozenset[str], batch: Named, device: torch.device | None) -> None:  # noqa: ARG002
        """Load the file where it was not, and hold the batch against its inputs.

        Raises:
            ModelError: the file is damaged, or its inputs don't fit the batch.
        """
        self._file.open(device)
        self._file.check(self._file.values(batch, self.inputs))

    def answer(self, batch: Named) -> dict[str, Array]:
        """The file's outputs by name."""
        self._file.open()
        found = self._file.run(self._file.arrays(self._file.values(batch, self.inputs)))
        if self.outputs is None:
            first = next((name for name in _LOGITS if name in found), next(iter(found)))
            found.setdefault("logits", found[first])
        return found

    def close(self) -> None:
        """Let go of the session and its memory."""
        self._file.close()
