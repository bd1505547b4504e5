"""Do stored targets belong to what is trained on, and how are their views repeated?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from limbeck.core.errors import CheckpointError, ConfigError, DataError, problem
from limbeck.core.folder import first_difference, value_at
from limbeck.core.seeds import derive
from limbeck.core.setting import as_plain
from limbeck.data import Augmentation, Batches, Source, describe
from limbeck.teachers.signal import Teaching
from limbeck.teachers.stored import Targets

__all__ = ["Replay", "augment_seed", "augmentation_identity", "check_views", "data_identity", "replay", "stored"]


class Replay(NamedTuple):
    """How training repeats the views that targets were made from."""

    views: int | None = None
    augment_seed: int | None = None


def replay(teacher: Teaching | None, source: Source, augment: Augmentation | None, names: Iterable[str]) -> Replay:
    """How to train with this teacher; what stored targets do not fit, or lack, is refused.

    Raises:
        CheckpointError: the targets were made on other data or another augmentation; the field is named.
        DataError: they lack samples, views or files, and there is no live teacher to add them.
    """
    if not isinstance(teacher, Targets):
        return Replay()
    plan, where = teacher.store.plan, str(teacher.path)
    batches = Batches(source, batch_size=1, augment=augment)
    held = {"data": {**plan.data, "tokens": None}, "augmentation": plan.augmentation}
    now = {"data": {**data_identity(source), "tokens": None}, "augmentation": augmentation_identity(batches)}
    differs = first_difference(held, now)
    if differs is not None:
        a, b = (value_at(side, differs) for side in (held, now))
        wrong = f"these targets do not belong to this run: `{differs}` is {a} there and {b} here"
        raise CheckpointError(problem(where, wrong, f"train as they were made, or make others: {teacher.command()}"))
    lacks = teacher.store.covers(source.ids, range(plan.views), stored(teacher, names))
    if lacks and teacher.live is None:
        wrong = f"these targets lack {'; '.join(lacks)}"
        raise DataError(problem(where, wrong, f"run the same command again to add it: {teacher.command()}"))
    return Replay(plan.views, augment_seed(plan.seed))


def check_views(views: int, augment: Augmentation | None) -> None:
    """Refuse to make several views that would be one and the same.

    Raises:
        ConfigError: there is more than one, and nothing that makes them differ.
    """
    if views > 1 and describe(augment)["kind"] == "none":
        wrong = f"{views} views are asked for and no augmentation, so they would be one and the same"
        raise ConfigError(problem("views", wrong, "give `augment`, or set `views` to 1"))


def stored(targets: Targets, names: Iterable[str]) -> list[str]:
    """Those of the names that are in the targets."""
    return [name for name in names if name in targets.store.names]


def augment_seed(seed: int) -> int:
    """The seed of the augmentation alone, from the seed that targets are made with."""
    return derive(seed, "views")


def data_identity(source: Source) -> dict[str, Any]:
    """What decides the inputs that a teacher sees before augmentation, labels left out."""
    return {"inputs": source.inputs_fingerprint(), "normalize": as_plain(source.normalize)}


def augmentation_identity(batches: Batches) -> dict[str, Any]:
    """What decides the views; where samples are mixed, also the set of samples that partners come from."""
    told = describe(batches.augment)
    return told if batches.partners_depend_on is None else {**told, "partners": batches.partners_depend_on}
