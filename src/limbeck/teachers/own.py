"""The student's own earlier self as its teacher: a moving average of its weights, or what it was some epochs ago."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from limbeck.core.check import whole
from limbeck.core.errors import ConfigError, ModelError, problem
from limbeck.core.normalize import Normalize
from limbeck.core.setting import as_plain, setting
from limbeck.core.taps import Inputs, Outputs, Reader, taps_in
from limbeck.core.types import Named
from limbeck.teachers.signal import digest_of

__all__ = ["SelfTeacher", "SelfTeaching"]


@setting
class SelfTeaching:
    """Which earlier self teaches; one of the two.

    Args:
        decay: of the moving average of the student's weights, t ← d·t + (1 − d)·s after each step.
        epochs: the student is taught by itself as it was when that many epochs ended, by 1 as the last one ended.
    """

    decay: float | None = None
    epochs: int | None = None

    def __post_init__(self) -> None:
        """Refuse both, none, and numbers that cannot be."""
        if (self.decay is None) == (self.epochs is None):
            wrong = "it has both a decay and epochs" if self.decay is not None else "it has neither a decay nor epochs"
            raise ConfigError(problem("teacher", wrong, "give one of them, such as decay=0.99 or epochs=1"))
        if self.decay is not None and (isinstance(self.decay, bool) or not 0 < self.decay < 1):
            wrong = f"{self.decay} is no decay"
            raise ConfigError(problem("teacher.decay", wrong, "give a number between 0 and 1, such as 0.99"))
        if self.epochs is not None:
            whole("teacher.epochs", self.epochs)


class SelfTeacher:
    """The student's own earlier self: its moving average (mean teacher), or what it was when an epoch ended.

    It begins as a copy of the student, answers in evaluation mode and without gradient, and its weights follow the
    student's after each step; no optimizer has them. They are kept in checkpoints, so that a resumed run goes on bit
    for bit. Let its terms weigh little at first, as in `KL(weight=Linear(start=0, end=0.8))`: it knows nothing then.

    Args:
        decay: of the moving average, t ← d·t + (1 − d)·s, with d = min(decay, (1 + n) / (10 + n)) after step n.
        epochs: copy the student each time that many epochs have ended.

    Raises:
        ConfigError: both are given, or none, or a number cannot be.

    Source: Tarvainen & Valpola 2017, "Mean teachers are better role models", section 2, for the average; Yang et al.
    2019, "Snapshot distillation", and Kim et al. 2021, "Self-knowledge distillation with progressive refinement of
    targets", section 3, for the epoch before.
    """

    def __init__(self, *, decay: float | None = None, epochs: int | None = None) -> None:
        self.how = SelfTeaching(decay=decay, epochs=epochs)
        self.model: nn.Module | None = None
        self._inputs: Inputs = None
        self._outputs: Outputs = None
        self._reader: Reader | None = None

    def watch(self, student: nn.Module, *, inputs: Inputs = None, outputs: Outputs = None) -> None:
        """Begin as a copy of `student`; called where it is trained, before `open`.

        Raises:
            ModelError: it cannot be copied.
        """
        try:
            self.model = copy.deepcopy(student).requires_grad_(False)
        except Exception as error:
            wrong = f"the student cannot be copied ({type(error).__name__}: {error}), so it cannot be its own teacher"
            raise ModelError(problem("teacher", wrong, "leave what cannot be copied out of the module")) from error
        self._inputs, self._outputs = inputs, outputs

    @property
    def offers(self) -> frozenset[str]:
        """The student's own layers, once there is a student."""
        return (
            frozenset(path for path, _ in self.model.named_modules() if path) if self.model is not None else frozenset()
        )

    @property
    def words(self) -> str:
        """Which self."""
        if self.how.decay is not None:
            return f"its own moving average (decay {self.how.decay:g})"
        return "itself, as the last epoch ended" if self.how.epochs == 1 else f"itself, every {self.how.epochs} epochs"

    @property
    def form(self) -> Mapping[str, Any]:
        """Nothing: it computes as the student does."""
        return {}

    def identity(self) -> dict[str, Any]:
        """Which self; the rest follows from the training."""
        return {"teacher": type(self).__name__, **as_plain(self.how)}

    def fingerprint(self) -> str:
        """The digest of `identity`."""
        return digest_of(self.identity())

    def open(
        self,
        names: Iterable[str],
        example: Named,
        *,
        applied: Normalize | None = None,  # noqa: ARG002 - it sees what the student sees
        device: torch.device | None = None,
        samples: Named | None = None,  # noqa: ARG002 - it is not prepared
    ) -> Named:
        """Make ready to answer with `names`, and return the answer to `example`.

        Raises:
            ConfigError: no student is being trained.
            ModelError: the student lacks a name.
        """
        if self.model is None:
            wrong = "it is a student's earlier self, and no student is being trained"
            mend = "give it to limbeck.distill; its answers change at every step, so they cannot be stored or scored"
            raise ConfigError(problem("teacher", wrong, mend))
        names = tuple(names)
        if device is not None:
            self.model.to(device)
        taps = taps_in(self.model, names)
        self._reader = Reader(self.model, taps=taps, inputs=self._inputs, outputs=self._outputs, name="teacher").eval()
        self._reader.probe(example, names)
        return self(example)

    def close(self) -> None:
        """Let go of the copy."""
        if self._reader is not None:
            self._reader.close()
        self._reader = self.model = None

    @torch.no_grad()
    def __call__(self, batch: Named) -> Named:
        """The signal for one batch, without gradient."""
        if self._reader is None:
            self.open((), batch)
        assert self._reader is not None
        return {name: value.detach() for name, value in self._reader(batch).items()}
