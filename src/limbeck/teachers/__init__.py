"""Anything that turns a batch into a signal. Whatever is handed over, it is left bit-identical."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from limbeck.core.errors import ConfigError, ModelError, nearest, problem
from limbeck.core.keras import KerasModule, is_keras
from limbeck.core.normalize import Normalize
from limbeck.core.taps import Inputs, Outputs
from limbeck.teachers.ensemble import EnsembleTeacher
from limbeck.teachers.function import FunctionTeacher
from limbeck.teachers.joined import Joinable, JoinedTeacher, Rows
from limbeck.teachers.keras import KerasTeacher
from limbeck.teachers.module import ModuleTeacher
from limbeck.teachers.onnx import OnnxTeacher
from limbeck.teachers.signal import Classes, Teaching
from limbeck.teachers.sklearn import SklearnTeacher
from limbeck.teachers.transformers import TransformersTeacher

__all__ = [
    "EnsembleTeacher",
    "FunctionTeacher",
    "JoinedTeacher",
    "KerasTeacher",
    "ModuleTeacher",
    "OnnxTeacher",
    "Rows",
    "SklearnTeacher",
    "Teaching",
    "TransformersTeacher",
    "as_teacher",
    "teacher",
]

FORMS = (
    "pass an nn.Module, a Keras or Hugging Face model, a fitted scikit-learn estimator, the path of an .onnx file, the "
    "folder of stored targets, a function of the inputs, a list of these, or None for no teacher"
)


def teacher(
    model: Any,
    *,
    inputs: Inputs = None,
    outputs: Outputs = None,
    normalize: Normalize | None = None,
    classes: Classes | None = None,
    data: Any = None,
    encode: Callable[[Mapping[str, Any]], Any] | None = None,
    **settings: Any,
) -> Teaching:
    """A teacher with settings of its own; a bare model or function may be passed wherever a teacher goes.

    Args:
        model: an `nn.Module`, a Keras or Hugging Face model, a fitted scikit-learn estimator, the path of an `.onnx`
            file, a function from the inputs to tensors or arrays, or a list of these, which becomes an ensemble.
        inputs: which batch columns it takes (see `limbeck.core.taps.Reader`); a function of the batch is its own
            input pipeline.
        outputs: names for what it returns.
        normalize: the input normalisation it was trained with, where that differs from the student's.
        classes: which of its classes the student has, in the student's order. Classes that are one to the student are
            a group, as in `((0, 3), 1, 2)`; its probability is the sum of theirs.
        data: data of its own under the same ids: a list of texts, a dict of columns, or anything with `ids`, `fetch`
            and `fingerprint`.
        encode: from the raw columns of `data` to its inputs.
        **settings: those of its kind: see `FunctionTeacher`, `OnnxTeacher`, `SklearnTeacher`, `KerasTeacher`,
            `TransformersTeacher`, `EnsembleTeacher`, `ModuleTeacher`.

    Raises:
        ModelError: nothing of this kind can teach.
        ConfigError: a setting is not one of its kind.
    """
    if encode is not None and data is None:
        raise ConfigError(problem("teacher.encode", "there is no `data` to encode", "give both, or `inputs=`"))
    given = {"inputs": inputs, "outputs": outputs, "normalize": normalize, "classes": classes}
    given = {name: value for name, value in given.items() if value is not None} | settings
    if isinstance(model, Teaching):
        if given:
            wrong = f"a {type(model).__name__} has its settings already"
            raise ConfigError(problem("teacher", wrong, f"give {', '.join(given)} where it is made"))
        made = model
    else:
        made = _made(model, given)
    return made if data is None else JoinedTeacher(made, _joinable(data), encode=encode)


def as_teacher(value: Any) -> Teaching:
    """What was passed as a teacher, wrapped if it is bare.

    Raises:
        ModelError: nothing of this kind can teach.
    """
    return value if isinstance(value, Teaching) else teacher(value)


def _made(model: Any, given: dict[str, Any]) -> Teaching:
    if isinstance(model, list | tuple):
        return _built(EnsembleTeacher, [as_teacher(each) for each in model], given)
    if isinstance(model, str | Path):
        return _at(Path(model), given)
    if isinstance(model, type):
        wrong = f"{model.__name__} is neither a module nor a function, but a class"
        raise ModelError(problem("teacher", wrong, "pass what it makes"))
    kind = _kind(model)
    if kind is None:
        wrong = f"{type(model).__name__} is neither a module nor a function, nor anything else that can teach"
        raise ModelError(problem("teacher", wrong, FORMS))
    return _built(kind, model, given)


def _kind(model: Any) -> Callable[..., Teaching] | None:
    """The kind of teacher for a model. A framework is asked only where it has been imported already."""
    if is_keras(model) or isinstance(model, KerasModule):
        return KerasTeacher
    hugging = sys.modules.get("transformers.modeling_utils")
    if isinstance(model, getattr(hugging, "PreTrainedModel", ())):
        return TransformersTeacher
    if isinstance(model, nn.Module):
        return ModuleTeacher
    base = sys.modules.get("sklearn.base")
    if isinstance(model, getattr(base, "BaseEstimator", ())) or hasattr(model, "predict_proba"):
        return SklearnTeacher
    return FunctionTeacher if callable(model) else None


def _at(path: Path, given: dict[str, Any]) -> Teaching:
    if path.suffix.lower() == ".onnx":
        return _built(OnnxTeacher, path, given)
    if (path / "manifest.json").is_file():
        return _built(_stored, path, given)
    wrong = f"{str(path)!r} is neither a module nor a function, nor the path of an .onnx file or of stored targets"
    raise ModelError(problem("teacher", wrong, FORMS))


def _stored(path: Path, **settings: Any) -> Teaching:
    stored: Teaching = import_module("limbeck.teachers.stored").Targets(path, **settings)
    return stored


def _built(kind: Callable[..., Teaching], model: Any, given: dict[str, Any]) -> Teaching:
    """Make it, and name a setting that its kind has not."""
    parameters = inspect.signature(kind).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        known = [name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
        for name in given:
            if name not in known:
                wrong = f"a {kind.__name__} has no setting {name!r}"
                raise ConfigError(problem("teacher", wrong, nearest(name, known)))
    return kind(model, **given)


def _joinable(data: Any) -> Joinable:
    if isinstance(data, Joinable):
        return data
    if isinstance(data, Mapping):
        return Rows(data)
    if isinstance(data, list | tuple) and data and all(isinstance(each, str) for each in data):
        return Rows({"text": data})
    wrong = f"a {type(data).__name__} can't be joined by id"
    raise ConfigError(
        problem("teacher.data", wrong, "give a list of texts, a dict of columns, or a limbeck.data source")
    )
