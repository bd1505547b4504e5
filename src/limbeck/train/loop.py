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
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from limbeck.core.errors import NonFiniteError, problem
from limbeck.core.records import StepRecord
from limbeck.core.schedules import Schedule, settled, value_at
from limbeck.core.types import Named
from limbeck.objectives import Term, term_names, units, values
from limbeck.train.engine import Engine

__all__ = ["Epochs", "Listener", "State", "combine", "counted", "fit"]

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
    """Where a run is. `micro` counts the micro-batches done in the current epoch."""

    step: int = 0
    epoch: int = 0
    micro: int = 0
    seconds: float = 0.0
    stopped_by: str = ""


def counted(objective: Sequence[Term], batch: Named) -> Tensor:
    """Over how many values of this batch each term is a mean."""
    return torch.stack([units(term, batch) for term in objective])


def combine(
    objective: Sequence[Term], student: Named, teacher: Named, batch: Named, *, progress: float, counts: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """The weighted sum of the terms' means, each over its count of the whole step, and each one's own plain sum."""
    valid = batch["valid"]
    total: Tensor | None = None
    parts = []
    for term, count in zip(settled(tuple(objective), progress), counts, strict=True):
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
    listeners: Sequence[Listener] = (),
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
        listeners: every one hears every record.
        halt: asked after every step; a reason ends the run there.
        state: where to go on; None starts.

    Raises:
        NonFiniteError: the loss or its gradient became NaN or infinite; the weights are those before that step.
    """
    state = state or State()
    names = term_names(objective)
    per_epoch = math.ceil(len(batches) / accumulate)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    for group in optimizer.param_groups:
        group.setdefault("base_rate", group["lr"])
    student.train()
    clock = time.perf_counter() - state.seconds
    while state.epoch < epochs and not state.stopped_by:
        for micro_batches in _grouped(batches.epoch(state.epoch, state.micro), accumulate):
            progress = state.step / (per_epoch * epochs)
            for group in optimizer.param_groups:
                group["lr"] = group["base_rate"] * schedule(progress)
            micro_batches = [engine.batch(batch) for batch in micro_batches]  # noqa: PLW2901
            counts = engine.total(sum(counted(objective, batch) for batch in micro_batches)).clamp_min(1)  # type: ignore[arg-type]
            sums: list[Tensor] = []
            total = torch.zeros((), device=engine.device)
            for i, batch in enumerate(micro_batches):
                signal = teacher(batch) if teacher is not None else {}
                with engine.sync(last=i == len(micro_batches) - 1):
                    with engine.autocast():
                        loss, parts = combine(
                            objective, student(batch, signal), signal, batch, progress=progress, counts=counts
                        )
                    engine.backward(loss)
                total = total + loss.detach()
                sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
            state.step += 1
            state.micro += len(micro_batches)
            epoch_end = state.micro >= len(batches)
            logs = epoch_end or state.step % log_steps == 0
            # On a CPU a look at the loss costs nothing; elsewhere it would make the device wait at every step.
            if (logs or engine.device.type == "cpu") and not math.isfinite(float(total)):
                raise _not_finite(state.step, names, sums, "loss")
            norm = _clipped(trained, clip) if clip is not None or logs else None
            if norm is not None and (logs or engine.device.type == "cpu") and not math.isfinite(float(norm)):
                raise _not_finite(state.step, names, sums, "gradient")
            optimizer.step()
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
                )
                reasons = [reason for listen in listeners if (reason := listen(record))]
                state.stopped_by = reasons[0] if reasons else ""
            state.stopped_by = state.stopped_by or halt() or ""
            if state.stopped_by:
                break
    state.stopped_by = state.stopped_by or "epochs"
    return state


def _grouped(stream: Iterable[Named], size: int) -> Iterator[list[Named]]:
    """Lists of `size` micro-batches; the last may be shorter."""
    iterator = iter(stream)
    while group := list(islice(iterator, size)):
        yield group


def _clipped(parameters: Sequence[nn.Parameter], clip: float | None) -> Tensor:
    """The gradient norm, after which it is at most `clip`."""
    return clip_grad_norm_(parameters, math.inf if clip is None else clip)


def _not_finite(step: int, names: Sequence[str], sums: Sequence[Tensor], what: str) -> NonFiniteError:
    guilty = [name for name, value in zip(names, sums, strict=True) if not math.isfinite(float(value))]
    by = f"in the term {' and '.join(repr(name) for name in guilty)}" if guilty else "though every term was finite"
    mend = "lower the rate (optimizer.rate), set `clip`, or lower the weight of that term; the last checkpoint is good"
    return NonFiniteError(problem("training", f"the {what} became NaN or infinite at step {step}, {by}", mend))
