"""Teachers that can be asked and not looked into: what they all do around the question."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from limbeck.core.errors import LimbeckError, ModelError, nearest, problem
from limbeck.core.normalize import Normalize
from limbeck.core.setting import as_plain
from limbeck.core.taps import Inputs, Outputs, flatten_output
from limbeck.core.types import RESERVED, Named
from limbeck.teachers.signal import (
    FLOOR,
    Classes,
    Gives,
    as_logits,
    check_class_range,
    check_classes,
    check_gives,
    checked_floor,
    digest_of,
    pick_classes,
    plain_function,
    renormalized,
)

__all__ = ["BlackBox", "arguments"]


class BlackBox(ABC):
    """Something that answers a batch with arrays or tensors; called without gradient, its answers detached.

    Args:
        inputs: which columns go in: in order, as parameter -> column, or a function of the batch. None hands over `x`,
            or `x0, x1, …` in order, or the named columns as keywords.
        outputs: new name -> own name, or a function of what it returns.
        normalize: the input normalisation it was trained with.
        classes: which of its classes the student has, in the student's order.
        gives: what the main answer holds; None takes it for logits, and refuses what looks like probabilities.
        floor: the probability that stands for zero where a logarithm is taken.
    """

    noun: ClassVar[str] = "the teacher"

    def __init__(
        self,
        *,
        inputs: Inputs = None,
        outputs: Outputs = None,
        normalize: Normalize | None = None,
        classes: Classes | None = None,
        gives: Gives | None = None,
        floor: float = FLOOR,
    ) -> None:
        self.inputs, self.outputs = inputs, outputs
        self.normalize = normalize
        self.gives, self.floor = gives, checked_floor(gives, floor)
        self.offers: frozenset[str] = frozenset({"logits"})
        self._index = check_classes(classes)
        self._step = normalize

    @property
    @abstractmethod
    def words(self) -> str:
        """What it is, in a phrase."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """What decides its answers, beside the settings that all share."""

    @abstractmethod
    def answer(self, batch: Named) -> Any:
        """Whatever it returns for a batch in its own normalisation."""

    def ready(self, names: frozenset[str], batch: Named, device: torch.device | None) -> None:  # noqa: B027
        """Prepare to answer with these names, and refuse what cannot be; `batch` is in its own normalisation."""

    @property
    def form(self) -> Mapping[str, Any]:
        """Nothing that differs from machine to machine."""
        return {}

    def identity(self) -> dict[str, Any]:
        """The settings that all share, and what it is."""
        return {
            "teacher": type(self).__name__,
            "inputs": plain_function(self.inputs),
            "outputs": plain_function(self.outputs),
            "normalize": as_plain(self.normalize),
            "classes": None if self._index is None else self._index.tolist(),
            "gives": self.gives or "logits",
            "floor": self.floor,
            **self.about(),
        }

    def fingerprint(self) -> str:
        """A digest of the identity."""
        return digest_of(self.identity())

    def open(
        self,
        names: Iterable[str],
        example: Named,
        *,
        applied: Normalize | None = None,
        device: torch.device | None = None,
        samples: Named | None = None,  # noqa: ARG002 - there is no faster form to compare
    ) -> Named:
        """Answer `example` once, and refuse if a name in `names` is not in the answer.

        Raises:
            ModelError: it cannot be called with the batch, lacks a name, or answers with what cannot be used.
        """
        self.close()
        self._step = self.normalize.after(applied) if self.normalize else None
        names = frozenset(names)
        try:
            with torch.no_grad():
                self.ready(names, renormalized(example, self._step), device)
            signal = self._signal(example)
        except LimbeckError:
            raise
        except Exception as error:
            wrong = f"{self.noun} failed on the first batch: {type(error).__name__}: {error}"
            raise ModelError(problem("teacher", wrong, "make it take the batch's inputs and return logits")) from error
        self._check(signal, names, len(next(iter(example.values()))))
        signal = self._finished(signal)
        self.offers = frozenset(signal)
        return signal

    def _check(self, signal: Named, names: frozenset[str], samples: int) -> None:
        for name in sorted(names | {"logits"}):
            if name not in signal:
                wrong = f"{self.noun} returns nothing called {name!r}"
                raise ModelError(problem("teacher", wrong, nearest(name, signal)))
        logits = signal["logits"]
        if logits.dim() == 0 or len(logits) != samples:
            wrong = f"{self.noun} answers {samples} samples with {tuple(logits.shape)}"
            raise ModelError(problem("teacher", wrong, "return one row a sample"))
        check_gives(logits, self.gives, self.noun)
        check_class_range(signal, self._index)

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Let go of what `open` made."""

    def __call__(self, batch: Named) -> Named:
        """The signal for one batch, detached, on the batch's device."""
        return self._finished(self._signal(batch))

    @torch.no_grad()
    def _signal(self, batch: Named) -> dict[str, Tensor]:
        device = next(iter(batch.values())).device
        answer = self.answer(renormalized(batch, self._step))
        if callable(self.outputs):
            answer = self.outputs(answer)
        signal = {k: v.detach().to(device) for k, v in flatten_output(_tensors(answer)).items()}
        if isinstance(self.outputs, Mapping):
            for new, own in self.outputs.items():
                if own not in signal:
                    wrong = f"`outputs` names {own!r}, which {self.noun} does not return"
                    raise ModelError(problem("teacher", wrong, nearest(own, signal)))
                signal[new] = signal[own]
        if "logits" not in signal and signal:
            signal["logits"] = next(iter(signal.values()))
        return signal

    @torch.no_grad()
    def _finished(self, signal: dict[str, Tensor]) -> dict[str, Tensor]:
        logits = as_logits(signal["logits"], self.gives, self.floor)
        return pick_classes({**signal, "logits": logits}, self._index)


def arguments(batch: Named, inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a function is called with for this batch: positional arguments, and those by keyword.

    Raises:
        ModelError: `inputs` names a column that the batch has not.
    """
    if callable(inputs):
        given = inputs(batch)
        return (given if isinstance(given, tuple) else (given,)), {}
    columns = [k for k in batch if k not in RESERVED]
    for name in inputs.values() if isinstance(inputs, Mapping) else inputs or ():
        if name not in batch:
            wrong = f"`inputs` names {name!r}, which the batch has not"
            raise ModelError(problem("teacher", wrong, nearest(name, columns)))
    if isinstance(inputs, Mapping):
        return (), {parameter: batch[k] for parameter, k in inputs.items()}
    if inputs:
        return tuple(batch[c] for c in inputs), {}
    if all(c == "x" or (c[0] == "x" and c[1:].isdigit()) for c in columns):
        return tuple(batch[c] for c in sorted(columns, key=lambda c: int(c[1:] or 0))), {}
    return (), {c: batch[c] for c in columns}


def _tensors(value: Any) -> Any:
    """Arrays become tensors, wherever they are in the answer."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        # A read-only array, as JAX returns, would make a tensor that warns.
        return torch.from_numpy(value.copy() if not value.flags.writeable else np.ascontiguousarray(value))
    if isinstance(value, Mapping):
        return {k: _tensors(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(*map(_tensors, value)) if hasattr(value, "_fields") else [_tensors(v) for v in value]
    if hasattr(value, "__array__"):
        return _tensors(np.asarray(value))
    return value
