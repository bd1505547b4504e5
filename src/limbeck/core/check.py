"""Door-keepers: checks made once, before any work, that name the fault and its mend."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from limbeck.core.errors import ConfigError, ShapeError, problem

__all__ = ["not_negative", "one_of", "positive", "same_shape", "whole"]


def same_shape(where: str, **named: Tensor) -> None:
    """Refuse silent broadcasting: the named tensors must have one shape."""
    shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
    if len(set(shapes.values())) > 1:
        seen = ", ".join(f"{name} is {shape}" for name, shape in shapes.items())
        raise ShapeError(problem(where, seen, "give both the same shape; a teacher can pick classes with `classes=`"))


def _number(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(problem(where, f"{value!r} is not a finite number", "give a number"))
    return float(value)


def positive(where: str, value: Any) -> None:
    """Refuse what is not a finite number above zero."""
    if _number(where, value) <= 0:
        raise ConfigError(problem(where, f"{value!r} is not above zero", "give a number above zero"))


def not_negative(where: str, value: Any) -> None:
    """Refuse what is not a finite number of at least zero."""
    if _number(where, value) < 0:
        raise ConfigError(problem(where, f"{value!r} is negative", "give zero or more"))


def whole(where: str, value: Any, *, least: int = 1) -> None:
    """Refuse what is not a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(
            problem(where, f"{value!r} is not a whole number of at least {least}", f"give {least} or more")
        )


def one_of(where: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Refuse what is not one of the allowed words."""
    if value not in allowed:
        raise ConfigError(problem(where, f"{value!r} is not one of its words", f"choose from {', '.join(allowed)}"))
