"""Repeated blocks: which children of a container are alike, which of them stay, and the changes that drop the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from limbeck.compress.base import Change, Evidence, Left
from limbeck.compress.depth import why_not
from limbeck.compress.units import caller
from limbeck.core.tracing import tensors_in

__all__ = ["Stack", "evenly", "look", "shorten", "stacks", "ways"]

_WORDS = ("layer", "depth", "block")


@dataclass(frozen=True)
class Stack:
    """A run of alike blocks: children of one `nn.Sequential` or `nn.ModuleList` that follow each other.

    Attributes:
        path: of the container.
        blocks: the positions of the blocks among its children.
        total: how many children it has.
    """

    path: str
    blocks: tuple[int, ...]
    total: int


def stacks(model: nn.Module) -> list[Stack]:
    """The outermost runs of two or more blocks of one class with weights of the same names and shapes."""
    found: list[Stack] = []
    inside: list[str] = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.Sequential | nn.ModuleList) or any(path.startswith(p) for p in inside):
            continue
        children = list(module._modules.items())
        looks = [look(child) for _, child in children]
        start = 0
        for end in range(1, len(children) + 1):
            if end == len(children) or looks[end] != looks[start] or children[end][1] is children[start][1]:
                if end - start > 1 and looks[start] is not None:
                    found.append(Stack(path, tuple(range(start, end)), len(children)))
                    inside += [f"{path}.{name}." for name, _ in children[start:end]]
                start = end
    return found


def look(module: nn.Module | None) -> tuple[object, ...] | None:
    """What alike blocks have in common; None for one without weights."""
    if module is None:
        return None
    own = [(name, tuple(tensor.shape)) for name, tensor in (*module.named_parameters(), *module.named_buffers())]
    return (type(module), *own) if any(True for _ in module.parameters()) else None


def evenly(total: int, count: int) -> list[int]:
    """`count` of the numbers below `total`, evenly spaced, the first and the last among them; one is the first.

    >>> evenly(9, 5), evenly(4, 2), evenly(3, 1)
    ([0, 2, 4, 6, 8], [0, 3], [0])
    """
    if count <= 1:
        return [0][:count]
    return [math.floor(i * (total - 1) / (count - 1) + 0.5) for i in range(count)]


def shorten(
    model: nn.Module, evidence: Evidence, keep: Mapping[Stack, Sequence[int]]
) -> tuple[list[Change], list[Left]]:
    """The changes that leave only some blocks of each stack, and what stays whole and why.

    A container is numbered anew, and a count of its blocks that its owner keeps follows. Where the network's code
    cannot do with fewer children, something that only hands on its input stands in the place of a block.

    Args:
        model: in evaluation mode.
        evidence: whose batch shows whether the changed model still answers in the same shape.
        keep: for a stack, the positions within its `blocks`.
    """
    made: list[Change] = []
    left: list[Left] = []
    expected = [t.shape for t in tensors_in(caller(evidence)(model))]
    containers = dict.fromkeys(stack.path for stack in keep)
    for path in containers:
        gone = [
            stack.blocks[at]
            for stack, stays in keep.items()
            if stack.path == path
            for at in range(len(stack.blocks))
            if at not in set(stays)
        ]
        if not gone:
            continue
        why = None
        for tried in ways(model, path, gone):
            why = why_not(model, [*made, *tried], evidence, expected)
            if why is None:
                made += tried
                break
        else:
            left.append(Left(at=path, why=why or "no block can go"))
    return made, left


def ways(model: nn.Module, path: str, gone: Sequence[int]) -> list[list[Change]]:
    """How children of a container may leave, by their positions, in the order in which it should be tried."""
    stack = model.get_submodule(path)
    names = list(stack._modules)
    stays = [at for at in range(len(names)) if at not in set(gone)]
    drop = Change(edit="drop", at=path, detail={"keep": stays})
    skips = [Change(edit="skip", at=f"{path}.{names[at]}" if path else names[at], detail={}) for at in gone]
    owner = path.rpartition(".")[0]
    counts = {
        name: len(stays)
        for name, value in vars(model.get_submodule(owner)).items()
        if type(value) is int and value == len(names) and any(word in name.lower() for word in _WORDS)
    }
    follow = [Change(edit="attributes", at=owner, detail=counts)] if counts else []
    ways = [[drop], skips] if stays else [skips]
    return [[drop, *follow], *ways] if follow and stays else ways
