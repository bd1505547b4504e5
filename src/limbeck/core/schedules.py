"""Numbers that move with training: pure functions of progress, from 0 at the first step to 1 after the last.

One mechanism serves learning rates (a factor on the base rate) and the weights of terms (the weight itself).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from limbeck.core.errors import ConfigError, problem
from limbeck.core.setting import setting

__all__ = [
    "SCHEDULES",
    "Constant",
    "Cosine",
    "Linear",
    "Number",
    "OneCycle",
    "Schedule",
    "Steps",
    "settled",
    "value_at",
]


def _share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(problem(name, f"{value} is not a share of the run", "give a number from 0 to 1"))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def _warm(progress: float, warmup: float) -> float | None:
    """The factor during warm-up (linear from a hundredth), or None when it is over."""
    return 0.01 + 0.99 * progress / warmup if progress < warmup else None


@setting
class Constant:
    """`value` throughout, after a linear warm-up over the first `warmup` share of the run."""

    kind: Literal["constant"] = "constant"
    value: float = 1.0
    warmup: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a warm-up that is no share."""
        _share("constant.warmup", self.warmup)

    def __call__(self, progress: float) -> float:
        """The value at this progress."""
        warm = _warm(progress, self.warmup)
        return self.value * (1.0 if warm is None else warm)


@setting
class Linear:
    """From `start` to `end` in a straight line, reached at `until` and then held."""

    kind: Literal["linear"] = "linear"
    start: float = 1.0
    end: float = 0.0
    until: float = 1.0

    def __post_init__(self) -> None:
        """Refuse an end that is no share."""
        _share("linear.until", self.until)

    def __call__(self, progress: float) -> float:
        """The value at this progress."""
        share = min(1.0, progress / self.until) if self.until else 1.0
        return self.start + (self.end - self.start) * share


@setting
class Cosine:
    """From `start` to `end` along half a cosine (Loshchilov & Hutter 2017, one cycle), after an optional warm-up."""

    kind: Literal["cosine"] = "cosine"
    start: float = 1.0
    end: float = 0.0
    warmup: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a warm-up that is no share."""
        _share("cosine.warmup", self.warmup)

    def __call__(self, progress: float) -> float:
        """The value at this progress."""
        warm = _warm(progress, self.warmup)
        if warm is not None:
            return self.start * warm
        return _cosine(self.start, self.end, min(1.0, (progress - self.warmup) / max(1e-12, 1 - self.warmup)))


@setting
class OneCycle:
    """Up from `start` to 1 by `peak`, down to `end`, both along cosines (Smith & Topin 2018; factors of the rate)."""

    kind: Literal["one_cycle"] = "one_cycle"
    peak: float = 0.3
    start: float = 0.04
    end: float = 4e-6

    def __post_init__(self) -> None:
        """Refuse a peak that is no share."""
        _share("one_cycle.peak", self.peak)

    def __call__(self, progress: float) -> float:
        """The value at this progress."""
        if progress < self.peak:
            return _cosine(self.start, 1.0, progress / self.peak)
        return _cosine(1.0, self.end, min(1.0, (progress - self.peak) / max(1e-12, 1 - self.peak)))


@setting
class Steps:
    """Multiply by `factor` at each share in `at`, after an optional warm-up."""

    kind: Literal["steps"] = "steps"
    at: tuple[float, ...] = (0.5, 0.75)
    factor: float = 0.1
    warmup: float = 0.0

    def __post_init__(self) -> None:
        """Refuse marks that are no shares."""
        for mark in (*self.at, self.warmup):
            _share("steps", mark)

    def __call__(self, progress: float) -> float:
        """The value at this progress."""
        warm = _warm(progress, self.warmup)
        return warm if warm is not None else self.factor ** sum(progress >= mark for mark in self.at)


SCHEDULES: dict[str, type] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "one_cycle": OneCycle,
    "steps": Steps,
}

Schedule = Constant | Linear | Cosine | OneCycle | Steps
Number = float | Schedule
"""A number, or a schedule of one."""


def value_at(number: Number, progress: float) -> float:
    """The number at this progress."""
    return number if isinstance(number, int | float) else number(progress)


def settled(value: Any, progress: float) -> Any:
    """A setting with every schedule in it, however deep, replaced by its number at this progress.

    So any number of any setting may move over a run, and what reads the setting sees plain numbers. What holds no
    schedule is returned as it is.
    """
    if isinstance(value, Schedule):
        return value(progress)
    if isinstance(value, tuple):
        each = tuple(settled(item, progress) for item in value)
        return each if any(new is not old for new, old in zip(each, value, strict=True)) else value
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    changed = {}
    for field in dataclasses.fields(value):
        old = getattr(value, field.name)
        if (new := settled(old, progress)) is not old:
            changed[field.name] = new
    return dataclasses.replace(value, **changed) if changed else value
