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
"""Bytes of answers to one source that are kept: as much as 10,000 samples of 1,600 classes."""


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
    the samples themselves; a teacher that changes, and data that is not in memory, are asked each time.
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
        return _Listening(teacher, len(source), lambda told: self._kept.update({key: told}))


class _Listening:
    """Asks a teacher, and hands on what it said once it has said all of it."""

    def __init__(self, teacher: Teaching, samples: int, keep: Callable[[list[Tensor]], None]) -> None:
        self._teacher, self._samples, self._keep = teacher, samples, keep
        self._told: list[Tensor] = []

    def __call__(self, batch: Named) -> Named:
        signal = self._teacher(batch)
        if "logits" in signal:
            self._told.append(signal["logits"].detach().cpu())
            if sum(len(part) for part in self._told) == self._samples:
                if sum(part.nbytes for part in self._told) <= _MOST:
                    self._keep(self._told)
                self._told = []
        return signal
