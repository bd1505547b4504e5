"""Code and settings as a digest that a manifest can hold, and compare."""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["digest_of"]

DEEPEST = 12
PLAIN = (bool, int, float, complex, str, bytes, type(None))
# What every module has, hooks and flags, differs between versions of torch and says nothing about what it does.
OF_EVERY_MODULE = frozenset(vars(torch.nn.Module())) - {"_parameters", "_buffers", "_modules"}


def digest_of(*parts: Any) -> str:
    """sha256 over values, code and objects: the same in every process where their source and settings are the same.

    Functions count by source (by bytecode where there is none), defaults and closure; objects by class, repr and
    attributes; tensors and arrays by content. Globals that a function reads are not seen.
    """
    digest = hashlib.sha256()
    for text in _told(parts, 0, frozenset()):
        digest.update(text.encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return digest.hexdigest()


def _told(value: Any, depth: int, within: frozenset[int]) -> Iterator[str]:
    """The value as a stream of words."""
    if isinstance(value, PLAIN):
        yield f"{type(value).__name__} {value!r}"
        return
    if id(value) in within or depth > DEEPEST:
        yield f"again {type(value).__qualname__}"
        return
    depth, within = depth + 1, within | {id(value)}
    if isinstance(value, Tensor | np.ndarray):
        yield _content(value)
    elif isinstance(value, Mapping | set | frozenset | list | tuple):
        yield from _container(value, depth, within)
    elif isinstance(value, functools.partial):
        yield "partial"
        yield from _told((value.func, value.args, dict(value.keywords)), depth, within)
    elif isinstance(value, types.FunctionType):
        yield from _function(value, depth, within)
    elif isinstance(value, types.MethodType):
        yield from _told((value.__func__, value.__self__), depth, within)
    elif isinstance(value, type | types.BuiltinFunctionType | types.ModuleType):
        yield f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value.__name__)}"
        yield _source(value) if isinstance(value, type) else ""
    else:
        yield from _object(value, depth, within)


def _container(value: Any, depth: int, within: frozenset[int]) -> Iterator[str]:
    yield f"{type(value).__name__} {len(value)}"
    if isinstance(value, set | frozenset):
        yield from sorted(" ".join(_told(item, depth, within)) for item in value)
        return
    # The order of a mapping may matter (a pipeline by name), so it counts.
    for item in value.items() if isinstance(value, Mapping) else value:
        yield from _told(item, depth, within)


def _function(function: types.FunctionType, depth: int, within: frozenset[int]) -> Iterator[str]:
    yield f"function {function.__qualname__}"
    yield _source(function) or function.__code__.co_code.hex() + repr(function.__code__.co_names)
    yield from _told((function.__defaults__, function.__kwdefaults__), depth, within)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield name
        try:
            yield from _told(cell.cell_contents, depth, within)
        except ValueError:  # a name that is not bound yet
            yield "empty"


def _object(value: Any, depth: int, within: frozenset[int]) -> Iterator[str]:
    kind = type(value)
    yield f"{kind.__module__}.{kind.__qualname__}"
    yield _source(kind)
    # Addresses in a repr change from process to process.
    yield re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
    held = dict(getattr(value, "__dict__", {}))
    slots = (name for one in kind.__mro__ for name in _names(getattr(one, "__slots__", ())))
    held.update({name: getattr(value, name) for name in slots if hasattr(value, name)})
    if isinstance(value, torch.nn.Module):
        held = {name: item for name, item in held.items() if name not in OF_EVERY_MODULE}
    for name in sorted(held):
        yield name
        yield from _told(held[name], depth, within)


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _source(value: Any) -> str:
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):
        return ""


def _content(value: Any) -> str:
    flat = value.detach().cpu().contiguous() if isinstance(value, Tensor) else np.ascontiguousarray(value)
    shape, dtype = tuple(value.shape), str(value.dtype)
    if isinstance(flat, Tensor):
        flat = flat.reshape(-1).view(torch.uint8).numpy()
    elif flat.dtype.hasobject:
        return f"array {shape} {dtype} {flat.tolist()!r}"
    return f"array {shape} {dtype} {hashlib.sha256(flat.tobytes()).hexdigest()}"
