"""Pruned equals masked: the proof without which no group of units is cut."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.coupling import CUTS, Count, Coupling, Group, Whole, propose, silence
from limbeck.core.heard import norms_of_the_heard
from limbeck.core.surgery import run
from limbeck.core.tracing import tensors_in

__all__ = ["TOLERANCE", "Choice", "confirmed", "couple", "difference"]

Call = Callable[[nn.Module], Any]
TOLERANCE = 1e-5
"""Greatest difference between pruned and masked, in units of the largest answer (or of 1, where that is smaller)."""
_TRIES = 24
Choice = Mapping[str, Collection[int]]
"""For a group's name, the positions of units."""


def couple(model: nn.Module, call: Call, entering: Iterable[Tensor], *, norms: bool = False) -> Coupling:
    """The groups of units that may be cut, each proved on the batch, and what is left whole and why.

    Args:
        model: of any kind. It is not changed.
        call: runs a model on a real batch, two samples or more, and returns what it returned. A model in half
            precision is called in single precision.
        entering: the tensors of that batch.
        norms: whether what a norm (or a mean) runs over may be cut. Then the masked network's norms run over what is
            heard alone, and that pruned equals masked no longer says that a cut of silent units changes nothing.
    """
    private = _disturbed(model)
    proposed = propose(private, call, entering, norms=norms)
    proof = _Proof(private, call, proposed)
    usual = _usual(proposed.counts)
    proof.settle(list(proposed.groups), usual)
    coupling = Coupling(tuple(proof.accepted), (*proposed.left, *proof.left), tuple(proof.counts), norms)
    return coupling if proof.holds_apart(coupling) else _one_by_one(proof, coupling)


def difference(model: nn.Module, call: Call, coupling: Coupling, removed: Choice) -> float:
    """The greatest difference between the answers of the pruned and of the masked model, relative as `TOLERANCE`.

    Raises:
        Exception: whatever the pruned model raises when it is called.
    """
    pruned, masked = _single(copy.deepcopy(model)), _single(copy.deepcopy(model))
    with torch.no_grad():
        for step in coupling.steps(model, removed):
            run(CUTS, step.edit, pruned, step.at, step.detail)
        silence(masked, coupling, removed)
        answers = list(tensors_in(call(pruned.eval())))
        with norms_of_the_heard() if coupling.norms else nullcontext():
            expected = list(tensors_in(call(masked.eval())))
    if [a.shape for a in answers] != [b.shape for b in expected]:
        return float("inf")
    worst = 0.0
    for a, b in zip(answers, expected, strict=True):
        if a.is_floating_point() and a.numel():
            worst = max(worst, float((a - b).abs().max() / b.abs().max().clamp_min(1)))
    return worst if worst == worst else float("inf")  # noqa: PLR0124 - NaN is no proof


def confirmed(
    model: nn.Module, call: Call, coupling: Coupling, removed: Choice
) -> tuple[dict[str, list[int]], list[Whole]]:
    """Those of the chosen units for which pruned equals masked with the model's own weights, and what is left instead.

    That their group was proved with other units and moved weights makes it all but certain; this makes it sure.
    """
    wanted = {name: sorted(units) for name, units in removed.items() if units}
    if _unequal(model, call, coupling, wanted) is None:
        return wanted, []
    kept: dict[str, list[int]] = {}
    left = []
    for name, units in wanted.items():
        why = _unequal(model, call, coupling, {**kept, name: units})
        if why is None:
            kept[name] = units
        else:
            left.append(Whole(name, why))
    return kept, left


def _unequal(model: nn.Module, call: Call, coupling: Coupling, removed: Choice) -> str | None:
    """Why these units cannot be cut; None where they can."""
    try:
        worst = difference(model, call, coupling, removed)
    except Exception as error:  # whatever it is, it says that the code relies on their number
        said = next(iter(str(error).splitlines()), "")[:120]
        return f"the network's code fixes how many there are ({type(error).__name__}: {said})"
    if worst > TOLERANCE:
        return f"to remove them is not the same as to silence them (the answers differ by {worst:.1g})"
    return None


