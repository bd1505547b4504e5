"""Changing a module in place, by path: the few edits that every compression step is made of.

An edit takes a model, the path of what it changes, and its settings as plain data. It changes the model that it is
given, and is the same on every model of that architecture: what it computes, it computes from the weights it finds.
Edits run on the meta device too, where they give shapes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.errors import ModelError, nearest, problem

__all__ = ["Edit", "cut", "find", "put", "replace", "run", "set_attributes", "tensor_at"]

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


def cut(model: nn.Module, at: str, *, dim: int, keep: Sequence[int]) -> None:
    """Keep only these indices of a parameter or buffer along one dimension.

    A tensor that stands under several names stays one tensor. Its device, type and `requires_grad` stay.

    Raises:
        ModelError: there is no such tensor, or it is not that wide.
    """
    old = tensor_at(model, at)
    if dim >= old.dim() or (len(keep) and max(keep) >= old.shape[dim]):
        wrong = f"{at!r} is {tuple(old.shape)}, and indices up to {max(keep, default=0)} of dimension {dim} are wanted"
        raise ModelError(problem("plan", wrong, "replay the plan on the model that it was made for"))
    index = torch.tensor(list(keep), device=old.device, dtype=torch.long)
    put(model, old, old.detach().index_select(dim, index))


def tensor_at(model: nn.Module, at: str) -> Tensor:
    """The parameter or buffer at a dotted name.

    Raises:
        ModelError: there is none.
    """
    path, _, name = at.rpartition(".")
    value = getattr(find(model, path), name, None)
    if not isinstance(value, Tensor):
        known = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
        raise ModelError(problem("plan", f"the model has no tensor {at!r}", nearest(at, known)))
    return value


def put(model: nn.Module, old: Tensor, value: Tensor) -> None:
    """Put a value of another shape in the place of a parameter or buffer, under each of its names."""
    new = nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name in [name for name, tensor in table.items() if tensor is old]:
                setattr(module, name, new)  # and not the table: recurrent layers keep a list beside it


def set_attributes(model: nn.Module, at: str, **values: int | bool | Sequence[int]) -> None:
    """Set numbers that a module keeps about its own shape, such as `out_channels`.

    Raises:
        ModelError: it keeps no such number.
    """
    module = find(model, at)
    for name, value in values.items():
        if not hasattr(module, name):
            wrong = f"the layer {at!r} ({type(module).__name__}) keeps no {name!r}"
            raise ModelError(problem("plan", wrong, "replay the plan on the model that it was made for"))
        setattr(module, name, value if isinstance(value, int) else tuple(value))
