"""From chosen units to a plan: what every operation on channels, heads and hidden units shares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.compress.base import Change, Evidence, Left, edit
from limbeck.core.coupling import CUTS, Coupling, Group, Whole
from limbeck.core.errors import ConfigError, nearest, problem
from limbeck.core.proof import Choice, couple

__all__ = ["as_left", "caller", "changes_for", "coupled", "selected"]

_SAMPLES = 4
_HALF = (torch.float16, torch.bfloat16)

for _name, _edit in CUTS.items():
    edit(_name)(_edit)


def coupled(model: nn.Module, evidence: Evidence, *, norms: bool = False) -> Coupling:
    """The groups of units of `model` that may be cut, proved on the first samples of the evidence's batch.

    Args:
        model: in evaluation mode.
        evidence: whose batch shows it.
        norms: whether what a norm runs over counts too (see `couple`): not to prune, but to shape a new network.

    Raises:
        ModelError: the model cannot be called with the batch.
    """
    if evidence.coupling is not None and evidence.coupling.norms == norms:
        return evidence.coupling
    evidence.reader(model).probe(evidence.batch)
    few = _few(evidence)
    return couple(model, _calling(evidence, few), few.values(), norms=norms)


def caller(evidence: Evidence) -> Callable[[nn.Module], Any]:
    """Calls a model on the first samples of the evidence's batch."""
    return _calling(evidence, _few(evidence))


def _calling(evidence: Evidence, few: Mapping[str, Tensor]) -> Callable[[nn.Module], Any]:
    def call(model: nn.Module) -> Any:
        kind = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        cast = {name: v.to(kind) if v.dtype in _HALF else v for name, v in few.items()}  # the proof is in float32
        positional, keyword = evidence.reader(model).arguments(cast)
        return model(*positional, **keyword)

    return call


def changes_for(model: nn.Module, coupling: Coupling, removed: Choice) -> list[Change]:
    """The changes that take the chosen units out."""
    return [Change(edit=s.edit, at=s.at, detail=s.detail) for s in coupling.steps(model, removed)]


def as_left(whole: Iterable[Whole]) -> list[Left]:
    """What stays whole, as a plan says it."""
    return [Left(at=at, why=why) for at, why in whole]


def selected(
    model: nn.Module, kind: str, groups: Iterable[Group], include: Sequence[str], exclude: Sequence[str]
) -> tuple[list[Group], list[Left]]:
    """The groups of which some maker's path fits a pattern of `include`, and none fits one of `exclude`.

    Raises:
        ConfigError: a pattern fits no layer of the model.
    """
    paths = [path for path, _ in model.named_modules()]
    for pattern in (*include, *exclude):
        if not any(fnmatchcase(path, pattern) for path in paths):
            mend = nearest(pattern, (path for path in paths if path))
            raise ConfigError(problem(kind, f"the pattern {pattern!r} fits no layer", mend))
    chosen, left = [], []
    for group in groups:
        if any(fnmatchcase(path, pattern) for path in group.makers for pattern in exclude):
            left.append(Left(at=group.name, why="it is excluded, or is tied to what is"))
        elif any(fnmatchcase(path, pattern) for path in group.makers for pattern in include):
            chosen.append(group)
        else:
            left.append(Left(at=group.name, why="it is not included"))
    return chosen, left


def _few(evidence: Evidence) -> dict[str, Tensor]:
    """The first samples, all columns alike."""
    return {name: value[:_SAMPLES] if value.dim() else value for name, value in evidence.batch.items()}