class _Proof:
    """Tries groups together, and those that fail together apart."""

    def __init__(self, model: nn.Module, call: Call, proposed: Coupling) -> None:
        self.model, self.call, self.proposed = model, call, proposed
        self.accepted: list[Group] = []
        self.counts: list[Count] = []
        self.left: list[Whole] = []

    def fault(self, coupling: Coupling) -> str | None:
        """Why these groups cannot be cut; None where they can."""
        return _unequal(self.model, self.call, coupling, {group.name: _some(group) for group in coupling.groups})

    def holds_apart(self, coupling: Coupling) -> bool:
        """Whether the groups can be cut all together, and of any two the one without the other.

        Groups that only ever hold together are one, wrongly taken for two. Each has a number; those whose numbers
        have a bit set are cut, bit by bit, so that every two are told apart in a few tries.
        """
        groups, places = coupling.groups, range(len(coupling.groups))
        sides = [
            [at for at in places if at >> bit & 1 == side] for bit in range(len(groups).bit_length()) for side in (0, 1)
        ]
        tries = [chosen for chosen in (places, *sides) if chosen]
        return all(
            _unequal(self.model, self.call, coupling, {groups[at].name: _some(groups[at]) for at in chosen}) is None
            for chosen in tries
        )

    def settle(self, groups: Sequence[Group], counts: Sequence[Count]) -> None:
        """Accept all of these groups that hold, by halving."""
        if not groups:
            return
        counts = _of(counts, groups)
        why = self.fault(replace(self.proposed, groups=tuple(groups), counts=tuple(counts)))
        if why is None:
            self.accepted += groups
            self.counts += [count for count in counts if count not in self.counts]
        elif len(groups) > 1:
            for half in (groups[: len(groups) // 2], groups[len(groups) // 2 :]):
                self.settle(half, counts)
        else:
            self._otherwise(groups[0], counts, why)

    def _otherwise(self, group: Group, usual: Sequence[Count], why: str) -> None:
        """One group with other numbers following than those whose names suggest it."""
        for counts in itertools.islice(_choices(_of(self.proposed.counts, [group])), _TRIES):
            if list(counts) != list(usual):
                tried = replace(self.proposed, groups=(group,), counts=counts)
                if self.fault(tried) is None:
                    self.accepted.append(group)
                    self.counts += [count for count in counts if count not in self.counts]
                    return
        self.left.append(Whole(group.name, why))


def _one_by_one(proof: _Proof, coupling: Coupling) -> Coupling:
    """Those groups that hold alone, and then with the ones before them."""
    kept: list[Group] = []
    left = list(coupling.left)
    for group in coupling.groups:
        why = proof.fault(replace(coupling, groups=(group,))) or proof.fault(replace(coupling, groups=(*kept, group)))
        if why is None:
            kept.append(group)
        else:
            left.append(Whole(group.name, why))
    return replace(coupling, groups=tuple(kept), left=tuple(left))


def _usual(counts: Sequence[Count]) -> list[Count]:
    """One count for each number whose name says that it counts units."""
    found: dict[tuple[str, str], Count] = {}
    for count in counts:
        if count.likely:
            found.setdefault((count.at, count.name), count)
    return list(found.values())


def _of(counts: Iterable[Count], groups: Iterable[Group]) -> list[Count]:
    units = {unit for group in groups for unit in group.units}
    return [count for count in counts if units & set(count.units)]


def _choices(counts: Sequence[Count]) -> Iterator[tuple[Count, ...]]:
    """None, all, one by one, pair by pair, …, never two for one number."""
    for size in (0, len(counts), *range(1, len(counts))):
        for chosen in itertools.combinations(counts, size):
            if len({(count.at, count.name) for count in chosen}) == len(chosen):
                yield chosen


def _some(group: Group) -> list[int]:
    """About a third of the units, drawn, so that no regularity of the code is met by chance."""
    total = len(group.units)
    generator = torch.Generator().manual_seed(total)
    drawn = torch.randperm(total, generator=generator)[: max(1, total // 3)]
    return sorted(int(unit) for unit in drawn)


def _disturbed(model: nn.Module) -> nn.Module:
    """A copy, in evaluation mode, none of whose weights is zero by chance (a last norm often starts at zero)."""
    private = _single(copy.deepcopy(model)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in private.parameters():
            if parameter.is_floating_point():
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.add_((0.1 * parameter.float().square().mean().sqrt() + 0.02).to(parameter) * noise)
    return private


def _single(model: nn.Module) -> nn.Module:
    """In place, in single precision where it was in half, in which no two sums are equal to 1e-5."""
    half = any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in model.parameters())
    return model.float() if half else model
