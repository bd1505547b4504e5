"""One training of one student: the unit that runs, recipes and studies are made of."""

from __future__ import annotations

import signal as signals
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from limbeck.core.errors import CheckpointError, ConfigError, DataError, ModelError, problem
from limbeck.core.folder import RunFolder
from limbeck.core.progress import bar
from limbeck.core.records import StepRecord, read_object, write_json
from limbeck.core.seeds import derive, seed_everything
from limbeck.core.taps import Inputs, Outputs
from limbeck.core.types import Named
from limbeck.data import Augment, Batches, Source, check_labels
from limbeck.evaluation import Scores, score
from limbeck.objectives import Term
from limbeck.teachers import FunctionTeacher, ModuleTeacher
from limbeck.train import Engine, State, Student, Training, checkpoint, combine, counted, fit
from limbeck.train.interrupt import EXIT_CODES, halting
from limbeck.train.listeners import Watch, time_limit

__all__ = ["Job", "Result", "check", "evaluation", "train_member"]

AnyTeacher = ModuleTeacher | FunctionTeacher

_EVALUATION_BATCH = 500
_DONE = ("scores", "validation", "teacher", "state")
"""What a finished member writes down."""


@dataclass(frozen=True)
class Job:
    """What one training needs. `arm` and `seed` name it in the folder; "" is the only one there."""

    student: nn.Module
    teacher: AnyTeacher | None
    train: Source
    val: Source
    test: Source
    objective: Sequence[Term]
    training: Training
    augment: Augment | None = None
    seed: int = 0
    arm: str = "student"
    folder_name: str = ""
    inputs: Inputs = None
    outputs: Outputs = None
    workers: int = 0
    show: bool = True
    score_teacher: bool = False


