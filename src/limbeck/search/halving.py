"""Successive halving: many arms for a short while, few for longer, within a budget that is stated beforehand.

It knows names, steps and whatever `run` gives back, and nothing of training. Source: Jamieson & Talwalkar 2016,
"Non-stochastic best arm identification and hyperparameter optimization", figure 2; here every trial begins anew, so
that each has a learning-rate schedule of its own, one arm may be carried to the end whatever it scores, and later
rungs may have a larger part of the budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from limbeck.core.errors import ConfigError, problem

__all__ = ["Rung", "Trial", "halve", "rungs"]

S = TypeVar("S")


@dataclass(frozen=True)
class Rung:
    """So many arms, the carried one among them, for so many steps each."""

    arms: int
    steps: int


@dataclass(frozen=True)
class Trial(Generic[S]):
    """One arm at one rung, what it scored, and whether it goes on."""

    rung: int
    arm: str
    steps: int
    score: S
    kept: bool
    why: str


def rungs(
    arms: int, *, budget: int, most: int, carried: bool = False, keep: float = 0.5, growth: float = 1.0, least: int = 1
) -> list[Rung]:
    """How many arms get how many steps: each rung has a part of the budget, which its arms share equally.

    From rung to rung the share `keep` of the arms that compete stays, rounded up and one fewer at least; the carried
    arm is not among those. The last rung is the one after which a single competitor is left. The sum over rungs of
    arms · steps is at most `budget`.

    Args:
        arms: how many compete, the carried one left out.
        budget: steps for everything.
        most: steps that one trial may have; what is left over is not spent.
        carried: whether one more arm is carried through every rung.
        keep: the share that stays.
        growth: the part of a rung over that of the one before; 1 is the paper's, more makes the last trials longer.
        least: steps that a trial needs to say anything.

    Raises:
        ConfigError: there is no arm, or the budget is too small for one rung.
    """
    if arms < 1:
        raise ConfigError(problem("candidates", "there is nothing to choose from", "give at least one"))
    counts = [arms]
    while (fewer := min(math.ceil(counts[-1] * keep), counts[-1] - 1)) > 1:
        counts.append(fewer)
    extra = int(carried)
    parts = [growth**number for number in range(len(counts))]
    made = [
        Rung(count + extra, min(most, math.floor(budget * part / sum(parts) / (count + extra))))
        for count, part in zip(counts, parts, strict=True)
    ]
    if made[0].steps < least:
        wrong = f"{budget} steps for trials give {made[0].arms} of them {made[0].steps} each, and {least} are the least"
        raise ConfigError(problem("share", wrong, "give a larger share, fewer candidates, or more epochs"))
    return made


def halve(
    arms: Sequence[str],
    plan: Sequence[Rung],
    *,
    run: Callable[[int, str, int], S],
    rank: Callable[[S], Any],
    carried: str | None = None,
    hear: Callable[[Trial[S]], None] = lambda _: None,
) -> list[Trial[S]]:
    """Try the arms rung by rung; the best of the last rung is the one kept there. Equal ranks go by the order given.

    The same scores give the same trials, so a caller whose `run` reads what it has finished can be killed and go on.

    Args:
        arms: the names that compete.
        plan: what `rungs` made for so many.
        run: called with (rung, arm, steps), in order; gives a score.
        rank: what scores are sorted by; larger is better.
        carried: one more arm, which is run at every rung and never dropped.
        hear: told each trial once its rung is decided.
    """
    stay, trials = list(arms), []
    extra = [carried] if carried is not None else []
    for number, rung in enumerate(plan):
        scores = {arm: run(number, arm, rung.steps) for arm in (*extra, *stay)}
        goes_on = plan[number + 1].arms - len(extra) if number + 1 < len(plan) else 1
        order = sorted(stay, key=lambda arm: rank(scores[arm]), reverse=True)  # stable: ties stay in order
        for arm, score in scores.items():
            kept = arm == carried or arm in order[:goes_on]
            why = "always carried" if arm == carried else f"place {order.index(arm) + 1} of {len(order)}"
            trials.append(Trial(number, arm, rung.steps, score, kept=kept, why=why))
            hear(trials[-1])
        stay = [arm for arm in stay if arm in order[:goes_on]]
    return trials
