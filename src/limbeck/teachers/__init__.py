"""Anything that turns a batch into a signal. Whatever is handed over, it is left bit-identical."""

from __future__ import annotations

from typing import Any

from torch import nn

from limbeck.core.errors import ModelError, problem
from limbeck.core.normalize import Normalize
from limbeck.core.taps import Inputs, Outputs
from limbeck.teachers.function import FunctionTeacher
from limbeck.teachers.module import ModuleTeacher
from limbeck.teachers.signal import Classes

__all__ = ["FunctionTeacher", "ModuleTeacher", "as_teacher", "teacher"]


def teacher(
    model: Any,
    *,
    inputs: Inputs = None,
    outputs: Outputs = None,
    normalize: Normalize | None = None,
    classes: Classes | None = None,
) -> ModuleTeacher | FunctionTeacher:
    """A teacher with settings of its own; a bare model or function may be passed wherever a teacher goes.

    Args:
        model: an `nn.Module`, or a function from the inputs to tensors or arrays.
        inputs: which batch columns it takes (see `limbeck.core.taps.Reader`); a function of the batch is its own
            input pipeline.
        outputs: names for what it returns.
        normalize: the input normalisation it was trained with, where that differs from the student's.
        classes: which of its classes the student has, in the student's order. Classes that are one to the student are
            a group, as in `((0, 3), 1, 2)`; its probability is the sum of theirs.

    Raises:
        ModelError: it is neither a module nor callable.
    """
    if isinstance(model, nn.Module):
        return ModuleTeacher(model, inputs=inputs, outputs=outputs, normalize=normalize, classes=classes)
    if callable(model) and not isinstance(model, type):
        return FunctionTeacher(model, inputs=inputs, outputs=outputs, normalize=normalize, classes=classes)
    wrong = f"{type(model).__name__} is neither a module nor a function"
    raise ModelError(problem("teacher", wrong, "pass an nn.Module, a function of the inputs, or None for no teacher"))


def as_teacher(value: Any) -> ModuleTeacher | FunctionTeacher:
    """What was passed as a teacher, wrapped if it is bare."""
    return value if isinstance(value, ModuleTeacher | FunctionTeacher) else teacher(value)