@dataclass
class Result:
    """What came out: the student as trained, its scores on test and validation, and how the run ended."""

    student: nn.Module
    scores: Mapping[str, Any]
    validation: Mapping[str, Any]
    state: State
    teacher_scores: Mapping[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    def record(self, seed: int) -> dict[str, Any]:
        """The run as it stands in `scores.json`."""
        return {
            "seed": seed,
            "scores": dict(self.scores),
            "validation": dict(self.validation),
            "epochs": self.state.epoch,
            "steps": self.state.step,
            "seconds": round(self.state.seconds, 3),
            "stopped_by": self.state.stopped_by,
        }


def evaluation(source: Source, workers: int = 0) -> Batches:
    """The pass over data that scores are made from: in order, not augmented."""
    return Batches(source, batch_size=min(_EVALUATION_BATCH, len(source)), shuffle=False, workers=workers)


def train_member(job: Job, folder: RunFolder) -> Result:
    """Train one student, or go on where a killed run stopped, or read what a finished one left.

    Raises:
        LimbeckError: the input is at fault; all that can be checked is checked before the first step.
        KeyboardInterrupt: Ctrl-C, after the step was finished and saved.
    """
    home = folder.checkpoints(job.folder_name, job.seed)
    seed_everything(derive(job.seed, "train"))
    with ExitStack() as stack:
        ready = _ready(job, stack)
        session = _Session(job, folder, home, ready)
        if home is not None and (home / "done.json").exists():
            return session.reread(read_object(home / "done.json", *_DONE))
        return session.run()


def check(job: Job) -> None:
    """Refuse what cannot be trained, at the cost of two samples through the models, before anything is written.

    Raises:
        LimbeckError: the input is at fault.
    """
    with torch.random.fork_rng(devices=[]), ExitStack() as stack:
        job.training.optimizer.build(_ready(job, stack).student)


class _Ready(NamedTuple):
    """All that a training needs. `judge` is the teacher where its outputs are the student's, so that they can agree."""

    engine: Engine
    batches: Batches
    student: Student
    judge: AnyTeacher | None


def _ready(job: Job, stack: ExitStack) -> _Ready:
    """All that a training needs, tried once; the stack closes it."""
    _check(job)
    engine = Engine(device=job.training.device, precision=job.training.precision)
    batches, example = _batches(job, engine)
    names = frozenset[str]().union(*(term.needs().teacher for term in job.objective))
    answers: Named = {}
    if job.teacher is not None:
        answers = job.teacher.open(
            names,
            example,
            applied=job.train.normalize,
            device=engine.device,
            precision=engine.half,
            channels_last=job.training.channels_last,
        )
        stack.callback(job.teacher.close)
    if job.training.channels_last:
        job.student.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stubs lack it
    job.student.to(engine.device)
    student = Student.build(job.student, job.objective, example, answers, inputs=job.inputs, outputs=job.outputs)
    stack.callback(student.close)
    return _Ready(engine, batches, student, _dry_run(job, student, answers, example))


class _Session:
    """A training under way: what the loop's listeners share."""

    def __init__(self, job: Job, folder: RunFolder, home: Path | None, ready: _Ready) -> None:
        self.job, self.folder, self.home = job, folder, home
        self.engine, self.batches, self.student, self.judge = ready
        self.prepared = self.engine.prepare(self.student)
        self.optimizer = job.training.optimizer.build(self.student)
        # Without labels, validation holds the student against its teacher.
        self.val_judge = None if _labelled(job.val) else self.judge
        self.state = State()
        self.watch = Watch(monitor=job.training.monitor, patience=job.training.patience)
        self.best: dict[str, Tensor] = {}
        self.validation: Mapping[str, Any] = {}
        self.saved_at = time.monotonic()

    def run(self) -> Result:
        """Train from the start, or from the last checkpoint."""
        job, training = self.job, self.job.training
        self._resume()
        per_epoch = -(-len(self.batches) // training.accumulate)
        limit = time_limit(training.max_seconds) if training.max_seconds is not None else lambda: None
        label = f"{job.arm} (seed {job.seed})"
        with halting() as halt, bar(label, per_epoch * training.epochs, show=job.show) as advance:

            def listen(record: StepRecord) -> str | None:
                advance(record.step, f"loss {record.loss:.3f}")
                return self._hear(record)

            fit(
                self.prepared,
                job.teacher,
                self.batches,
                job.objective,
                self.optimizer,
                epochs=training.epochs,
                engine=self.engine,
                schedule=training.schedule,
                accumulate=training.accumulate,
                clip=training.clip,
                log_steps=training.log_steps,
                listeners=(listen,),
                halt=lambda: halt() or limit(),
                state=self.state,
            )
        if self.state.stopped_by in EXIT_CODES:
            self._leave()
        return self._finish()

    def _hear(self, record: StepRecord) -> str | None:
        """Write a record down; at the end of an epoch score the student, remember the best, and save."""
        tags = {"arm": self.job.arm, "seed": self.job.seed}
        self.folder.log(kind="step", **tags, **{k: v for k, v in record._asdict().items() if k != "epoch_end"})
        if not record.epoch_end:
            self._save_in_time()
            return None
        scores = self._score(self.job.val, self.val_judge)
        self.validation = dict(scores)
        shown = {k: v for k, v in scores.items() if isinstance(v, float)}
        self.folder.log(kind="epoch", **tags, epoch=record.epoch, step=record.step, validation=shown)
        if self.watch.hear(record.epoch, scores) and self.job.training.keep == "best":
            self._keep_best()
        self._save_in_time()
        return self.watch.reason

    def _score(self, source: Source, judge: AnyTeacher | None) -> Scores:
        batches = _on_device(evaluation(source, self.job.workers), self.engine)
        return score(self.student, batches, teacher=judge)

    def _keep_best(self) -> None:
        self.best = {k: v.detach().clone() for k, v in self.student.state_dict().items()}
        if self.home is not None:
            self.home.mkdir(parents=True, exist_ok=True)
            work = self.home / ".best.safetensors"
            checkpoint.save_tensors(work, self.best)
            work.replace(self.home / "best.safetensors")

    def _save_in_time(self) -> None:
        if time.monotonic() - self.saved_at >= self.job.training.checkpoint_seconds:
            self._save()

    def _save(self) -> None:
        self.saved_at = time.monotonic()
        if self.home is None:
            return
        plain = {
            "state": {**vars(self.state), "stopped_by": ""},
            "watch": self.watch.plain(),
            "validation": self.validation,
        }
        checkpoint.save(self.home, self.state.step, self.student, self.optimizer, plain)
        checkpoint.prune(self.home, keep=2)

    def _resume(self) -> None:
        last = checkpoint.latest(self.home) if self.home is not None else None
        if last is None or self.home is None:
            self.folder.rewind(self.job.arm, self.job.seed, 0)
            return
        plain = checkpoint.load(last, self.student, self.optimizer)
        self.state = State(**plain["state"])
        self.watch.restore(plain["watch"])
        self.validation = plain["validation"]
        self.folder.rewind(self.job.arm, self.job.seed, self.state.step)
        if self.watch.reason:
            self.state.stopped_by = self.watch.reason

    def _leave(self) -> None:
        """Save, and end as the signal asked."""
        self._save()
        if EXIT_CODES[self.state.stopped_by] == 128 + signals.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(EXIT_CODES[self.state.stopped_by])

    def _restore_best(self) -> None:
        kept = self.best
        if not kept and self.home is not None and (self.home / "best.safetensors").exists():
            kept = load_file(self.home / "best.safetensors")
        if kept:
            self.student.load_state_dict(kept)

    def _finish(self) -> Result:
        best = self.job.training.keep == "best"
        if best:
            self._restore_best()
        if best or self.state.micro:  # the weights are not those that the last epoch was scored with
            self.validation = dict(self._score(self.job.val, self.val_judge))
        scores = dict(self._score(self.job.test, self.judge))
        taught = self._teacher_scores()
        if self.home is not None:
            self._save()
            checkpoint.prune(self.home, keep=1)
            done = {"scores": scores, "validation": self.validation, "teacher": taught, "state": vars(self.state)}
            write_json(self.home / "done.json", done)
        return Result(self.job.student, scores, self.validation, self.state, taught)

    def _teacher_scores(self) -> Mapping[str, Any] | None:
        if self.judge is None or not self.job.score_teacher or not _labelled(self.job.test):
            return None
        return dict(score(self.judge, _on_device(evaluation(self.job.test, self.job.workers), self.engine)))

    def reread(self, done: Mapping[str, Any]) -> Result:
        """The result of a finished run, its weights loaded."""
        last = checkpoint.latest(self.home) if self.home is not None else None
        if last is None:
            where, wrong = str(self.home), "it says it is done, and holds no checkpoint"
            raise ConfigError(problem(where, wrong, "delete this folder to train again"))
        checkpoint.load(last, self.student)
        if self.job.training.keep == "best":
            self._restore_best()
        try:
            state = State(**done["state"])
        except TypeError as error:
            wrong = f"is damaged: its state is no state ({error})"
            raise CheckpointError(problem(f"{self.home}/done.json", wrong, "delete it and run again")) from None
        return Result(self.job.student, done["scores"], done["validation"], state, done["teacher"])


def _labelled(source: Source) -> bool:
    """Whether any sample has a label; a data set that is not in memory is asked for its first batch."""
    if source.labels is not None:
        return bool((source.labels >= 0).any())
    return "y" in next(iter(Batches(source, batch_size=1, shuffle=False).epoch(0)))


class _on_device:  # noqa: N801 - an adaptor that reads like a function
    """Evaluation batches, moved as they come."""

    def __init__(self, batches: Batches, engine: Engine) -> None:
        self._batches, self._engine = batches, engine

    def __iter__(self) -> Any:
        return (self._engine.batch(batch) for batch in self._batches.epoch(0))


def _batches(job: Job, engine: Engine) -> tuple[Batches, Named]:
    """The training batches, and two samples to size things with."""
    training = job.training
    if training.batch_size % training.accumulate:
        wrong = f"a batch of {training.batch_size} cannot be cut in {training.accumulate} equal micro-batches"
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
    )
    few = Batches(job.train, batch_size=min(2, len(job.train)), shuffle=False)
    return batches, engine.batch(next(iter(few.epoch(0))))


def _check(job: Job) -> None:
    """What can be known without a pass through the models."""
    trainable = [p for p in job.student.parameters() if p.requires_grad]
    if not trainable:
        mend = "give a student with layers to train, or set requires_grad_(True) on some"
        raise ModelError(problem("student", "it has no trainable parameter", mend))
    if isinstance(job.teacher, ModuleTeacher):
        taught = {p.data_ptr() for p in job.teacher.model.parameters() if p.numel()}
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


def _dry_run(job: Job, student: Student, answers: Named, example: Named) -> AnyTeacher | None:
    """One pass of the objective on two samples: what does not fit is told now and not an hour later.

    Returns the teacher where its logits have the student's shape, so that the two can be compared, or None.
    """
    for term in job.objective:
        for name in term.needs().batch:
            if name not in example:
                wrong = f"the term {term.kind!r} needs {name!r}, which the data has not"
                raise DataError(problem("train", wrong, "give labels beside the inputs, or leave that term out"))
    signal = student.probe(example, answers)
    classes = int(signal["logits"].shape[-1]) if "logits" in signal else 0
    for where, source in (("train", job.train), ("val", job.val), ("test", job.test)):
        if classes and source.labels is not None:
            check_labels(source, classes, where)
    with torch.no_grad():
        counts = counted(job.objective, example).clamp_min(1)
        combine(job.objective, signal, answers, example, progress=0.0, counts=counts)
    shapes = [side["logits"].shape if "logits" in side else None for side in (signal, answers)]
    judge = job.teacher if shapes[0] == shapes[1] else None
    for where, source in (("val", job.val), ("test", job.test)):
        if judge is None and not _labelled(source):
            wrong = "no sample has a label, and there is no teacher with the same outputs to hold the student against"
            raise DataError(problem(where, wrong, "give labelled data to score on"))
    return judge
