"""What a smaller model may cost, and what it may lose."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from limbeck.core.errors import ConfigError, nearest, problem
from limbeck.core.setting import setting

__all__ = ["COSTS", "Budget", "Limits"]

COSTS = ("parameters", "bytes", "macs", "latency")
"""What can be budgeted: weights, bytes on disk, multiply-accumulates an example, seconds a call."""

_LOWER = ("nll", "brier", "ece", "adaptive_ece", "mse", "mae", "teacher_kl", "teacher_mse")
"""Scores of which less is better."""


@setting
class Budget:
    """What the smaller model may cost, and how much of which score it may lose; several at once.

    Args:
        parameters: a share of the original's up to 1 (0.5: half), or a number of parameters above 1.
        bytes: the same of the bytes on disk.
        macs: the same of the multiply-accumulates an example.
        latency: a share of the original's time, both measured in turns on this machine.
        milliseconds: the time of one call itself; beside it `latency` may not be given.
        drop: how much accuracy may be lost, in shares: 0.01 is one point. Where labels are numbers, how much R².
        drops: the same by score: `{"macro_recall": 0.02, "nll": 0.1}`; for those where less is better, how much may
            be gained.

    Raises:
        ConfigError: nothing is asked for, or a number makes no sense, or two contradict each other.
    """

    parameters: float | None = None
    bytes: float | None = None
    macs: float | None = None
    latency: float | None = None
    milliseconds: float | None = None
    drop: float | None = None
    drops: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        for name in (*COSTS, "milliseconds"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(problem(f"budget.{name}", f"{value!r} is no size", "give a number above 0"))
        if self.latency is not None and self.latency > 1:
            wrong = f"{self.latency} is above 1, and it is a share of the original's time"
            raise ConfigError(problem("budget.latency", wrong, "give a share, or the time itself as milliseconds="))
        if self.latency is not None and self.milliseconds is not None:
            wrong = "latency and milliseconds are both given"
            raise ConfigError(problem("budget", wrong, "give one of them"))
        for name, value in self.losses().items():
            if not math.isfinite(value) or value < 0:
                wrong = f"{value!r} is no loss"
                raise ConfigError(problem(f"budget: drop of {name}", wrong, "give a number of 0 or more"))
        if self.drop is not None and self.drops and "accuracy" in self.drops:
            wrong = "drop is that of accuracy, which drops names too"
            raise ConfigError(problem("budget", wrong, "give one of them"))
        if not self.costs:
            wrong = "it asks for nothing to be smaller"
            raise ConfigError(problem("budget", wrong, f"give one of {', '.join(COSTS)}, such as Budget(macs=0.5)"))

    @property
    def costs(self) -> tuple[str, ...]:
        """The costs that it limits."""
        timed = self.latency is not None or self.milliseconds is not None
        return tuple(name for name in COSTS if (timed if name == "latency" else getattr(self, name) is not None))

    def losses(self) -> dict[str, float]:
        """The loss that each named score may have; "" is the main one."""
        main = {} if self.drop is None else {"": self.drop}
        return {**main, **(self.drops or {})}

    def limits(self, costs: Mapping[str, float], scores: Mapping[str, Any]) -> Limits:
        """The budget in numbers, beside an original of these costs and scores.

        Raises:
            ConfigError: a score is named that was not measured, or a cost is asked for that exceeds the original's.
        """
        ceilings = {}
        for name in self.costs:
            given = self.milliseconds / 1e3 if name == "latency" and self.milliseconds else getattr(self, name)
            absolute = given > 1 or (name == "latency" and self.milliseconds is not None)
            if absolute and given > costs[name]:
                wrong = f"{given:g} is more than the original has ({costs[name]:g})"
                raise ConfigError(problem(f"budget.{name}", wrong, "ask for less, or leave it out"))
            ceilings[name] = given if absolute else given * costs[name]
        known = [name for name, value in scores.items() if isinstance(value, float)]
        main = "accuracy" if "accuracy" in known else "r2" if "r2" in known else ""
        floors, lids = {}, {}
        for name, loss in self.losses().items():
            score = name or main
            if score not in known:
                wrong = f"the score {score!r} was not measured" if score else "there is no accuracy to lose"
                raise ConfigError(problem("budget.drops", wrong, nearest(score, known)))
            if score in _LOWER:
                lids[score] = scores[score] + loss
            else:
                floors[score] = scores[score] - loss
        return Limits(ceilings, floors, lids)


@dataclass(frozen=True)
class Limits:
    """A budget in numbers: costs at most, scores at least (`floors`) and at most (`lids`)."""

    ceilings: Mapping[str, float]
    floors: Mapping[str, float]
    lids: Mapping[str, float]

    def over(self, costs: Mapping[str, float]) -> dict[str, float]:
        """By cost, the factor by which it is above its limit; only those that are."""
        return {name: costs[name] / most for name, most in self.ceilings.items() if costs[name] > most}

    def excess(self, costs: Mapping[str, float]) -> float:
        """The largest factor between a cost and its limit; up to 1 when all are met."""
        return max((costs[name] / most for name, most in self.ceilings.items()), default=0.0)

    def lost(self, scores: Mapping[str, Any]) -> dict[str, float]:
        """By score, how much more is lost than may be; only those of which that is true."""
        below = {name: least - scores[name] for name, least in self.floors.items() if not scores[name] >= least}
        above = {name: scores[name] - most for name, most in self.lids.items() if not scores[name] <= most}
        return {**below, **above}

    def met(self, costs: Mapping[str, float], scores: Mapping[str, Any]) -> bool:
        """Whether everything is within its limit."""
        return not self.over(costs) and not self.lost(scores)
