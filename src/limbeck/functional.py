"""The pure losses under one name, for people with their own training loop.

Student first, teacher second; settings are keyword-only; `reduction="mean" | "sum" | "none"` as in
`torch.nn.functional`, where "none" gives one value per example. Logits go in, never probabilities.

Whatever function a family of `limbeck.objectives` makes public is here: there is no second list to keep.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from limbeck.objectives import (
    contrast,
    decoupled,
    divergence,
    feature,
    label,
    linear,
    peers,
    reconstruct,
    regression,
    relation,
    response,
    sequence,
    spatial,
    transformer,
)

_FAMILIES: tuple[ModuleType, ...] = (
    label,
    divergence,
    response,
    decoupled,
    feature,
    spatial,
    reconstruct,
    relation,
    transformer,
    contrast,
    sequence,
    linear,
    peers,
    regression,
)
_LOSSES: dict[str, Callable[..., Any]] = {
    name: thing for family in _FAMILIES for name in family.__all__ if inspect.isfunction(thing := getattr(family, name))
}

__all__ = sorted(_LOSSES)  # noqa: PLE0605 - strings, by construction


def __getattr__(name: str) -> Callable[..., Any]:
    if name in _LOSSES:
        return _LOSSES[name]
    raise AttributeError(f"module 'limbeck.functional' has no attribute {name!r}")
