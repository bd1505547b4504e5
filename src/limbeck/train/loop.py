"""The only training loop. One function, read from top to bottom.

A *step* is one update by the optimizer; a *micro-batch* is one forward pass of it. Valid samples of the whole step are
counted first and the sum is divided once, so masks, ragged last batches and micro-batches weigh right.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from limbeck.core.errors import NonFiniteError, problem
from limbeck.core.processes import collect
from limbeck.core.records import FaultRecord, StepRecord
from limbeck.core.schedules import Schedule, settled, value_at
from limbeck.core.still import buffers_as_now
from limbeck.core.types import Named
from limbeck.objectives import Term, relates, term_names, units, values
from limbeck.train.engine import Engine
from limbeck.train.followers import Follower
from limbeck.train.tuning import UNTUNED, Tuner

__all__ = ["REASONS", "Epochs", "Listener", "State", "combine", "counted", "fit"]

REASONS = ("interrupted", "terminated", "time")
"""Why a run may be halted from outside; processes agree on one."""

_PATIENCE = 20
"""More steps in a row than this are not left out: a run that is lost must say so."""

_GLANCE = 10
"""Where looking at a number makes the device wait, wishes to halt are exchanged every so many steps."""

Listener = Callable[[StepRecord], str | None]
"""Hears a record; what it returns, if anything, stops the run and is the reason on record."""


class Epochs(Protocol):
    """Training data as the loop sees it: a pure function of the epoch, so that a resumed run reads what is left."""

    def __len__(self) -> int:
        """Micro-batches in an epoch."""
        ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Named]:
        """The micro-batches of an epoch from number `start` on."""
        ...


@dataclass
class State:
    """Where a run is. `micro` counts the micro-batches done in the current epoch, `skipped` the steps left out."""

    step: int = 0
    epoch: int = 0
    micro: int = 0
    seconds: float = 0.0
    stopped_by: str = ""
    skipped: int = 0


def counted(objective: Sequence[Term], batch: Named) -> Tensor:
    """Over how many values of this batch each term is a mean."""
    return torch.stack([units(term, batch) for term in objective])


def combine(
    objective: Sequence[Term],
    student: Named,
    teacher: Named,
    batch: Named,
    *,
    progress: float,
    counts: Tensor,
    everywhere: Callable[..., tuple[list[dict[str, Tensor]], slice]] | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """The weighted sum of the terms' means, each over its count of the whole step, and each one's own plain sum.

    With `everywhere`, terms that relate samples to each other see those of all processes; each process pays for its
    own rows, so that nothing is counted twice.
    """
    valid = batch["valid"]
    total: Tensor | None = None
    parts = []
    terms = settled(tuple(objective), progress)
    far: tuple[list[dict[str, Tensor]], slice] | None = None
    if everywhere is not None and any(relates(term) for term in terms):
        far = everywhere(student, teacher, batch)
    for term, count in zip(terms, counts, strict=True):
        if far is not None and relates(term):
            value = values(term, *far[0])[far[1]]
        else:
            value = values(term, student, teacher, batch)
        part = torch.where(valid.view(valid.shape + (1,) * (value.dim() - valid.dim())), value, 0.0).sum()
        weighted = part * value_at(term.weight, progress) / count
        total = weighted if total is None else total + weighted
        parts.append(part.detach())
    assert total is not None
    return total, parts


def fit(
    student: nn.Module,
    teacher: Callable[[Named], Named] | None,
    batches: Epochs,
    objective: Sequence[Term],
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    engine: Engine,
    schedule: Schedule,
    accumulate: int = 1,
    clip: float | None = None,
    log_steps: int = 50,
    non_finite: Literal["stop", "skip"] = "stop",
    followers: Sequence[Follower] = (),
    tuner: Tuner = UNTUNED,
    listeners: Sequence[Listener] = (),
    faults: Callable[[FaultRecord], None] = lambda _: None,
    halt: Callable[[], str | None] = lambda: None,
    state: State | None = None,
) -> State:
    """Train `student` in place for `epochs`, or until a listener or `halt` gives a reason to stop.

    Args:
        student: a module from a batch and the teacher's signal to named tensors, on the engine's device.
        teacher: the signal for a batch, without gradient; None where no term needs one.
        batches: micro-batches by epoch.
        objective: the terms; their weighted sum is minimised.
        optimizer: over the student's parameters; its groups' rates are the base rates.
        epochs: how many.
        engine: device, precision, processes.
        schedule: the factor on the base rates over the run.
        accumulate: micro-batches a step.
        clip: the largest gradient norm, or None.
        log_steps: listeners hear every so many steps, and the last step of each epoch.
        non_finite: what follows a step whose loss or gradient is not finite: "stop", or "skip" it and go on.
        followers: are told after every step that was taken.
        tuner: holds parts back, and draws weights to where they began.
        listeners: every one hears every record.
        faults: hears of a step that is not finite, before the run stops or goes on.
        halt: asked after every step; a reason ends the run there. One of `REASONS` where there are several processes.
        state: where to go on; None starts.

    Raises:
        NonFiniteError: the loss or its gradient became NaN or infinite; the weights are those before that step.
            With "skip", too many steps in a row did.
    """
    state = state or State()
    names = term_names(objective)
    per_epoch = math.ceil(len(batches) / accumulate)
    freely = engine.device.type == "cpu"  # elsewhere, a look at a number would make the device wait at every step
    guard = _Guard(engine, names, non_finite, faults)
    for group in optimizer.param_groups:
        group.setdefault("base_rate", group["lr"])
    student.train()
    clock = time.perf_counter() - state.seconds
    while state.epoch < epochs and not state.stopped_by:
        engine.hold_back(tuner.enter(state.epoch))
        for micro_batches in _grouped(batches.epoch(state.epoch, state.micro), accumulate):
            progress = state.step / (per_epoch * epochs)
            for group in optimizer.param_groups:
                group["lr"] = group["base_rate"] * schedule(progress)
            micro_batches = [engine.batch(batch) for batch in micro_batches]  # noqa: PLW2901
            counts = engine.total(sum(counted(objective, batch) for batch in micro_batches)).clamp_min(1)  # type: ignore[arg-type]
            guard.watch(student)
            sums: list[Tensor] = []
            total = torch.zeros((), device=engine.device)
            for i, batch in enumerate(micro_batches):
                signal = teacher(batch) if teacher is not None else {}
                with engine.sync(last=i == len(micro_batches) - 1):
                    with engine.autocast():
                        loss, parts = combine(
                            objective, student(batch, signal), signal, batch, progress=progress, counts=counts,
                            everywhere=engine.everywhere if engine.gathers else None,
                        )  # fmt: skip
                    engine.backward(loss)
                total = total + loss.detach()
                sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
            state.step += 1
            state.micro += len(micro_batches)
            epoch_end = state.micro >= len(batches)
            logs = epoch_end or state.step % log_steps == 0
            looks = logs or freely or non_finite == "skip"
            norm = None
            if clip is not None or looks or engine.minds_gradients:
                norm = engine.norm(optimizer, math.inf if clip is None else clip)
            if not looks or guard.passes(state, total, norm, sums, micro_batches):
                engine.step(optimizer, tuner.pull)
                for follower in followers:
                    follower.follow(state.step)
            optimizer.zero_grad(set_to_none=True)
            state.seconds = time.perf_counter() - clock
            if epoch_end:
                state.epoch, state.micro = state.epoch + 1, 0
            if logs:
                record = StepRecord(
                    step=state.step,
                    epoch=state.epoch,
                    epoch_end=epoch_end,
                    loss=float(engine.total(total)),
                    terms={n: float(engine.total(s) / c) for n, s, c in zip(names, sums, counts, strict=True)},
                    rate=float(optimizer.param_groups[0]["lr"]),
                    grad_norm=float(norm) if norm is not None else math.nan,
                    seconds=state.seconds,
                    skipped=state.skipped,
                )
                reasons = [reason for listen in listeners if (reason := listen(record))]
                state.stopped_by = reasons[0] if reasons else ""
            if logs or freely or state.step % _GLANCE == 0 or engine.world_size == 1:
                state.stopped_by = state.stopped_by or engine.agreed(halt(), REASONS) or ""
            if state.stopped_by:
                break
    state.stopped_by = state.stopped_by or "epochs"
    return state


def _grouped(stream: Iterable[Named], size: int) -> Iterator[list[Named]]:
    """Lists of `size` micro-batches; the last may be shorter."""
    iterator = iter(stream)
    while group := list(islice(iterator, size)):
        yield group


class _Guard:
    """Holds back steps that are not finite: the run stops before one, or goes on without it."""

    def __init__(self, engine: Engine, names: Sequence[str], then: str, tell: Callable[[FaultRecord], None]) -> None:
        self._engine, self._names, self._then, self._tell = engine, names, then, tell
        self._in_a_row = 0
        self._undo: Callable[[], None] = lambda: None

    def watch(self, student: nn.Module) -> None:
        """Before a step: what the forward pass writes (batch statistics) must go as well if the step is left out."""
        if self._then == "skip":
            self._undo = buffers_as_now(student.modules())

    def passes(
        self,
        state: State,
        total: Tensor,
        norm: Tensor | None,
        sums: Sequence[Tensor],
        micro_batches: Sequence[Named],
    ) -> bool:
        """Whether the step may be taken; the same on every process.

        Raises:
            NonFiniteError: it may not, and the run is to stop, or too many in a row were left out.
        """
        if not math.isfinite(float(self._engine.total(total))):
            what = "loss"
        elif norm is not None and not self._engine.settling and not math.isfinite(float(norm)):
            what = "gradient"
        else:
            self._in_a_row = 0
            return True
        self._in_a_row += 1
        state.skipped += 1
        fault = self._record(state, what, sums, micro_batches)
        self._tell(fault)
        if self._then == "stop" or self._in_a_row > _PATIENCE:
            raise _not_finite(fault, self._in_a_row)
        self._undo()
        self._engine.leave_out()
        return False

    def _record(self, state: State, what: str, sums: Sequence[Tensor], micro_batches: Sequence[Named]) -> FaultRecord:
        """What is known of the step; every process takes part."""
        here = {
            "terms": [n for n, value in zip(self._names, sums, strict=True) if not math.isfinite(float(value))],
            "ids": [int(i) for b in micro_batches for i in b["id"][b["valid"].reshape(len(b["id"]), -1).any(1)]],
        }
        every = collect(here)
        guilty = tuple(name for name in self._names if any(name in part["terms"] for part in every))
        ids = tuple(i for part in every for i in part["ids"])
        return FaultRecord(step=state.step, epoch=state.epoch + 1, what=what, terms=guilty, ids=ids)


def _not_finite(fault: FaultRecord, in_a_row: int) -> NonFiniteError:
    by = f"in the term {' and '.join(map(repr, fault.terms))}" if fault.terms else "though every term was finite"
    often = f" ({in_a_row} steps in a row)" if in_a_row > 1 else ""
    mend = (
        "lower the rate (optimizer.rate), set `clip`, lower the weight of that term, or leave single steps out with "
        'non_finite="skip"; the last checkpoint is good'
    )
    wrong = f"the {fault.what} became NaN or infinite at step {fault.step}, {by}{often}"
    return NonFiniteError(problem("training", wrong, mend))
