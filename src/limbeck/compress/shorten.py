"""Shorter stacks of blocks, and configurations that follow: the edits that transfer adds to those of compression."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from limbeck.compress.base import edit
from limbeck.core.errors import ModelError, problem
from limbeck.core.surgery import find

__all__: list[str] = []


@edit("drop")
def _drop(model: nn.Module, at: str, *, keep: Sequence[int]) -> None:
    """Keep these children of an `nn.Sequential` or `nn.ModuleList`, numbered anew, and the numbers that they know."""
    stack = find(model, at)
    names = list(stack._modules)
    if not isinstance(stack, nn.Sequential | nn.ModuleList) or not keep or max(keep) >= len(names):
        wrong = f"{at!r} is {type(stack).__name__} of {len(names)}, and its children {list(keep)} are wanted"
        raise ModelError(problem("plan", wrong, "replay the plan on the model that it was made for"))
    kept = [(names[position], stack._modules[names[position]]) for position in keep]
    for place, attribute in _own_places(stack):
        for new, (_, block) in enumerate(kept):
            assert block is not None
            setattr(block.get_submodule(place), attribute, new)
    numbered = names == [str(i) for i in range(len(names))]
    stack._modules.clear()
    for new, (name, block) in enumerate(kept):
        stack._modules[str(new) if numbered else name] = block


def _own_places(stack: nn.Module) -> Iterator[tuple[str, str]]:
    """Where in each block, and under which name, it keeps its own number."""
    blocks = list(stack.children())
    if len(blocks) < 2 or len(blocks) != len(stack._modules):
        return
    for place, module in blocks[0].named_modules():
        for name, value in vars(module).items():
            if type(value) is int and value == 0 and all(_at(b, place, name) == i for i, b in enumerate(blocks)):
                yield place, name


def _at(block: nn.Module, place: str, name: str) -> Any:
    try:
        return vars(block.get_submodule(place)).get(name)
    except AttributeError:
        return None


@edit("configure")
def _configure(model: nn.Module, at: str, **values: Any) -> None:
    """Set what a module's `config` says about its shape."""
    config = getattr(find(model, at), "config", None)
    for name, value in values.items():
        if not hasattr(config, name):
            wrong = f"the configuration of {at or 'the model'!r} has no {name!r}"
            raise ModelError(problem("plan", wrong, "replay the plan on the model that it was made for"))
        setattr(config, name, list(value) if isinstance(value, list | tuple) else value)
