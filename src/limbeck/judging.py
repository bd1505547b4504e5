"""Whom a student is held against where it is scored, and what that teacher answered there."""

from __future__ import annotations

import json
from collections.abc import Callable

from torch import Tensor

from limbeck.core.types import Named
from limbeck.data import ArraySource, Source, whole
from limbeck.teachers.joined import JoinedTeacher
from limbeck.teachers.own import SelfTeacher
from limbeck.teachers.signal import Teaching, behind
from limbeck.teachers.stored import Targets

__all__ = ["Heard", "judge_of"]

_MOST = 2**26
"""Bytes of answers that are kept of all teachers together: as much as 10,000 samples of 1,600 classes."""


def judge_of(teacher: Teaching | None, train: Source, *others: Source) -> Teaching | None:
    """The teacher that a student can be held against on validation and test data, if it can answer there.

    Targets are for the training data alone, and data of a teacher's own is joined by the ids of the training data,
    which mean other samples in another source.
    """
    live = teacher.live if isinstance(teacher, Targets) else teacher
    if not any(isinstance(member, JoinedTeacher) for member in behind(live)):
        return live
    same = {id(whole(source)) for source in (train, *others)}
    return live if len(same) == 1 else None


class Heard:
    """The answers of teachers to the samples that students are scored on, for as long as one run lasts.

    A large teacher's pass over the test samples can take longer than a small student's training, and it says the same
    to every student. Known again by what decides its answers (`Teaching.fingerprint`), the form it computes in, and
    the samples themselves; a teacher that changes, and data that is not in memory, are asked each time. Of many
    answers the oldest are let go, and more than there is room for are not collected.
    """

    def __init__(self) -> None:
        self._kept: dict[str, list[Tensor]] = {}

    def by(self, teacher: Teaching, source: Source) -> Callable[[Named], Named]:
        """What answers as `teacher` does, for one pass over the evaluation batches of `source`, in their order."""
        if not isinstance(whole(source), ArraySource) or any(isinstance(t, SelfTeacher) for t in behind(teacher)):
            return teacher
        key = json.dumps([teacher.fingerprint(), dict(teacher.form), source.fingerprint()], sort_keys=True, default=str)
        if key in self._kept:
            answers = iter(self._kept[key])
            return lambda _batch: {"logits": next(answers)}
        return _Listening(teacher, len(source), lambda told: self._keep(key, told))

    def _keep(self, key: str, told: list[Tensor]) -> None:
        self._kept[key] = told
        while sum(_bytes(each) for each in self._kept.values()) > _MOST:
            del self._kept[next(iter(self._kept))]


def _bytes(told: list[Tensor]) -> int:
    return sum(part.nbytes for part in told)


class _Listening:
    """Asks a teacher, and hands on what it said once it has said all of it, if that is not too much."""

    def __init__(self, teacher: Teaching, samples: int, keep: Callable[[list[Tensor]], None]) -> None:
        self._teacher, self._keep, self._left = teacher, keep, samples
        self.told: list[Tensor] = []

    def __call__(self, batch: Named) -> Named:
        signal = self._teacher(batch)
        if self._left > 0 and "logits" in signal:
            self.told.append(signal["logits"].detach().cpu())
            self._left -= len(self.told[-1])
            if _bytes(self.told) > _MOST:
                self.told, self._left = [], 0
            elif self._left == 0:
                self._keep(self.told)
        return signal
