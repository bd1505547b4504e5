"""A plain function as a teacher: any framework, any service, any rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.core.errors import ConfigError, problem
from limbeck.core.normalize import Normalize
from limbeck.core.taps import Inputs, Outputs
from limbeck.core.types import Named
from limbeck.teachers.black_box import BlackBox, arguments
from limbeck.teachers.signal import FLOOR, Classes, Gives, plain_function

__all__ = ["FunctionTeacher"]


class FunctionTeacher(BlackBox):
    """A function from inputs to logits, or to named tensors or arrays; called without gradient, its answers detached.

    The inputs are handed over in order (`x`, or `x0, x1, …`, or the named columns as keywords). It can't be looked
    into, so terms on inner layers need a function that returns those layers by name.

    The fingerprint sees the function's source, and not what that closes over (weights, a service's state): give
    `version` a text that changes when those do.

    Args:
        function: the function.
        arrays: "numpy" hands over NumPy arrays, which every framework takes; "torch" hands over tensors.
        version: any text that tells this function's answers from those of another with the same source.
    """

    noun = "the function"

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        inputs: Inputs = None,
        outputs: Outputs = None,
        normalize: Normalize | None = None,
        classes: Classes | None = None,
        gives: Gives | None = None,
        floor: float = FLOOR,
        arrays: Literal["torch", "numpy"] = "torch",
        version: str | None = None,
    ) -> None:
        super().__init__(inputs=inputs, outputs=outputs, normalize=normalize, classes=classes, gives=gives, floor=floor)
        if arrays not in ("torch", "numpy"):
            raise ConfigError(problem("teacher.arrays", f"it is {arrays!r}", 'give "torch" or "numpy"'))
        self.function, self.arrays, self.version = function, arrays, version

    @property
    def words(self) -> str:
        """Its name."""
        return f"the function {getattr(self.function, '__qualname__', type(self.function).__qualname__)}"

    def about(self) -> dict[str, Any]:
        """Name, source and version."""
        return {"function": plain_function(self.function), "arrays": self.arrays, "version": self.version}

    def answer(self, batch: Named) -> Any:
        """What the function returns."""
        positional, keyword = arguments(batch, self.inputs)
        if self.arrays == "numpy":
            positional = tuple(_array(value) for value in positional)
            keyword = {name: _array(value) for name, value in keyword.items()}
        return self.function(*positional, **keyword)


def _array(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.detach().cpu()
    # NumPy has no bfloat16, and a channels-last view would reach C code that expects the plain layout.
    return (value.float() if value.dtype == torch.bfloat16 else value).contiguous().numpy()
