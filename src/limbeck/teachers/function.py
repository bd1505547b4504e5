"""A plain function as a teacher: any framework, any service, any rule."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.core.errors import ModelError, nearest, problem
from limbeck.core.normalize import Normalize
from limbeck.core.taps import Inputs, Outputs, flatten_output
from limbeck.core.types import RESERVED, Named
from limbeck.teachers.signal import Classes, check_classes, named_classes, pick_classes, renormalized

__all__ = ["FunctionTeacher"]


class FunctionTeacher:
    """A function from inputs to logits, or to named tensors or arrays; called without gradient, its answers detached.

    The inputs are handed over in order (`x`, or `x0, x1, …`, or the named columns as keywords). It can't be looked
    into, so terms on inner layers need a function that returns those layers by name.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        inputs: Inputs = None,
        outputs: Outputs = None,
        normalize: Normalize | None = None,
        classes: Classes | None = None,
    ) -> None:
        self.function = function
        self.normalize = normalize
        self.offers: frozenset[str] = frozenset({"logits"})
        self.inputs, self.outputs = inputs, outputs
        self._index = check_classes(classes)
        self._step = normalize

    def fingerprint(self) -> str:
        """A digest of the function's name and source; what it closes over cannot be seen."""
        try:
            text = inspect.getsource(self.function)
        except (OSError, TypeError):
            text = repr(type(self.function))
        name = getattr(self.function, "__qualname__", "")
        return hashlib.sha256(f"{name}/{text}/{self.normalize}/{named_classes(self._index)}".encode()).hexdigest()

    def open(
        self,
        names: Iterable[str],
        example: Named,
        *,
        applied: Normalize | None = None,
        device: torch.device | None = None,  # noqa: ARG002 - a function decides for itself
        precision: torch.dtype | None = None,  # noqa: ARG002
        channels_last: bool = False,  # noqa: ARG002
    ) -> Named:
        """Answer `example` once, and refuse if a name in `names` is not in the answer.

        Raises:
            ModelError: it cannot be called with the batch, or lacks a name.
        """
        self._step = self.normalize.after(applied) if self.normalize else None
        try:
            signal = self(example)
        except ModelError:
            raise
        except Exception as error:
            wrong = f"the function failed on the first batch: {type(error).__name__}: {error}"
            raise ModelError(problem("teacher", wrong, "make it take the batch's inputs and return logits")) from error
        self.offers = frozenset(signal)
        for name in names:
            if name not in signal:
                wrong = f"the function returns nothing called {name!r}"
                raise ModelError(problem("teacher", wrong, nearest(name, signal)))
        return signal

    def close(self) -> None:
        """Nothing is held."""

    @torch.no_grad()
    def __call__(self, batch: Named) -> Named:
        """The signal for one batch, detached, on the batch's device."""
        device = next(iter(batch.values())).device
        answer = self._call(renormalized(batch, self._step))
        if callable(self.outputs):
            answer = self.outputs(answer)
        signal = {k: v.detach().to(device) for k, v in flatten_output(_tensors(answer)).items()}
        if isinstance(self.outputs, Mapping):
            signal.update({new: signal[own] for new, own in self.outputs.items()})
        if "logits" not in signal and signal:
            signal["logits"] = next(iter(signal.values()))
        return pick_classes(signal, self._index)

    def _call(self, batch: Named) -> Any:
        if callable(self.inputs):
            args = self.inputs(batch)
            return self.function(*args) if isinstance(args, tuple) else self.function(args)
        if isinstance(self.inputs, Mapping):
            return self.function(**{parameter: batch[k] for parameter, k in self.inputs.items()})
        columns = list(self.inputs) if self.inputs else [k for k in batch if k not in RESERVED]
        if all(c[0] == "x" and (c[1:].isdigit() or c == "x") for c in columns) or self.inputs:
            return self.function(*(batch[c] for c in columns))
        return self.function(**{c: batch[c] for c in columns})


def _tensors(value: Any) -> Any:
    """Arrays become tensors, wherever they are in the answer."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, Mapping):
        return {k: _tensors(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_tensors(v) for v in value]
    return value
