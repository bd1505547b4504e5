"""Stages of a training as jobs, one after the other: what each begins with, and how its records go on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from limbeck.core.records import FaultRecord, StepRecord
from limbeck.core.types import Named
from limbeck.job import Job
from limbeck.train import Stage, State
from limbeck.train.loop import Epochs

__all__ = ["Later", "after", "draws", "passed", "records", "staged"]

Record = TypeVar("Record", StepRecord, FaultRecord)


def staged(job: Job, number: int, done: Sequence[State]) -> Job:
    """The job of a stage, counted from 0, after those before it ended like this.

    Raises:
        ConfigError: the settings of the stage cannot be.
    """
    stage, last = job.stages[number], number == len(job.stages) - 1
    before, training = passed(done), stage.training(job.training, last=last)
    if training.max_seconds is not None:  # of the whole training; what is past still takes a step
        training = dataclasses.replace(training, max_seconds=max(1e-9, training.max_seconds - before.seconds))
    return dataclasses.replace(
        job, stages=(), stage=stage.name, before=before, objective=stage.objective or job.objective, training=training,
        score_teacher=job.score_teacher and last,
    )  # fmt: skip


def passed(done: Sequence[State]) -> State:
    """Several stages as one: where a training is after them."""
    if not done:
        return State()
    summed = {name: sum(getattr(state, name) for state in done) for name in ("step", "epoch", "seconds", "skipped")}
    return dataclasses.replace(done[-1], **summed)


def records(
    lines: Sequence[Mapping[str, Any]], arm: str, seed: int, stages: Sequence[Stage] = ()
) -> list[Mapping[str, Any]]:
    """What a member wrote in its last stage: losses of different stages are not to be held against each other."""
    last = stages[-1].name if stages else ""
    return [x for x in lines if (x.get("arm"), x.get("seed"), x.get("stage", "")) == (arm, seed, last)]


def draws(job: Job) -> tuple[str, ...]:
    """What the draws of a training are named by: each stage has its own."""
    return ("train", job.stage) if job.stage else ("train",)


class Later:
    """Training data whose epochs go on from those of the stages before."""

    def __init__(self, batches: Epochs, first: int) -> None:
        self._batches, self._first = batches, first

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Named]:
        """The micro-batches of an epoch of this stage."""
        return self._batches.epoch(self._first + epoch, start)


def after(record: Record, before: State) -> Record:
    """The record with steps and epochs counted from the first stage on."""
    return record._replace(step=before.step + record.step, epoch=before.epoch + record.epoch)
