"""Cut the units that matter least: channels, heads and hidden units, with all that is coupled to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import nn

from limbeck.compress.base import Change, Evidence, Left, Size, hollow, predict
from limbeck.compress.criteria import CRITERIA, NEEDS, Criterion, Scores
from limbeck.compress.units import as_left, caller, changes_for, coupled, selected
from limbeck.core.check import one_of, positive, whole
from limbeck.core.coupling import Coupling
from limbeck.core.errors import ConfigError, nearest, problem
from limbeck.core.proof import confirmed
from limbeck.core.setting import setting

__all__ = ["Prune", "choose"]

_HALVINGS = 12
_ALL = {2: "both", 3: "all"}


@setting
class Prune:
    """Remove units by score, so that the network without them equals the one in which they are silent.

    Attributes:
        criterion: the measure, see `CRITERIA`.
        ratio: share of the units that go, 0 to 1; not used where `macs` or `parameters` says how far to go.
        macs: share of the multiply-accumulates that may stay, above 0 and up to 1.
        parameters: the same of the parameters.
        ratios: the share that goes by group of units (its name); groups that are not named stay whole, and `ratio` and
            `scope` say nothing.
        scope: "layer" takes the share from every group of units; "global" ranks all units of the network together,
            each score divided by the mean of its group.
        rounds: in how many parts `parts` splits the whole, for training in between. Planned at once, it is one cut.
        minimum: units that every group keeps.
        round_to: groups keep a multiple of so many units, rounded up.
        include: patterns of layers (as in `layer1.*`) whose units may go.
        exclude: patterns of layers whose units stay, even if included.

    Raises:
        ConfigError: a number is out of range, both `macs` and `parameters` are given, or, when it is planned, a
            pattern fits no layer or no cut is small enough.
    """

    kind: Literal["prune"] = "prune"
    criterion: Criterion = "l2"
    ratio: float = 0.5
    ratios: Mapping[str, float] | None = None
    macs: float | None = None
    parameters: float | None = None
    scope: Literal["global", "layer"] = "global"
    rounds: int = 1
    minimum: int = 1
    round_to: int = 1
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    follows: ClassVar[frozenset[str]] = frozenset(
        {"bake", "depth", "factorize", "features", "merge", "merge_units", "prune", "vocabulary"}
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        one_of("prune.criterion", self.criterion, tuple(CRITERIA))
        one_of("prune.scope", self.scope, ("global", "layer"))
        for name in ("rounds", "minimum", "round_to"):
            whole(f"prune.{name}", getattr(self, name))
        for name, share in {"": self.ratio, **(self.ratios or {})}.items():
            if not 0 <= share <= 1:
                where = f"prune.ratios, {name}" if name else "prune.ratio"
                raise ConfigError(problem(where, f"{share!r} is no share", "give a number from 0 to 1"))
        for name in ("macs", "parameters"):
            if (share := getattr(self, name)) is not None:
                positive(f"prune.{name}", share)
                if share > 1:
                    raise ConfigError(problem(f"prune.{name}", f"{share} is above 1", "give the share that may stay"))
        said = [name for name in ("macs", "parameters", "ratios") if getattr(self, name) is not None]
        if len(said) > 1:
            raise ConfigError(
                problem("prune", f"{' and '.join(said)} are {_ALL[len(said)]} given", "give the one that counts")
            )

    @property
    def needs(self) -> frozenset[str]:
        """Of the evidence: what the criterion reads."""
        return NEEDS.get(self.criterion, frozenset())

    def parts(self) -> tuple[Prune, ...]:
        """As many equal parts as there are rounds, which one after the other go as far as the whole.

        Each keeps the same share of what the last one left: the share of the whole to the power of 1 / rounds.
        """
        root = 1 / self.rounds
        part = replace(
            self,
            rounds=1,
            ratio=1 - (1 - self.ratio) ** root,
            ratios=None if self.ratios is None else {k: 1 - (1 - v) ** root for k, v in self.ratios.items()},
            macs=None if self.macs is None else self.macs**root,
            parameters=None if self.parameters is None else self.parameters**root,
        )
        return (part,) * self.rounds

    def groups(self, model: nn.Module, evidence: Evidence) -> tuple[str, ...]:
        """The names of the groups of units that may be cut, for `ratios`."""
        groups, _ = selected(model, "prune", coupled(model, evidence).groups, self.include, self.exclude)
        return tuple(group.name for group in groups)

    def changes(self, model: nn.Module, evidence: Evidence) -> tuple[Sequence[Change], Sequence[Left]]:
        """The cuts, and what stays whole."""
        coupling = coupled(model, evidence)
        groups, left = selected(model, "prune", coupling.groups, self.include, self.exclude)
        left += as_left(coupling.left)
        scores = CRITERIA[self.criterion](model, groups, evidence)
        left += [Left(at=g.name, why=f"{self.criterion} cannot judge it") for g in groups if g.name not in scores]
        groups = [group for group in groups if group.name in scores]
        for name in self.ratios or ():
            if name not in scores:
                raise ConfigError(
                    problem("prune.ratios", f"no group of units is called {name!r}", nearest(name, scores))
                )

        def removed(ratio: float) -> dict[str, list[int]]:
            shares = ratio if self.ratios is None else {name: self.ratios.get(name, 0.0) for name in scores}
            return choose(scores, shares, self.scope, minimum=self.minimum, round_to=self.round_to)

        wanted = removed(self._ratio(model, evidence, coupling, removed))
        sure, unsure = confirmed(model, caller(evidence), coupling, wanted)
        return changes_for(model, coupling, sure), [*left, *as_left(unsure)]

    def _ratio(
        self, model: nn.Module, evidence: Evidence, coupling: Coupling, removed: Callable[[float], dict[str, list[int]]]
    ) -> float:
        """The share of units to remove: as said, or the smallest whose result is small enough."""
        if self.macs is None and self.parameters is None:
            return self.ratio
        empty = hollow(model)
        before = predict(empty, (), evidence)

        def share(ratio: float) -> float:
            after = predict(empty, changes_for(empty, coupling, removed(ratio)), evidence)
            return _share(after, before, "macs" if self.macs is not None else "parameters")

        target = self.macs if self.macs is not None else self.parameters
        assert target is not None
        low, high = 0.0, 1.0
        if share(low) <= target:
            return low
        if (least := share(high)) > target:
            wrong = f"without these units {least:.3f} of the original is left, and {target} is wanted"
            mend = "ask for more, include more layers, or let another operation go first"
            raise ConfigError(problem("prune", wrong, mend))
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if share(middle) <= target else (middle, high)
        return high


def choose(
    scores: Scores,
    ratio: float | Mapping[str, float],
    scope: Literal["global", "layer"],
    *,
    minimum: int = 1,
    round_to: int = 1,
) -> dict[str, list[int]]:
    """The units that go: of each group (by name) the positions with the least scores, in order.

    Args:
        scores: for each group, a score for each unit; of equal ones the first goes first.
        ratio: share of the units that go, rounded down; or the share by group, whatever the scope.
        scope: "layer" by group, "global" over all, each score divided by the mean of its group.
        minimum: units that every group keeps.
        round_to: each group that loses any keeps a multiple of so many, rounded up.
    """
    ranked = {name: value.argsort(stable=True).tolist() for name, value in scores.items()}
    if isinstance(ratio, Mapping):
        counts = {name: _floor(ratio[name] * len(order)) for name, order in ranked.items()}
    elif scope == "layer":
        counts = {name: _floor(ratio * len(order)) for name, order in ranked.items()}
    else:
        counts = _by_rank(scores, ranked, ratio)
    removed = {}
    for name, order in ranked.items():
        kept = max(len(order) - counts[name], min(minimum, len(order)), 1)
        kept = min(len(order), math.ceil(kept / round_to) * round_to)
        removed[name] = sorted(order[: len(order) - kept])
    return removed


def _by_rank(scores: Scores, ranked: Mapping[str, list[int]], ratio: float) -> dict[str, int]:
    names = [name for name, order in ranked.items() for _ in order]
    relative = [value / value.mean().clamp_min(1e-30) for value in scores.values()]
    order = torch.cat(relative).cpu().argsort(stable=True) if relative else torch.zeros(0, dtype=torch.long)
    counts = dict.fromkeys(ranked, 0)
    for index in order[: _floor(ratio * len(names))].tolist():
        counts[names[index]] += 1
    return counts


def _floor(amount: float) -> int:
    return math.floor(amount + 1e-9)  # 0.3 of 10 is 3, whatever binary fractions say


def _share(after: Size, before: Size, what: Literal["macs", "parameters"]) -> float:
    return float(getattr(after, what) / max(1, getattr(before, what)))
