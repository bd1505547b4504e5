"""A training as a list of stages: each with its own terms, parts, rate, length and end."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from limbeck.core.check import whole
from limbeck.core.errors import ConfigError, problem
from limbeck.core.schedules import SCHEDULES
from limbeck.core.setting import setting, tagged
from limbeck.objectives import Term, as_objective
from limbeck.objectives.term import AnyTerm
from limbeck.train.settings import Training
from limbeck.train.tuning import Tuning

if TYPE_CHECKING:
    AnySchedule = Any
else:
    AnySchedule = tagged(SCHEDULES)

__all__ = ["Stage", "check_stages", "terms_of"]


@setting
class Stage:
    """One stage of a training; what is None is as the whole training has it.

    It begins with the weights that the stage before ended with, and with an optimizer and a schedule of its own. The
    order of samples and their views go on where the stage before stopped. Of the whole training, `keep` is for the
    last stage; those before it end with their last weights.

    Args:
        name: letters, digits, - and _; it names the stage in the run folder.
        epochs: at most so many passes.
        objective: the terms.
        rate: the base learning rate.
        schedule: the factor on it over the stage.
        tuning: which parts learn.
        monitor: what is watched on validation: "accuracy" or "nll".
        patience: end after so many epochs without an improvement of `monitor`.
        target: end with the epoch in which `monitor` has reached this.
    """

    name: str
    epochs: int
    objective: tuple[AnyTerm, ...] | None = None
    rate: float | None = None
    schedule: AnySchedule | None = None
    tuning: Tuning | None = None
    monitor: Literal["accuracy", "nll"] | None = None
    patience: int | None = None
    target: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be a stage; the rest is refused where it is put into the training."""
        if not self.name.replace("-", "").replace("_", "").isalnum():
            raise ConfigError(problem("stages", f"{self.name!r} names no stage", "use letters, digits, - and _"))
        whole(f"stages.{self.name}.epochs", self.epochs)
        if self.objective is not None:
            as_objective(self.objective)

    def training(self, whole: Training, *, last: bool) -> Training:
        """The settings of this stage, out of those of the whole training.

        Raises:
            ConfigError: they cannot be.
        """
        changes: dict[str, Any] = {"epochs": self.epochs, "keep": whole.keep if last else "last"}
        for name in ("schedule", "tuning", "monitor", "patience", "target"):
            if getattr(self, name) is not None:
                changes[name] = getattr(self, name)
        if self.rate is not None:
            changes["optimizer"] = dataclasses.replace(whole.optimizer, rate=self.rate)
        return dataclasses.replace(whole, **changes)


def check_stages(where: str, stages: Sequence[Stage]) -> None:
    """Refuse two stages of one name, which would be one in the run folder.

    Raises:
        ConfigError: there are, or something is no stage.
    """
    names: set[str] = set()
    for stage in stages:
        if not isinstance(stage, Stage):
            mend = 'give limbeck.Stage(name="hints", epochs=5), one or more'
            raise ConfigError(problem(where, f"{stage!r} is no stage", mend))
        if stage.name in names:
            raise ConfigError(problem(where, f"two are called {stage.name!r}", "give each a name of its own"))
        names.add(stage.name)


def terms_of(objective: Sequence[Term], stages: Sequence[Stage]) -> tuple[Term, ...]:
    """Every term that is used in some stage, once; those of the objective where there are no stages."""
    every = [term for stage in stages for term in (stage.objective or objective)] if stages else list(objective)
    return tuple(term for i, term in enumerate(every) if term not in every[:i])
