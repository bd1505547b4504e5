"""Changing a module in place, by path: the few edits that every compression step is made of.

An edit takes a model, the path of what it changes, and its settings as plain data. It changes the model that it is
given, and is the same on every model of that architecture: what it computes, it computes from the weights it finds.
Edits run on the meta device too, where they give shapes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from limbeck.core.errors import ModelError, nearest, problem

__all__ = ["Edit", "find", "replace", "run"]

Edit = Callable[..., None]
"""`edit(model, at, **detail)`: changes the model in place."""


def run(edits: Mapping[str, Edit], name: str, model: nn.Module, at: str, detail: Mapping[str, Any]) -> None:
    """Make one edit of a table.

    Raises:
        ModelError: there is no such edit, no such place in the model, or it does not fit there.
    """
    if name not in edits:
        raise ModelError(problem("plan", f"there is no edit {name!r}", nearest(name, edits)))
    edits[name](model, at, **detail)


def find(model: nn.Module, at: str) -> nn.Module:
    """The module at a path; "" is the model itself.

    Raises:
        ModelError: there is none.
    """
    try:
        return model.get_submodule(at)
    except AttributeError:
        known = (path for path, _ in model.named_modules() if path)
        raise ModelError(problem("plan", f"the model has no layer {at!r}", nearest(at, known))) from None


def replace(model: nn.Module, at: str, new: nn.Module) -> None:
    """Put another module at a path, wherever else the old one stood under another name too.

    Raises:
        ModelError: there is none, or the path is the model itself, which has no place of its own.
    """
    old = find(model, at)
    if old is model:
        wrong = "the model is one layer, which cannot be replaced inside itself"
        raise ModelError(problem("plan", wrong, "wrap it: torch.nn.Sequential(model)"))
    new.train(old.training)
    for parent in list(model.modules()):  # before the change: the new one may hold the old
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new
