"""A Keras 3 model on the torch backend as the module that the rest of the library expects.

Keras is never imported from here: a model of its kind can only be met where it has been.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from typing import Any

from torch import nn

from limbeck.core.errors import ModelError, problem

__all__ = ["KerasModule", "as_module", "backend_of", "is_keras", "layers_of"]


def is_keras(value: Any) -> bool:
    """Whether it is a Keras model, of any backend."""
    keras = sys.modules.get("keras")
    return isinstance(value, getattr(keras, "Model", ()))


def backend_of() -> str:
    """The backend that Keras runs on in this process."""
    return str(sys.modules["keras"].backend.backend())


def layers_of(model: Any) -> dict[str, Any]:
    """The layers of a Keras model by name, those of inner models with dots: "block.conv"."""
    found = {}
    for layer in model.layers:
        found[layer.name] = layer
        if hasattr(layer, "layers"):
            found |= {f"{layer.name}.{name}": inner for name, inner in layers_of(layer).items()}
    return found


def as_module(model: Any) -> Any:
    """A Keras model as a `KerasModule`; anything else passes through."""
    return KerasModule(model) if is_keras(model) else model


class KerasModule(nn.Module):
    """A built Keras model that heeds `train()` and `eval()`, shows its layers, and holds each weight under one name.

    Keras reads its mode from an argument and not from the module's flag, keeps its layers where torch doesn't look, and
    lists its weights twice. The weights are the model's own: training this trains it.

    Args:
        model: a Keras 3 model on the torch backend, built.

    Raises:
        ModelError: Keras runs on another backend, or the model has no weights yet.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        name = type(model).__qualname__
        if backend_of() != "torch":
            wrong = f"the Keras model {name} runs on {backend_of()}, and only torch can be trained here"
            raise ModelError(problem("model", wrong, 'set KERAS_BACKEND="torch" before Keras is imported'))
        if not model.built or not model.variables:
            mend = "call it on a batch, or give it an Input layer"
            raise ModelError(problem("model", f"the Keras model {name} is not built, so it has no weights", mend))
        self.__dict__["keras"] = model  # no child: torch would count the weights again, under Keras's own names
        for number, variable in enumerate(model.variables):
            # By place: Keras numbers its own paths through the process, so the same model built twice has other ones.
            self.register_parameter(f"{number:03d}_{variable.name.replace('.', '_')}", variable.value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's answer, in the mode that the flag says."""
        return self.__dict__["keras"](*args, training=self.training, **kwargs)

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """This module, and the model's layers by their names."""
        memo = set() if memo is None else memo
        start = f"{prefix}." if prefix else ""
        inner = {f"{start}{name}": layer for name, layer in layers_of(self.__dict__["keras"]).items()}
        for name, module in ((prefix, self), *inner.items()):
            if module not in memo or not remove_duplicate:
                memo.add(module)
                yield name, module

    def __deepcopy__(self, memo: dict[int, Any]) -> KerasModule:
        copied = KerasModule(copy.deepcopy(self.__dict__["keras"], memo))
        copied.training = self.training
        return copied
