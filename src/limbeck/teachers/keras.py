"""A Keras 3 model as a teacher, on whichever backend Keras runs."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.core.errors import ModelError, nearest, problem
from limbeck.core.keras import KerasModule, backend_of, layers_of
from limbeck.core.normalize import Normalize
from limbeck.core.taps import Inputs, Outputs, flatten_output
from limbeck.core.types import Named
from limbeck.teachers.black_box import BlackBox, arguments
from limbeck.teachers.signal import FLOOR, Classes, Gives

__all__ = ["KerasTeacher"]


class KerasTeacher(BlackBox):
    """A Keras model that answers with `training=False`, and can be read at any of its layers by name.

    On the torch backend the tensors stay where they are; any other is reached through NumPy arrays. Weights, flags and
    hooks are as they were after `close`. A model that ends in a softmax `gives="probabilities"`.

    Args:
        model: built, or built by its first batch.
        inputs: which columns go in. Images come with channels first here; a model that wants them last takes
            `inputs=lambda batch: batch["x"].permute(0, 2, 3, 1)`.
    """

    noun = "the Keras model"

    def __init__(
        self,
        model: Any,
        *,
        inputs: Inputs = None,
        outputs: Outputs = None,
        normalize: Normalize | None = None,
        classes: Classes | None = None,
        gives: Gives | None = None,
        floor: float = FLOOR,
    ) -> None:
        super().__init__(inputs=inputs, outputs=outputs, normalize=normalize, classes=classes, gives=gives, floor=floor)
        self.model: Any = model.__dict__["keras"] if isinstance(model, KerasModule) else model
        self.offers = frozenset({"logits", *layers_of(self.model)})
        self._taps: tuple[str, ...] = ()
        self._cut: Any = None

    @property
    def words(self) -> str:
        """Its class and name."""
        return f"the Keras model {self.model.name}"

    @property
    def form(self) -> Mapping[str, Any]:
        """Keras's version and backend."""
        return {"keras": str(sys.modules["keras"].__version__), "backend": backend_of()}

    def about(self) -> dict[str, Any]:
        """Class, architecture, and a digest of all weights in order.

        A weight that Keras itself moves at each call (the state of a dropout's seed) decides no answer and is left out.
        """
        weights = hashlib.sha256()
        for variable in self.model.variables:
            value = np.ascontiguousarray(_numpy(variable.value))
            if not variable.path.endswith("seed_generator_state"):
                weights.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
        try:
            built = hashlib.sha256(_nameless(self.model.get_config()).encode())
        except NotImplementedError:  # a class of its own, which says nothing of what it is made of
            built = hashlib.sha256()
        return {
            "model": type(self.model).__qualname__,
            "architecture": built.hexdigest(),
            "weights": weights.hexdigest(),
        }

    def ready(self, names: frozenset[str], batch: Named, device: torch.device | None) -> None:  # noqa: ARG002
        """Find the layers among the names.

        Raises:
            ModelError: a layer is asked for that cannot be read on this backend.
        """
        positional, keyword = arguments(batch, self.inputs)
        if not self.model.built:
            self._called(positional, keyword)
        known = layers_of(self.model)
        self._taps = tuple(sorted(name for name in names if name in known))
        if self._taps and not isinstance(self.model, nn.Module):
            self._cut = self._with_outputs({name: known[name] for name in self._taps})

    def _with_outputs(self, layers: Mapping[str, Any]) -> Any:
        """The same model with these layers as further outputs: hooks are torch's alone."""
        try:
            first = self.model.outputs[0]
            outputs = {"logits": first, **{name: layer.output for name, layer in layers.items()}}
            given = self.model.inputs
            return sys.modules["keras"].Model(given[0] if len(given) == 1 else given, outputs)
        except Exception as error:
            why = " ".join(str(error).split())[:120]
            wrong = f"on {backend_of()} its layers {', '.join(layers)} cannot be read ({why})"
            mend = "read layers of the model itself, not of one inside it, or let `call` return them by name"
            raise ModelError(problem("teacher", wrong, mend)) from None

    def answer(self, batch: Named) -> dict[str, Any]:
        """What the model returns, and what its layers did."""
        positional, keyword = arguments(batch, self.inputs)
        seen: dict[str, Tensor] = {}
        with self._listening(seen):
            said = self._called(positional, keyword)
        flat = flatten_output(said)
        missing = [name for name in self._taps if name not in seen and name not in flat]
        if missing:
            wrong = f"the layer {missing[0]!r} was not called"
            raise ModelError(problem("teacher", wrong, nearest(missing[0], seen)))
        if self.outputs is None and "logits" not in flat:
            flat = {"logits": next(iter(flat.values())), **flat}
        return {**flat, **seen}

    def _called(self, positional: tuple[Any, ...], keyword: dict[str, Any]) -> Any:
        if isinstance(self.model, nn.Module):
            variables: Any = self.model.variables
            device = next((variable.value.device for variable in variables), None)
            here = [value.to(device) if isinstance(value, Tensor) else value for value in positional]
            there = {k: value.to(device) if isinstance(value, Tensor) else value for k, value in keyword.items()}
            # One input goes in as it is, several as the list that a model built from several inputs takes.
            return self.model(here[0] if len(here) == 1 else here, training=False) if here else self._keyword(there)
        arrays = [_numpy(value) for value in positional]
        given = (arrays[0] if len(arrays) == 1 else arrays) if arrays else {k: _numpy(v) for k, v in keyword.items()}
        return _all_numpy((self._cut or self.model)(given, training=False))

    def _keyword(self, columns: dict[str, Any]) -> Any:
        """Named columns: a functional model takes them as a dict of its inputs."""
        return self.model(columns, training=False)

    @contextmanager
    def _listening(self, seen: dict[str, Tensor]) -> Iterator[None]:
        known = layers_of(self.model) if isinstance(self.model, nn.Module) else {}
        handles = [known[name].register_forward_hook(partial(_keep, seen, name)) for name in self._taps if known]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def close(self) -> None:
        """No layer is read any more."""
        self._taps, self._cut = (), None


def _keep(seen: dict[str, Tensor], name: str, _layer: nn.Module, _args: Any, output: Any) -> None:
    seen[name] = next(iter(flatten_output(output).values())).clone()


def _nameless(config: Any) -> str:
    """A configuration as text, each layer's name replaced by its place: Keras numbers names through the process."""
    text = json.dumps(config, sort_keys=True, default=str)
    for place, name in enumerate(dict.fromkeys(_names(config))):
        text = text.replace(json.dumps(name), f'"#{place}"')
    return text


def _names(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        if isinstance(config.get("name"), str) and len(config) > 1:
            yield config["name"]
        for value in config.values():
            yield from _names(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _names(value)


def _numpy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().contiguous().numpy()
    return np.asarray(value)


def _all_numpy(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _all_numpy(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_all_numpy(v) for v in value]
    return torch.from_numpy(np.array(value))
