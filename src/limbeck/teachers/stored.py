"""Targets as a teacher: signals that a teacher gave once, read from disk.

Shapes: B = samples of a batch, T = tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from limbeck.core.errors import CheckpointError, DataError, ModelError, nearest, problem
from limbeck.core.folder import first_difference
from limbeck.core.normalize import Normalize
from limbeck.core.types import Named
from limbeck.targets import Store, scatter
from limbeck.targets.resident import Resident, size_of
from limbeck.teachers.signal import Teaching, digest_of

__all__ = ["Counted", "Targets"]


class Counted(NamedTuple):
    """Which tokens count: those where the column differs from `ignore`."""

    column: str
    ignore: int

    def mask(self, batch: Named) -> Tensor:
        """Bool [B, T].

        Raises:
            DataError: there is no such column, or it is not one value a token.
        """
        if self.column not in batch or batch[self.column].dim() != 2:
            seen = ", ".join(f"{name} {tuple(value.shape)}" for name, value in batch.items())
            wrong = f"{self.column!r} is no column [B, T] of the batch, which holds {seen}"
            raise DataError(problem("tokens", wrong, "name the mask or the labels that say which tokens count"))
        return batch[self.column] != self.ignore


class Targets:
    """A folder of stored signals, passed wherever a teacher goes. A batch names what it wants by `id` and `view`.

    On a GPU they are kept there whole where a tenth of its free memory is enough, so that a step waits for no file.

    Args:
        path: the folder that `limbeck.remember` made.
        verify: whether every file is read and held against its checksum, at about a gigabyte a second.
        teacher: the teacher it was made from. What the folder lacks is then computed and added before training, and
            the student is held against this teacher on other data. Without it, what lacks is refused.

    Raises:
        CheckpointError: there are no targets in the folder, a file is damaged, or they were made from another teacher.
    """

    form: Mapping[str, Any] = {}

    def __init__(self, path: str | Path, *, teacher: Teaching | None = None, verify: bool = True) -> None:
        self.path = Path(path)
        self.live = teacher
        self.store = Store.open(self.path, verify=verify)
        self._wanted: tuple[str, ...] = ()
        self._resident: Resident | None = None
        self._ragged: dict[str, str] = {}
        self._ask(self.store.names)
        if teacher is not None:
            _same_teacher(self.path, self.store.plan.teacher, teacher)

    @property
    def offers(self) -> frozenset[str]:
        """What is stored, and what the live teacher could add."""
        own = frozenset(self.store.names)
        return own if self.live is None else own | self.live.offers

    @property
    def words(self) -> str:
        """What it is, for people."""
        made_from = self.live.words if self.live is not None else self.store.plan.teacher.get("words", "a teacher")
        return f"{made_from}, from targets on disk"

    def identity(self) -> dict[str, Any]:
        """What the answers follow from: teacher, data, augmentation and codecs, and how many views are repeated."""
        plan = self.store.plan.plain()
        return {key: plan[key] for key in ("teacher", "data", "augmentation", "seed", "views")}

    def fingerprint(self) -> str:
        """A digest of the identity."""
        return digest_of(self.identity())

    def open(
        self,
        names: Iterable[str],
        example: Named,
        *,
        applied: Normalize | None = None,
        device: torch.device | None = None,
        samples: Named | None = None,
    ) -> Named:
        """Make ready to answer with `names`, and return the answer to `example`, which serves for its shapes alone.

        Raises:
            ModelError: a name is not stored, and there is no live teacher to add it.
        """
        names = set(names)
        lacks = sorted(names - set(self.store.names))
        if lacks and self.live is None:
            wrong = f"the targets in {str(self.path)!r} hold no {lacks[0]!r}"
            mend = f"{nearest(lacks[0], self.store.names)}. What is missing is added with {self.command(lacks)}"
            raise ModelError(problem("teacher", wrong, mend))
        self._ask(names - set(lacks))
        where = device or example["id"].device
        size = size_of(self.store, self._wanted) if not lacks else None
        self._resident = Resident(self.store, self._wanted, where) if size and size <= _room(where) else None
        if self.live is None:
            return self(example)
        asked = {output for output, kept in self.store.plan.outputs.items() if names & set(kept.decoded(output))}
        asked |= {name for name in names if name in lacks or name in self.store.constants}
        answers = self.live.open(asked, example, applied=applied, device=device, samples=samples)
        return {**answers, **self._as_stored(answers, example, asked)}

    def _as_stored(self, answers: Named, batch: Named, asked: Iterable[str]) -> dict[str, Tensor]:
        """A live teacher's answers as they would come back from disk."""
        signal: dict[str, Tensor] = {}
        for name in asked:
            kept = self.store.plan.outputs.get(name)
            if kept is None:
                continue
            mask = self._mask(batch) if kept.tokens else None
            rows = answers[name].cpu() if mask is None else answers[name].cpu()[mask.cpu()]
            for suffix, value in kept.codec.decode(kept.codec.encode(rows)).items():
                whole = value if mask is None else scatter(value, mask.cpu().sum(1), mask.cpu())
                signal[f"{name}.{suffix}" if suffix else name] = whole.to(batch["id"].device)
        return signal

    def command(self, outputs: Iterable[str] = ()) -> str:
        """The call that adds what is missing."""
        names = [*self.store.plan.outputs, *(name for name in outputs if name not in self.store.plan.outputs)]
        return f"limbeck.remember(teacher, data, outputs={names}, out={str(self.path)!r}, ...) or `limbeck remember`"

    def reopen(self) -> None:
        """Look at the folder anew, after something was added to it and checked."""
        self.store, self._resident = Store.open(self.path, verify=False), None

    def close(self) -> None:
        """Let go of the live teacher's private copy, and of what is on a device."""
        self._resident = None
        if self.live is not None:
            self.live.close()

    def __call__(self, batch: Named) -> Named:
        """The stored signal for the views that the batch names, on the batch's device.

        Raises:
            DataError: a sample or a view is not stored.
        """
        ids = batch["id"]
        if self._resident is not None:
            return self._resident(ids, batch.get("view", 0))
        views = batch["view"].cpu() if "view" in batch else 0
        held = self.store.gather(ids.cpu(), views, self._wanted)
        signal = {name: value.to(ids.device) for name, value in held.items()}
        if self._ragged:
            mask = self._mask(batch)
            for name, lengths in self._ragged.items():
                signal[name] = scatter(signal[name], signal[lengths], mask)
        return {name: value for name, value in signal.items() if name not in self._ragged.values()}

    def _ask(self, names: Iterable[str]) -> None:
        """Settle what is read for each batch: the names, and the lengths of those that are kept by tokens."""
        self._ragged = {
            name: f"{output}.lengths"
            for output, kept in self.store.plan.outputs.items()
            for name in kept.decoded(output)
            if kept.tokens and name in names and not name.endswith(".lengths")
        }
        self._wanted = tuple(sorted({*names, *self._ragged.values()}))

    def _mask(self, batch: Named) -> Tensor:
        """Which tokens count, as when they were stored."""
        return Counted(**self.store.plan.data["tokens"]).mask(batch)


def _room(device: torch.device) -> int:
    """Bytes that targets may take on a device: a tenth of what is free on a GPU. A CPU reads mapped files as fast."""
    return torch.cuda.mem_get_info(device)[0] // 10 if device.type == "cuda" else 0


def _same_teacher(path: Path, held: Mapping[str, Any], teacher: Teaching) -> None:
    """Refuse a live teacher that is not the one whose answers are stored."""
    now = teacher.identity()
    differs = first_difference({key: held.get(key) for key in now}, now)
    if differs is not None:
        wrong = f"these targets were made from another teacher: `teacher.{differs}` is not the same"
        raise CheckpointError(
            problem(str(path), wrong, "give the teacher they were made from, or remember anew elsewhere")
        )
