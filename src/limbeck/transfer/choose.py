"""How many units of each of the teacher's groups fit the student, and which."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from limbeck.compress.base import Evidence
from limbeck.compress.criteria import CRITERIA, Criterion, Scores
from limbeck.core.coupling import Coupling, Group
from limbeck.core.surgery import tensor_at

__all__ = ["Wanted", "choose_units", "wanted_units"]

Heirs = Mapping[str, Sequence[Tensor]]
"""For a tensor of the teacher, the student's tensors that are made of it."""


class Wanted(dict[str, int]):
    """How many units of a group stay, where some go; and why others cannot be made to fit."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []


def wanted_units(teacher: nn.Module, coupling: Coupling, heirs: Heirs) -> Wanted:
    """How many units of each group the student has room for, from the shapes where a group alone fills a dimension."""
    wanted = Wanted()
    for group in coupling.groups:
        counts = set(_counts(teacher, group, heirs))
        total = len(group.units)
        if len(counts) > 1:
            said = " and ".join(str(count) for count in sorted(counts))
            wanted.notes.append(f"{group.name}: the student has {said} of its units in different places")
        elif counts and (count := counts.pop()) != total:
            if count > total:
                wanted.notes.append(f"{group.name}: the student has {count} units, the teacher only {total}")
            elif count == 0 or count != int(count):
                wanted.notes.append(f"{group.name}: the student's width is no whole number of its units")
            else:
                wanted[group.name] = int(count)
    return wanted


def _counts(teacher: nn.Module, group: Group, heirs: Heirs) -> Iterable[float]:
    for place, index in group.index.items():
        old = tensor_at(teacher, place.tensor)
        sizes = {len(unit) for unit in index}
        if len(sizes) == 1 and len(index) * min(sizes) == old.shape[place.dim]:
            for heir in heirs.get(place.tensor, ()):
                if heir.dim() == old.dim():
                    count = heir.shape[place.dim] / min(sizes)
                    yield int(count) if count == int(count) else count


def choose_units(
    teacher: nn.Module,
    coupling: Coupling,
    wanted: Mapping[str, int],
    *,
    by: Criterion | None,
    evidence: Evidence,
    alike: Callable[[Group], object],
) -> tuple[dict[str, list[int]], list[str]]:
    """The units that go, of each group the least, and notes on groups that were judged otherwise than asked.

    Groups that become one in the student (`alike` says so of two) lose the same units: their scores, each relative to
    the mean of its group, are added.

    Args:
        teacher: in evaluation mode.
        coupling: its groups.
        wanted: how many units of a group stay.
        by: the measure; None keeps the first units.
        evidence: what the measure reads.
        alike: a key, the same for groups that become one.
    """
    groups = [group for group in coupling.groups if group.name in wanted]
    notes = []
    if by is None:
        scores: Scores = {group.name: -torch.arange(float(len(group.units))) for group in groups}
    else:
        scores = dict(CRITERIA[by](teacher, groups, evidence))
        others = [group for group in groups if group.name not in scores]
        scores |= CRITERIA["l2"](teacher, others, evidence) if others else {}
        notes = [f"{group.name}: {by} cannot judge it, l2 did" for group in others]
    joined: dict[tuple[object, int], Tensor] = {}
    for group in groups:
        own = scores[group.name].double().cpu()
        own = own if by is None else own / own.mean().clamp_min(1e-30)
        key = (alike(group), len(own))
        joined[key] = joined[key] + own if key in joined else own
    removed = {}
    for group in groups:
        total = len(group.units)
        order = joined[alike(group), total].argsort(stable=True).tolist()
        removed[group.name] = sorted(order[: total - wanted[group.name]])
    return removed, notes
