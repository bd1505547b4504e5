"""What one training needs, and that it has it: what can be refused is refused here, before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from limbeck.core.errors import ConfigError, DataError, ModelError, ShapeError, problem
from limbeck.core.schedules import settled
from limbeck.core.seeds import derive
from limbeck.core.taps import Inputs, Outputs
from limbeck.core.types import Named
from limbeck.data import Augmentation, Batches, Source, are_numbers, check_labels
from limbeck.judging import Heard, judge_of
from limbeck.objectives import Term, values
from limbeck.replaying import Replay, replay
from limbeck.teachers import JoinedTeacher
from limbeck.teachers.own import SelfTeacher
from limbeck.teachers.signal import Teaching, behind
from limbeck.train import Engine, Stage, State, Student, Training, Tuner, combine, counted
from limbeck.train.followers import Average, Follower, Snapshot
from limbeck.train.trackers import check_trackers

__all__ = ["Job", "Ready", "evaluation", "labelled", "make_ready", "on_device", "selves"]

_EVALUATION_BATCH = 500
_SAMPLES = 256
"""Real samples on which a faster form of the teacher is held against the original."""


@dataclass(frozen=True)
class Job:
    """What one training needs. `arm` and `seed` name it in the folder; "" is the only one there.

    Where there are `stages`, each is a job of its own (see `staging`): `stage` names it, and `before` counts what those
    before it have done, so that records and the order of samples go on. What teachers said of the samples that
    students are scored on is `heard`; the jobs of one run share it.
    """

    student: nn.Module
    teacher: Teaching | None
    train: Source
    val: Source
    test: Source
    objective: Sequence[Term]
    training: Training
    augment: Augmentation | None = None
    seed: int = 0
    arm: str = "student"
    folder_name: str = ""
    inputs: Inputs = None
    outputs: Outputs = None
    workers: int = 0
    show: bool = True
    score_teacher: bool = False
    stages: tuple[Stage, ...] = ()
    stage: str = ""
    before: State = field(default_factory=State)
    heard: Heard = field(default_factory=Heard)


def evaluation(source: Source, workers: int = 0) -> Batches:
    """The pass over data that scores are made from: in order, not augmented."""
    return Batches(source, batch_size=min(_EVALUATION_BATCH, len(source)), shuffle=False, workers=workers)


class Ready(NamedTuple):
    """All that a training needs. `judge` is the teacher where its outputs are the student's, so that they can agree."""

    engine: Engine
    batches: Batches
    student: Student
    judge: Teaching | None
    idle: frozenset[str]
    """The student's parameters that have no part in the objective; several processes must know them."""


def make_ready(job: Job, stack: ExitStack) -> Ready:
    """All that a training needs, tried once; the stack closes it."""
    _check(job)
    training = job.training
    check_trackers(training.trackers)
    engine = Engine(
        device=training.device, precision=training.precision, parallel=training.parallel, gather=training.gather,
        compile=training.compile,
    )  # fmt: skip
    if training.accumulate == "auto" and engine.world_size > 1:
        mend = "give a number: the processes would have to run out of memory together"
        raise ConfigError(problem("accumulate", '"auto" is for one process', mend))
    names = frozenset[str]().union(*(term.needs().teacher for term in job.objective))
    batches, samples = _batches(job, engine, replay(job.teacher, job.train, job.augment, names))
    example = {name: value[:2] for name, value in samples.items()}
    answers: Named = {}
    if job.teacher is not None:
        for member in behind(job.teacher):
            if isinstance(member, JoinedTeacher):
                member.require(job.train.ids)
            if isinstance(member, SelfTeacher):
                _check_self(member, engine)
                member.watch(job.student, inputs=job.inputs, outputs=job.outputs)
        answers = job.teacher.open(
            names,
            example,
            applied=job.train.normalize,
            device=engine.device,
            samples=samples,
        )
        stack.callback(job.teacher.close)
    if job.training.channels_last:
        job.student.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stubs lack it
    job.student.to(engine.device)
    student = Student.build(job.student, job.objective, example, answers, inputs=job.inputs, outputs=job.outputs)
    stack.callback(student.close)
    if training.tuning is not None:
        stack.callback(Tuner(training.tuning, student.model).freeze())
    judge = _dry_run(job, student, answers, example)
    idle = student.idle(example, answers) if engine.world_size > 1 else frozenset[str]()
    return Ready(engine, batches, student, judge, idle)


def _check_self(teacher: SelfTeacher, engine: Engine) -> None:
    if engine.sharded:
        mend = 'set parallel="replicate", or give another teacher'
        raise ConfigError(problem("teacher", f"{teacher.words} cannot follow a student that is sharded", mend))


def selves(teacher: Teaching | None, model: nn.Module, per_epoch: int) -> dict[str, Follower]:
    """What makes teachers that are the student's own self follow `model`, by its name in checkpoints."""
    found: dict[str, Follower] = {}
    for member in behind(teacher):
        if isinstance(member, SelfTeacher) and member.model is not None:
            name, every = f"teacher{len(found)}", (member.how.epochs or 1) * per_epoch
            if member.how.decay is not None:
                found[name] = Average(model, member.how.decay, into=member.model)
            else:
                found[name] = Snapshot(model, every, into=member.model)
    return found


def labelled(source: Source) -> bool:
    """Whether any sample has a label; a data set that is not in memory is asked for its first batch."""
    if source.labels is not None:
        return bool((source.labels >= 0).any())
    return "y" in next(iter(Batches(source, batch_size=1, shuffle=False).epoch(0)))


