"""One forward pass in which every tensor carries the labels of its units (see `labels`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from limbeck.core.kernels import plain_kernels
from limbeck.core.labels import Ids, Labels, Strips, varies
from limbeck.core.rules import Operation, moves_in_place, strips_after

__all__ = ["Trace", "named_tensors", "owners_of", "tensors_in", "trace"]


class Trace:
    """What one pass showed.

    Attributes:
        labels: which labels stand or fall together.
        places: the labels of each named parameter and buffer that was read, dimension by dimension.
        tied: the names of those that several modules hold.
        read: the labels of weights that read units, and do not make them.
        passed: for each module whose own code handled units, by how many they are, the labels in each.
    """

    def __init__(self, norms: bool = False) -> None:
        self.labels = Labels(norms)
        self.places: dict[str, dict[int, Ids]] = {}
        self.tied: set[str] = set()
        self.read: set[int] = set()
        self.passed: dict[str, dict[int, list[Ids]]] = {}


def trace(
    model: nn.Module, call: Callable[[nn.Module], Any], entering: Iterable[Tensor], *, norms: bool = False
) -> Trace:
    """Follow the units of every parameter through one pass.

    Args:
        model: in evaluation mode; its weights are read only.
        call: runs the model on a real batch and returns what it returned.
        entering: the batch's tensors, whose sizes no cut changes.
        norms: whether what a norm runs over may be cut.
    """
    seen = Trace(norms)
    seen.tied = {name for name, paths in owners_of(model).items() if len(paths) > 1}
    follower = _Follower(model, seen)
    for tensor in entering:
        follower.admit(tensor)
    with torch.no_grad(), plain_kernels(), _where(model, follower), follower:
        output = call(model)
    for leaf in tensors_in(output):
        for ids in seen.labels.along(follower.strips.get(leaf, ())).values():
            seen.labels.fix(ids, "it is what the network returns")
    return seen


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under their first name, tied ones once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def owners_of(model: nn.Module) -> dict[str, set[str]]:
    """For each of `named_tensors` the paths of all modules that hold it, under whatever name."""
    first = {id(tensor): name for name, tensor in named_tensors(model).items()}
    found: dict[str, set[str]] = {name: set() for name in first.values()}
    for path, module in model.named_modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                found[first[id(tensor)]].add(path)
    return found


def tensors_in(output: Any) -> Iterator[Tensor]:
    """Every tensor in what a network returned, whatever holds it; keys and values kept for later calls are left out."""
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            yield leaf
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, nn.Module):
            yield from (value for value in vars(leaf).values() if isinstance(value, Tensor))


@contextmanager
def _where(model: nn.Module, follower: _Follower) -> Iterator[None]:
    """Tell the follower whose code is running."""

    def enter(path: str, *_: Any) -> None:
        follower.stack.append(path)

    def leave(_module: nn.Module, _args: Any, output: Any) -> None:
        follower.stack.pop()
        for tensor in tensors_in(output):  # which its caller handles now
            follower.note(follower.strips.get(tensor, ()))

    handles = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(partial(enter, path)))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Follower(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own base
    """Runs every operation as it is, and works out the labels of its result."""

    def __init__(self, model: nn.Module, seen: Trace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = seen
        self.stack: list[str] = []
        self.strips: Any = WeakIdKeyDictionary()
        self.names: Any = WeakIdKeyDictionary({tensor: name for name, tensor in named_tensors(model).items()})
        self.weights = {tensor.untyped_storage().data_ptr() for tensor in named_tensors(model).values()}
        self.sizes = {
            path: {value for value in vars(module).values() if isinstance(value, int) and value > 1}
            for path, module in model.named_modules()
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`, then note whose units its result holds."""
        kwargs = kwargs or {}
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        known = [self._strips_of(tensor) for tensor in inputs]
        seen = self.seen
        held = {id(tensor): strips for tensor, strips in zip(inputs, known, strict=True)}

        def after(outputs: Sequence[Tensor]) -> list[Strips]:
            return strips_after(Operation(seen.labels, func, args, kwargs, outputs, held, self.weights, seen.read))

        early = after(inputs[:1]) if any(known) and moves_in_place(func) else None
        output = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        if any(known) and outputs:
            for tensor, strips in zip(outputs, early or after(outputs), strict=True):
                self.strips[tensor] = strips
                self.note(strips)
            for strips in known:
                self.note(strips)
        return output

    def _strips_of(self, tensor: Tensor) -> Strips:
        if tensor in self.strips:
            return self.strips[tensor]  # type: ignore[no-any-return]
        name = self.names.get(tensor)
        if name is None:
            strips: Strips = ()
        else:
            labels = self.seen.labels
            by_dim = {dim: labels.fresh(size) for dim, size in enumerate(tensor.shape) if size > 1}
            self.seen.places[name] = by_dim
            strips = labels.strips(by_dim, tensor.dim())
        self.strips[tensor] = strips
        return strips

    def admit(self, tensor: Tensor) -> None:
        """A tensor from outside: no cut changes its size."""
        labels = self.seen.labels
        by_dim = {dim: labels.fresh(size) for dim, size in enumerate(tensor.shape) if size > 1}
        for ids in by_dim.values():
            labels.fix(ids, "its width is that of the input")
        self.strips[tensor] = labels.strips(by_dim, tensor.dim())

    def note(self, strips: Strips) -> None:
        """Note units by how many they are, where the module whose code runs keeps that very number."""
        path = self.stack[-1] if self.stack else ""
        wanted = self.sizes.get(path, ())
        for strip in strips:
            dims = varies(strip)
            views = [strip.reshape(-1, 1)] if strip.numel() in wanted else []
            if len(dims) > 1:  # heads and their channels: perhaps it keeps the number of heads
                views += [strip.movedim(d, 0).reshape(strip.shape[d], -1) for d in dims if strip.shape[d] in wanted]
            for view in views:
                known = self.seen.passed.setdefault(path, {}).setdefault(len(view), [])
                ids = view.numpy()
                if len(known) < 64 and not any(np.array_equal(ids, other) for other in known):
                    known.append(ids)
