"""The search for a model within a budget: levers in their order, each pulled as far as needed and as far as it holds.

It knows nothing of networks: a model is whatever `change` and `repair` give and `weigh` and `score` take. Costs are
cheap to find out, since they need no training; scores are not, so each lever is first set by its costs alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, TypeVar

from limbeck.core.setting import setting
from limbeck.search.budget import Budget, Limits

__all__ = ["Attempt", "Found", "Lever", "find"]

M = TypeVar("M")

_HALVINGS = 7
_AGAIN = 2
"""How often the chain is gone through again, because the steps at its end saved less than they did on the original."""


@setting
class Lever:
    """A step of the chain.

    Attributes:
        name: what it does, in a word.
        most: the largest strength that the costs may lead to; None for a step that is taken or not.
        first: the strength to begin with; None lets the costs say it.
        free: it loses nothing, and is taken wherever it saves something.
        repaired: training makes sense after it.
    """

    name: str
    most: float | None = 1.0
    first: float | None = None
    free: bool = False
    repaired: bool = True


@setting
class Attempt:
    """One model that was met: what it came from, what it costs, what it scores, and what became of it.

    `parent` is the number of the attempt it was changed from, `strength` None for a step that has none.
    """

    number: int
    parent: int | None
    lever: str
    strength: float | None
    costs: Mapping[str, float]
    scores: Mapping[str, Any]
    repaired: bool
    met: bool
    """Whether all of the budget is met."""
    held: bool
    """Whether no score lost more than it may."""
    kept: bool = False
    """Whether the search went on from here."""
    why: str = ""


@dataclass(frozen=True)
class Found(Generic[M]):
    """What a search ends with: the best model met, whether all was met, and every attempt.

    `missed` says by cost the factor above its limit, and `lost` by score what was lost beyond what may be.
    """

    model: M
    best: Attempt
    attempts: Sequence[Attempt]
    limits: Limits
    missed: Mapping[str, float]
    lost: Mapping[str, float]

    @property
    def met(self) -> bool:
        """Whether the whole budget is met."""
        return not self.missed and not self.lost


Change = Callable[[M, Lever, float | None], M | None]
"""The model changed by a lever at a strength; None where that cannot be done."""
Weigh = Callable[[M], Mapping[str, float]]
Score = Callable[[M], Mapping[str, Any]]
Repair = Callable[[M, Lever, float | None], M]


def find(
    original: M,
    levers: Sequence[Lever],
    budget: Budget,
    *,
    change: Change[M],
    weigh: Weigh[M],
    score: Score[M],
    repair: Repair[M] | None = None,
    tries: int = 3,
    hear: Callable[[Attempt], None] = lambda _: None,
) -> Found[M]:
    """Pull each lever as far as the costs need it and the scores let it, and give back the best model met.

    What a step that has no strength saves is found out on the original first, so that the steps before it need not
    save that too; where it saves less in the end, the chain is gone through again. A lever with a strength is set by
    bisection to the least that its costs ask for; the model is then repaired and scored, as it is and with those later
    steps taken. Where a score breaks, the lever is weakened by bisection, and left alone where nothing holds. There is
    always a model: the original holds by itself.

    Args:
        original: the model to begin with.
        levers: the chain, in order.
        budget: what is asked for.
        change: a changed copy of a model, or None.
        weigh: the costs of a model, by name; those that the budget names, at least.
        score: its scores, by name.
        repair: makes a changed model better, given the lever and its strength.
        tries: how often a lever is weakened.
        hear: is told of each attempt when it is decided.

    Raises:
        ConfigError: the budget does not fit the original.
    """
    search = _Search(original, budget, change=change, weigh=weigh, score=score, repair=repair, tries=tries, hear=hear)
    last = max((i for i, lever in enumerate(levers) if lever.most is not None), default=-1) + 1
    chain, tail = levers[:last], levers[last:]
    saved = {lever.name: search.saving(original, lever) for lever in levers}
    before = None
    for again in range(1 + _AGAIN):
        search.pull_all(chain, tail, saved, again=bool(again))
        if search.now == before:  # there was no more to be had, and the steps at the end would save what they did
            break
        before = search.pinned = search.now
        for lever in tail:
            search.pull(lever, Ahead([]))
        if not search.misjudged(before, tail, saved):
            break
        search.back(before)
    best = search.best()
    limits = search.limits
    return Found(search.models[best.number], best, tuple(search.attempts), limits, limits.over(best.costs),
                 limits.lost(best.scores))  # fmt: skip


class Ahead(NamedTuple):
    """The steps without a strength that are still to come, and the share of each cost that each leaves."""

    steps: Sequence[tuple[Lever, Mapping[str, float]]]

    def left(self, name: str) -> float:
        """The share of a cost that they leave together."""
        return math.prod(shares.get(name, 1.0) for _, shares in self.steps)


class _Search(Generic[M]):
    """One search: where it stands, and what it has met."""

    def __init__(
        self, original: M, budget: Budget, *, change: Change[M], weigh: Weigh[M], score: Score[M],
        repair: Repair[M] | None, tries: int, hear: Callable[[Attempt], None],
    ) -> None:  # fmt: skip
        self.change, self.weigh, self.score, self.repair = change, weigh, score, repair
        self.tries, self.hear = tries, hear
        costs, scores = weigh(original), score(original)
        self.limits = budget.limits(costs, scores)
        self.attempts: list[Attempt] = []
        self.models: dict[int, M] = {}
        self.now = 0
        self.pinned: int | None = None
        self.keep(self.note(original, None, Lever(name="original"), None, scores, repaired=False), "where it starts")

    def note(
        self, model: M, parent: int | None, lever: Lever, strength: float | None, scores: Mapping[str, Any], *,
        repaired: bool,
    ) -> Attempt:  # fmt: skip
        """Enter a model that was met."""
        costs, held = dict(self.weigh(model)), not self.limits.lost(scores)
        made = Attempt(number=len(self.attempts), parent=parent, lever=lever.name, strength=strength, costs=costs,
                       scores=dict(scores), repaired=repaired, held=held,
                       met=held and not self.limits.over(costs))  # fmt: skip
        self.attempts.append(made)
        self.models[made.number] = model
        return made

    def keep(self, attempt: Attempt, why: str) -> None:
        """Go on from here."""
        self.now = attempt.number
        self._decide(attempt, why, kept=True)
        alive = (self.now, self.pinned, self.best().number)
        self.models = {number: model for number, model in self.models.items() if number in alive}

    def drop(self, attempt: Attempt, why: str) -> None:
        """Do not go on from here. The model is remembered if it is the best so far."""
        self._decide(attempt, why, kept=False)
        if attempt.number not in (self.best().number, self.pinned):
            del self.models[attempt.number]

    def _decide(self, attempt: Attempt, why: str, *, kept: bool) -> None:
        told = replace(attempt, kept=kept, why=why)
        self.attempts[attempt.number] = told
        self.hear(told)

    def best(self) -> Attempt:
        """Of those whose scores hold, the one nearest to its costs; of several within them, that which scores best.

        Among equals it is one that the search went on from: a repair that was undone is no result.
        """
        held = [each for each in self.attempts if each.held and each.number in self.models]
        return min(held, key=lambda each: (max(1.0, self.limits.excess(each.costs)), self.loss(each), not each.kept,
                                           -each.number))  # fmt: skip

    def loss(self, attempt: Attempt) -> float:
        """What the scores that matter have lost beside the original, summed."""
        start = self.attempts[0].scores
        up, down = self.limits.floors, self.limits.lids
        watched = [*up] or ([] if down else [name for name in ("accuracy", "r2") if name in start][:1])
        less = sum(start[name] - attempt.scores[name] for name in watched)
        return float(less + sum(attempt.scores[name] - start[name] for name in down))

    def saving(self, original: M, lever: Lever) -> Mapping[str, float]:
        """The share of each cost that a step without a strength leaves, found out on the original."""
        if lever.most is not None or not self.limits.over(self.attempts[0].costs):
            return {}
        changed = self.change(original, lever, None)
        if changed is None or self.limits.lost(self.score(changed)):
            return {}
        costs, before = self.weigh(changed), self.attempts[0].costs
        return {name: costs[name] / before[name] for name in self.limits.ceilings if before[name]}

    def pull_all(
        self, chain: Sequence[Lever], tail: Sequence[Lever], saved: Mapping[str, Mapping[str, float]], *, again: bool
    ) -> None:
        """Set the levers of a chain one after the other, each in view of the steps that will follow."""
        for index, lever in enumerate(chain):
            rest = [each for each in (*chain[index + 1 :], *tail) if saved[each.name]]
            self.pull(
                replace(lever, first=None) if again else lever, Ahead([(each, saved[each.name]) for each in rest])
            )

    def misjudged(self, before: int, tail: Sequence[Lever], saved: dict[str, Mapping[str, float]]) -> bool:
        """Whether the steps at the end were taken and left more than was thought; what they left is noted."""
        now, then = self.attempts[self.now].costs, self.attempts[before].costs
        taken = self._since(before)
        if not taken or not self.limits.over(now):
            return False
        thought = Ahead([(lever, saved[lever.name]) for lever in tail if saved[lever.name]])
        start, left = self.attempts[0].costs, {}
        for name, most in self.limits.ceilings.items():
            # What they leave has a fixed part: a line through what they did to the original and to this model.
            ends = start[name] * thought.left(name) - now[name], start[name] - then[name]
            slope = ends[0] / ends[1] if ends[1] else 0.0
            part = now[name] - slope * then[name]
            left[name] = (
                slope * most / (most - part) if slope > 0 and most > part else now[name] / max(then[name], 1e-9)
            )
        if all(share <= thought.left(name) for name, share in left.items()):
            return False
        for lever in tail:
            saved[lever.name] = left if lever.name == taken[-1] else {}
        return True

    def _since(self, before: int) -> list[str]:
        """The levers that led from an attempt to where the search stands."""
        names: list[str] = []
        number: int | None = self.now
        while number is not None and number != before:
            names.append(self.attempts[number].lever)
            number = self.attempts[number].parent
        return names[::-1]

    def back(self, number: int) -> None:
        """Go on from an earlier attempt."""
        self.now = number

    def pull(self, lever: Lever, ahead: Ahead) -> None:
        """Set one lever, or take one step."""
        if lever.most is None:
            self._take(lever)
        elif self._short(self.attempts[self.now].costs, ahead) or lever.first is not None:
            self._set(lever, lever.most, ahead)

    def _take(self, lever: Lever) -> None:
        now = self.attempts[self.now]
        if not self.limits.over(now.costs) and not lever.free:
            return
        model = self.change(self.models[now.number], lever, None)
        if model is None:
            return
        tried = self._attempt(lever, None, model)
        saves = any(tried.costs[name] < now.costs[name] for name in self.limits.ceilings)
        if tried.held and saves:
            self.keep(tried, "it holds")
        else:
            self.drop(tried, self._broken(tried) if saves else "it saves nothing of what is asked for")

    def _set(self, lever: Lever, most: float, ahead: Ahead) -> None:
        start = self.models[self.now]
        low, high = 0.0, lever.first if lever.first is not None else self._needed(lever, start, most, ahead)
        strength, held = high, None
        for _ in range(1 + self.tries):
            model = self.change(start, lever, strength)
            if model is None:
                high = strength
            else:
                tried = self._attempt(lever, strength, model)
                broken = self._broken(tried) or self._broken_by(tried, ahead)
                if not broken:
                    if held is not None:
                        self.drop(held, "a stronger one holds too")
                    low, held = strength, tried
                else:
                    high = strength
                    self.drop(tried, broken)
            if low == high:
                break
            strength = (low + high) / 2
        if held is not None:
            self.keep(held, "it holds")

    def _attempt(self, lever: Lever, strength: float | None, model: M) -> Attempt:
        """Score a changed model, repair it and score it again. A repair that makes things worse is undone."""
        tried = self.note(model, self.now, lever, strength, self.score(model), repaired=False)
        if self.repair is None or lever.free or not lever.repaired:
            return tried
        better = self.repair(model, lever, strength)
        mended = self.note(better, self.now, lever, strength, self.score(better), repaired=True)
        if self.loss(mended) < self.loss(tried) or (mended.held and not tried.held):
            self.drop(tried, "before its repair")
            return mended
        self.drop(mended, "the repair made it no better, and was undone")
        return tried

    def _needed(self, lever: Lever, start: M, most: float, ahead: Ahead) -> float:
        """The least strength whose costs are low enough for the rest of the chain, to within 1 / 2^7 of the most."""
        low, high = 0.0, most
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            model = self.change(start, lever, middle)
            enough = model is not None and not self._short(self.weigh(model), ahead)
            low, high = (low, middle) if enough else (middle, high)
        return high

    def _short(self, costs: Mapping[str, float], ahead: Ahead) -> bool:
        """Whether costs stay above their limits even after what later steps save."""
        return bool(self.limits.over({name: costs[name] * ahead.left(name) for name in self.limits.ceilings}))

    def _broken(self, attempt: Attempt) -> str:
        return self._told(attempt.scores)

    def _broken_by(self, attempt: Attempt, ahead: Ahead) -> str:
        """What would be lost too much once the steps ahead are taken."""
        model = self.models[attempt.number]
        for lever, _ in ahead.steps:
            model = self.change(model, lever, None) or model
        said = self._told(self.score(model)) if ahead.steps else ""
        return f"with {' and '.join(lever.name for lever, _ in ahead.steps)} to follow, {said}" if said else ""

    def _told(self, scores: Mapping[str, Any]) -> str:
        lost = self.limits.lost(scores)
        return "; ".join(f"{name} is {by:.4f} beyond what may be lost" for name, by in lost.items())