class on_device:  # noqa: N801 - an adaptor that reads like a function
    """Evaluation batches, moved as they come."""

    def __init__(self, batches: Batches, engine: Engine) -> None:
        self._batches, self._engine = batches, engine

    def __iter__(self) -> Any:
        return (self._engine.batch(batch) for batch in self._batches.epoch(0))


def _batches(job: Job, engine: Engine, again: Replay) -> tuple[Batches, Named]:
    """The training batches, and some samples to size and to try things with."""
    training = job.training
    if training.batch_size % training.pieces:
        wrong = f"a batch of {training.batch_size} cannot be cut in {training.pieces} equal micro-batches"
        raise ConfigError(problem("accumulate", wrong, "give a divisor of the batch size"))
    if training.batch_size > len(job.train):
        wrong = f"a batch of {training.batch_size} is larger than the {len(job.train)} training samples"
        raise DataError(problem("batch_size", wrong, f"give at most {len(job.train)}"))
    batches = Batches(
        job.train,
        batch_size=training.micro_batch,
        seed=derive(job.seed, "data"),
        augment=job.augment,
        workers=job.workers,
        views=again.views,
        augment_seed=again.augment_seed,
        part=engine.part,
    )
    few = Batches(job.train, batch_size=min(_SAMPLES, len(job.train)), shuffle=False)
    return batches, engine.batch(next(iter(few.epoch(0))))


def _check(job: Job) -> None:
    """What can be known without a pass through the models."""
    trainable = [p for p in job.student.parameters() if p.requires_grad]
    if not trainable:
        mend = "give a student with layers to train, or set requires_grad_(True) on some"
        raise ModelError(problem("student", "it has no trainable parameter", mend))
    for member in behind(job.teacher):
        model = getattr(member, "model", None)
        taught = {p.data_ptr() for p in model.parameters() if p.numel()} if isinstance(model, nn.Module) else set()
        if taught & {p.data_ptr() for p in trainable if p.numel()}:
            mend = "give the teacher a copy of its own: copy.deepcopy(model)"
            raise ModelError(problem("teacher", "it shares parameters with the student, so it would change", mend))
    needs = [term.needs() for term in job.objective]
    if job.teacher is None and any(need.teacher for need in needs):
        kind = next(term.kind for term, need in zip(job.objective, needs, strict=True) if need.teacher)
        mend = "give a teacher, or train with limbeck.Label() alone"
        raise ConfigError(problem("objective", f"the term {kind!r} needs a teacher and there is none", mend))
    if (
        job.train.labels is not None
        and any("y" in need.batch for need in needs)
        and not bool((job.train.labels >= 0).any())
    ):
        raise DataError(
            problem("train", "no sample has a label, and the term 'label' needs some", "leave that term out")
        )


def _dry_run(job: Job, student: Student, answers: Named, example: Named) -> Teaching | None:
    """One pass of the objective on two samples: what does not fit is told now and not an hour later.

    Returns the teacher where its logits have the student's shape, so that the two can be compared, or None.
    """
    for term in job.objective:
        for name in term.needs().batch:
            if name not in example:
                wrong = f"the term {term.kind!r} needs {name!r}, which the data has not"
                raise DataError(problem("train", wrong, "give labels beside the inputs, or leave that term out"))
    signal = student.probe(example, answers)
    output = signal.get("logits")
    numbers = are_numbers(output)  # one a sample
    classes = 0 if output is None else 1 if numbers else int(output.shape[-1])
    for where, source in (("train", job.train), ("val", job.val), ("test", job.test)):
        if classes:
            check_labels(source, classes, where)
    if numbers and are_numbers(example.get("y", output)):
        _check_numbers(job.objective, signal, answers, example)
    with torch.no_grad():
        counts = counted(job.objective, example).clamp_min(1)
        combine(job.objective, signal, answers, example, progress=0.0, counts=counts)
    told = answers.get("logits")
    alike = output is not None and told is not None and output.shape == told.shape
    judge = judge_of(job.teacher, job.train, job.val, job.test) if alike or (numbers and are_numbers(told)) else None
    for where, source in (("val", job.val), ("test", job.test)):
        if judge is None and not labelled(source):
            wrong = "no sample has a label, and there is no teacher with the same outputs to hold the student against"
            raise DataError(problem(where, wrong, "give labelled data to score on"))
    return judge


def _check_numbers(objective: Sequence[Term], signal: Named, answers: Named, example: Named) -> None:
    """Refuse terms that are blind to an output of one number a sample, as a softmax over one class is."""
    output = signal["logits"]
    seen = [x.abs().max() for x in (output, answers.get("logits"), example.get("y")) if x is not None]
    elsewhere = {**signal, "logits": output + 1 + 10 * max(float(x) for x in seen)}
    for term in settled(tuple(objective), 0.0):
        if "logits" not in term.needs().student:
            continue
        mend = "give limbeck.SquaredError() and limbeck.MSELogits(), or a student with an output a class"
        try:
            with torch.no_grad():
                here, there = (values(term, side, answers, example) for side in (signal, elsewhere))
        except ShapeError as error:
            wrong = f"the term {term.kind!r} cannot be had of one number a sample ({str(error).splitlines()[0][:-1]})"
            raise ShapeError(problem("objective", wrong, mend)) from None
        if here.shape[:1] != output.shape[:1]:
            wrong = f"the term {term.kind!r} takes outputs of shape {list(output.shape)} for the classes of one sample"
            raise ShapeError(problem("student", wrong, "let it return [samples, 1]"))
        if torch.equal(here, there):
            wrong = f"the term {term.kind!r} compares classes, and the student's output is one number a sample"
            raise ConfigError(problem("objective", wrong, mend))
