"""A student's architecture from its teacher's: fewer units, heads and blocks, and fresh weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import nn

from limbeck.compress.base import Change, Evidence, Plan, Size, edited, hollow, predict
from limbeck.compress.units import as_left, caller, changes_for, coupled
from limbeck.core.check import positive
from limbeck.core.coupling import Coupling, Group
from limbeck.core.errors import ConfigError, problem
from limbeck.core.proof import confirmed
from limbeck.core.surgery import find, tensor_at
from limbeck.transfer.configure import Number, follow
from limbeck.transfer.example import batch_for
from limbeck.transfer.fresh import refresh
from limbeck.transfer.outline import Cut, Outline, Shorter, attach
from limbeck.transfer.stacks import Stack, evenly, shorten, stacks

__all__ = ["shrink"]

_HALVINGS = 14


def shrink(
    teacher: nn.Module,
    *,
    width: float | None = None,
    depth: float | None = None,
    heads: float | None = None,
    macs: float | None = None,
    parameters: float | None = None,
    example: Any = None,
    seed: int = 0,
) -> nn.Module:
    """A smaller network of the same class, with fresh random weights. The teacher is bit-identical afterwards.

    Units are cut with all that is coupled to them, proved by `limbeck.compress`, and blocks are left out where the
    network still runs. What cannot be cut stays whole; `limbeck.transfer.outline(student)` says what, and why. Nothing
    is shared with the teacher, and `torch`'s random state stays as it is.

    Args:
        teacher: a network with convolutions, recurrent layers or attention, a Hugging Face model too.
        width: share of the units that each group keeps, rounded up, at least one; 1 (the default) keeps all.
        depth: share of the blocks that each stack of alike blocks keeps, rounded (a half up), at least one, evenly
            chosen; 1 (the default) keeps all.
        heads: the same as `width` for attention heads; as `width` when None.
        macs: instead of `width`: the multiply-accumulates an example that may be left; up to 1 a share of the
            teacher's, above it a number. The widest network that meets it is made.
        parameters: the same of parameters.
        example: a batch of two samples or more as the teacher takes it: a tensor, a tuple of tensors or tensors by
            name. None finds one out for usual first layers and Hugging Face models.
        seed: of the weights.

    Raises:
        ConfigError: a number is out of range, two that exclude each other are given, or no network is small enough.
        ModelError: the teacher cannot be called, or no example could be found.
    """
    asked = _Asked(width, depth, heads, macs, parameters)
    asked.check(example)
    batch = batch_for(teacher, example, "shrink.example")
    evidence = Evidence(batch=batch)
    private = copy.deepcopy(teacher).eval()
    before = predict(private, (), evidence)
    chosen = {s: evenly(len(s.blocks), _count(asked.deep, len(s.blocks))) for s in stacks(private)}
    changes, left = shorten(private, evidence, chosen) if asked.deep < 1 else ([], [])
    short = edited(private, changes)
    share, more, coupling = _widths(short, evidence, asked, before)
    wanted, unsure = confirmed(short, caller(evidence), coupling, more)
    cuts = changes_for(short, coupling, wanted)
    left += [*as_left(coupling.left), *as_left(unsure)]
    cut = _told(short, coupling, wanted)
    small = edited(short, cuts)
    dropped = _dropped(chosen, changes)
    config, said = follow(small, _numbers(short, coupling, wanted, dropped), {s.total: s.kept for s in dropped})
    changes = [*changes, *cuts, *config]
    student = edited(small, config)
    refresh(student, seed)
    student.requires_grad_(True).train()
    by = share if heads is None else heads
    plan = Plan(
        op={"kind": "shrink", "width": share, "depth": asked.deep, "heads": by},
        changes=tuple(changes),
        before=before,
        after=predict(private, changes, evidence),
        left=(*left, *said),
    )
    attach(student, Outline(width=share, heads=by, depth=asked.deep, cuts=cut, stacks=dropped, plan=plan))
    return student


class _Asked(NamedTuple):
    """What `shrink` was asked for."""

    width: float | None
    depth: float | None
    heads: float | None
    macs: float | None
    parameters: float | None

    def check(self, example: Any) -> None:
        """Refuse what cannot be, before anything is called."""
        for name in ("width", "depth", "heads"):
            if (share := getattr(self, name)) is not None:
                positive(f"shrink.{name}", share)
                if share > 1:
                    raise ConfigError(problem(f"shrink.{name}", f"{share} is above 1", "give the share that is kept"))
        given = [name for name in ("width", "macs", "parameters") if getattr(self, name) is not None]
        if len(given) > 1:
            wrong = f"{' and '.join(given)} each say how wide it is"
            raise ConfigError(problem("shrink", wrong, f"give {' or '.join(given)} alone"))
        for name in ("macs", "parameters"):
            if getattr(self, name) is not None:
                positive(f"shrink.{name}", getattr(self, name))
        if self.macs is not None and self.macs > 1 and example is None:
            wrong = "a number of multiply-accumulates means nothing without the size of a sample"
            raise ConfigError(problem("shrink.macs", wrong, "give example=, or a share of the teacher's"))

    @property
    def deep(self) -> float:
        """The share of blocks."""
        return 1.0 if self.depth is None else self.depth

    @property
    def budget(self) -> tuple[str, float] | None:
        """What is limited, and to how much."""
        if self.macs is not None:
            return "macs", self.macs
        return None if self.parameters is None else ("parameters", self.parameters)


def _count(share: float, total: int) -> int:
    return min(total, max(1, math.floor(share * total + 0.5 + 1e-9)))


def _kept(share: float, total: int) -> int:
    """How many units stay: rounded up, as `Prune` of the same share leaves them."""
    return max(1, total - math.floor((1 - share) * total + 1e-9))


def _widths(
    model: nn.Module, evidence: Evidence, asked: _Asked, before: Size
) -> tuple[float, dict[str, list[int]], Coupling]:
    """The share of units that stay, the units of each group that go (the last ones), and the groups."""
    if asked.budget is None and asked.width in (None, 1.0) and asked.heads in (None, 1.0):
        return 1.0, {}, Coupling((), ())
    coupling = coupled(model, evidence)

    def removed(share: float) -> dict[str, list[int]]:
        found = {}
        for group in coupling.groups:
            own = asked.heads if asked.heads is not None and is_heads(model, coupling, group) else share
            found[group.name] = list(range(_kept(own, len(group.units)), len(group.units)))
        return found

    if asked.budget is None:
        share = 1.0 if asked.width is None else asked.width
        return share, removed(share), coupling
    what, budget = asked.budget
    limit = budget * getattr(before, what) if budget <= 1 else budget
    empty = hollow(model)

    def size(share: float) -> float:
        return float(getattr(predict(empty, changes_for(empty, coupling, removed(share)), evidence), what))

    share = _widest(size, limit, what, getattr(before, what))
    return share, removed(share), coupling


def _widest(size: Callable[[float], float], limit: float, what: str, before: float) -> float:
    """The largest share, up to 1, at which the network is within the limit, by bisection."""
    if size(1.0) <= limit:
        return 1.0
    low, high = 1e-6, 1.0
    if (least := size(low)) > limit:
        wrong = f"with one unit in every group that can be cut {least:,.0f} of {before:,.0f} are left; {limit:,.0f} may"
        raise ConfigError(problem(f"shrink.{what}", wrong, "ask for more, or let depth= drop blocks as well"))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if size(middle) <= limit else (low, middle)
    return low


def is_heads(model: nn.Module, coupling: Coupling, group: Group) -> bool:
    """Whether the units are attention heads.

    They are if an attention layer of torch's own makes them, if a number that is called after heads counts them, or if
    each is several features wherever linear layers make and read it.
    """
    owners = [find(model, place.tensor.rpartition(".")[0]) for place in group.index]
    if any(isinstance(owner, nn.MultiheadAttention) for owner in owners):
        return True
    units = set(group.units)
    if any("head" in count.name.lower() and units & set(count.units) for count in coupling.counts):
        return True
    linear = all(isinstance(owner, nn.Linear) for owner in owners)
    return linear and all(len(index) > 1 for indices in group.index.values() for index in indices)


def _told(model: nn.Module, coupling: Coupling, removed: Mapping[str, list[int]]) -> tuple[Cut, ...]:
    return tuple(
        Cut(
            group=group.name,
            makers=group.makers,
            of="heads" if is_heads(model, coupling, group) else "units",
            kept=len(group.units) - len(removed.get(group.name, ())),
            total=len(group.units),
        )
        for group in coupling.groups
    )


def _dropped(chosen: Mapping[Stack, list[int]], changes: list[Change]) -> tuple[Shorter, ...]:
    """The stacks that really became shorter."""
    touched = {change.at for change in changes}
    found = []
    for stack, kept in chosen.items():
        skipped = any(at.startswith(f"{stack.path}.") for at in touched)
        if stack.path in touched or skipped:
            found.append(Shorter(path=stack.path, kept=tuple(kept), total=len(stack.blocks)))
    return tuple(found)


def _numbers(
    model: nn.Module, coupling: Coupling, removed: Mapping[str, list[int]], shorter: tuple[Shorter, ...]
) -> list[Number]:
    """The counts that changed, for a configuration to follow."""
    found = [Number("layers", stack.total, len(stack.kept)) for stack in shorter]
    for group in coupling.groups:
        gone = set(removed.get(group.name, ()))
        if not gone:
            continue
        old = len(group.units)
        found.append(Number("heads" if is_heads(model, coupling, group) else "units", old, old - len(gone)))
        for place, index in group.index.items():
            size = tensor_at(model, place.tensor).shape[place.dim]
            found.append(Number("units", size, size - sum(len(index[unit]) for unit in gone)))
    return list(dict.fromkeys(found))
