"""Plain functions that hear records: closures that evaluate, write, draw and decide when to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from limbeck.core.records import StepRecord
from limbeck.train.loop import Listener

__all__ = ["Watch", "each_epoch", "time_limit"]


def each_epoch(act: Callable[[StepRecord], str | None]) -> Listener:
    """Act on the last record of each epoch only."""

    def listen(record: StepRecord) -> str | None:
        return act(record) if record.epoch_end else None

    return listen


def time_limit(seconds: float) -> Callable[[], str | None]:
    """A reason to halt once this much wall time has passed since now."""
    end = time.monotonic() + seconds
    return lambda: "time" if time.monotonic() >= end else None


_INSTEAD = {
    "accuracy": ("agreement", "mse", "teacher_mse"),
    "nll": ("teacher_kl", "mse", "teacher_mse"),
}
"""What is watched where there is no such score: without labels the teacher, and errors where labels are numbers."""

_HIGHER = frozenset({"accuracy", "agreement"})
"""Where more is better."""


class Watch:
    """Follows a validation score over epochs: which epoch was best, and whether to stop.

    Its numbers are plain, so that a checkpoint can keep them.
    """

    def __init__(self, *, monitor: str, patience: int | None, target: float | None = None) -> None:
        self.monitor, self.patience, self.target = monitor, patience, target
        self.best: float | None = None
        self.best_epoch = 0
        self.since = 0
        self.reached = False

    def hear(self, epoch: int, scores: Mapping[str, object]) -> bool:
        """Take the scores of an epoch; say whether it is the best so far."""
        name = next(name for name in (self.monitor, *_INSTEAD[self.monitor]) if name in scores)
        value = float(scores[name])  # type: ignore[arg-type]
        value = value if name in _HIGHER else -value
        if self.target is not None:
            self.reached = value >= (self.target if name in _HIGHER else -self.target)
        if self.best is None or value > self.best:
            self.best, self.best_epoch, self.since = value, epoch, 0
            return True
        self.since += 1
        return False

    @property
    def reason(self) -> str | None:
        """Why to stop, if the target is reached or patience has run out."""
        if self.reached:
            return "target"
        return "patience" if self.patience is not None and self.since >= self.patience else None

    def plain(self) -> dict[str, float | int | None]:
        """What a checkpoint keeps."""
        return {"best": self.best, "best_epoch": self.best_epoch, "since": self.since, "reached": self.reached}

    def restore(self, plain: Mapping[str, float | int | None]) -> None:
        """Go on from what a checkpoint kept."""
        self.best = plain["best"]
        self.best_epoch, self.since = int(plain["best_epoch"] or 0), int(plain["since"] or 0)
        self.reached = bool(plain.get("reached"))
