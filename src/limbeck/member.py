"""One training of one student: the unit that runs, recipes and studies are made of."""

from __future__ import annotations

import dataclasses
import signal as signals
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from limbeck.core.errors import CheckpointError, ConfigError, problem
from limbeck.core.folder import RunFolder
from limbeck.core.processes import collect, first, wait
from limbeck.core.progress import bar
from limbeck.core.records import FaultRecord, StepRecord, read_object, write_json
from limbeck.core.seeds import derive, seed_everything
from limbeck.core.setting import as_plain
from limbeck.core.sharding import parted, whole
from limbeck.core.still import undisturbed
from limbeck.core.types import Named
from limbeck.data import Source
from limbeck.evaluation import Scores, score
from limbeck.evaluation.peers import accuracies
from limbeck.job import Job, Ready, evaluation, labelled, make_ready, on_device, selves
from limbeck.models import Peers, kept_model
from limbeck.remembering import complete
from limbeck.staging import Later, after, draws, passed, staged
from limbeck.teachers.signal import Teaching
from limbeck.teachers.stored import Targets
from limbeck.train import State, Student, Tuner, checkpoint, fit
from limbeck.train.followers import Average, Follower
from limbeck.train.interrupt import EXIT_CODES, halting
from limbeck.train.listeners import Watch, time_limit
from limbeck.train.trackers import Tracking, tracking, untracked
from limbeck.train.tuning import UNTUNED
from limbeck.trouble import halving, telling

__all__ = ["Result", "check", "train_member"]

_DONE = ("scores", "validation", "teacher", "state")
"""What a finished member writes down."""


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


def train_member(job: Job, folder: RunFolder) -> Result:
    """Train one student, stage by stage, or go on where a killed run stopped, or read what a finished one left.

    Raises:
        LimbeckError: the input is at fault; all that can be checked is checked before the first step.
        KeyboardInterrupt: Ctrl-C, after the step was finished and saved.
    """
    if job.stages:
        results: list[Result] = []
        for number in range(len(job.stages)):
            results.append(train_member(staged(job, number, [result.state for result in results]), folder))
        return dataclasses.replace(results[-1], state=passed([result.state for result in results]))
    home = folder.checkpoints(job.folder_name, job.seed, job.stage)
    if isinstance(job.teacher, Targets) and job.teacher.live is not None:
        names = frozenset[str]().union(*(term.needs().teacher for term in job.objective))
        complete(job.teacher, job.train, job.augment, names, device=job.training.device, progress=job.show)
    if job.training.accumulate != "auto":
        return _trained(job, folder, home)
    before = {name: value.detach().clone() for name, value in job.student.state_dict().items()}

    def attempt(job: Job) -> Result:
        job.student.load_state_dict(before)
        return _trained(job, folder, home)

    return halving(
        job, attempt, lambda tried: folder.log(kind="memory", **_tags(job), step=job.before.step, accumulate=tried)
    )


def _trained(job: Job, folder: RunFolder, home: Path | None) -> Result:
    seed_everything(derive(job.seed, *draws(job)))
    with ExitStack() as stack:
        session = _Session(job, folder, home, make_ready(job, stack))
        if home is not None and (home / "done.json").exists():
            return session.reread(read_object(home / "done.json", *_DONE))
        return session.run()


def _tags(job: Job) -> dict[str, Any]:
    return {"arm": job.arm, "seed": job.seed, **({"stage": job.stage} if job.stage else {})}


def check(job: Job) -> None:
    """Refuse what cannot be trained, at the cost of two samples through the models, before anything is written.

    Raises:
        LimbeckError: the input is at fault.
    """
    for number in range(len(job.stages)):
        check(staged(job, number, ()))
    if job.stages:
        return
    with torch.random.fork_rng(devices=[]), ExitStack() as stack:
        student = make_ready(job, stack).student
        job.training.optimizer.build(student, _tuner(job, student))


def _tuner(job: Job, student: Student) -> Tuner:
    return UNTUNED if job.training.tuning is None else Tuner(job.training.tuning, student.model)


class _Session:
    """A training under way: what the loop's listeners share."""

    def __init__(self, job: Job, folder: RunFolder, home: Path | None, ready: Ready) -> None:
        self.job, self.folder, self.home = job, folder, home
        self.engine, self.batches, self.given, self.judge, idle = ready
        self.called, self.student = self.engine.prepare(self.given, idle=idle)
        self.tuner = _tuner(job, self.student)  # type: ignore[arg-type]  # sharded, it is a copy, and still a Student
        self.optimizer = job.training.optimizer.build(self.student, self.tuner)
        self.average = Average(self.student, job.training.ema) if job.training.ema is not None else None
        averages = {"average": self.average} if self.average is not None else {}
        self.followers: dict[str, Follower] = averages | selves(job.teacher, self.given.model, self.per_epoch)
        # Without labels, validation holds the student against its teacher.
        self.val_judge = None if labelled(job.val) else self.judge
        self.state = State()
        self.watch = Watch(monitor=job.training.monitor, patience=job.training.patience, target=job.training.target)
        self.best: dict[str, Tensor] = {}
        self.validation: Mapping[str, Any] = {}
        self.saved_at = time.monotonic()
        self.track: Tracking = untracked

    @property
    def per_epoch(self) -> int:
        """Steps in an epoch."""
        return -(-len(self.batches) // self.job.training.pieces)

    def run(self) -> Result:
        """Train from the start, or from the last checkpoint."""
        job, training = self.job, self.job.training
        self._resume()
        if self.engine.rank and not self.state.step:  # draws of its own: what must be equal everywhere is built by now
            seed_everything(derive(job.seed, *draws(job), self.engine.rank))
        limit = time_limit(training.max_seconds) if training.max_seconds is not None else lambda: None
        label = f"{job.arm} (seed {job.seed})" + (f", {job.stage}" if job.stage else "")
        title = f"{job.arm}-{job.seed}" + (f"-{job.stage}" if job.stage else "")
        with (
            halting() as halt,
            bar(label, self.per_epoch * training.epochs, show=job.show and first()) as advance,
            tracking(training.trackers, title, self.folder.path, as_plain(training)) as self.track,
            telling(self.home),
        ):

            def listen(record: StepRecord) -> str | None:
                advance(record.step, f"loss {record.loss:.3f}")
                return self._hear(after(record, job.before))

            fit(
                self.called,
                job.teacher,
                Later(self.batches, job.before.epoch),
                job.objective,
                self.optimizer,
                epochs=training.epochs,
                engine=self.engine,
                schedule=training.schedule,
                accumulate=training.pieces,
                clip=training.clip,
                log_steps=training.log_steps,
                non_finite=training.non_finite,
                followers=list(self.followers.values()),
                tuner=self.tuner,
                listeners=(listen,),
                faults=self._hear_fault,
                halt=lambda: halt() or limit(),
                state=self.state,
            )
            if self.state.stopped_by in EXIT_CODES:
                self._leave()
            return self._finish()

    def _hear(self, record: StepRecord) -> str | None:
        """Write a record down; at the end of an epoch score the student, remember the best, and save."""
        line = {k: v for k, v in record._asdict().items() if k != "epoch_end"}
        self.folder.log(kind="step", **_tags(self.job), **line)
        terms = {f"term/{name}": value for name, value in record.terms.items()}
        self.track({**terms, **{k: line[k] for k in ("loss", "rate", "grad_norm", "epoch")}}, record.step)
        if not record.epoch_end:
            self._save_in_time()
            return None
        self.engine.align(self.student)
        scores = self._score(self.job.val, self.val_judge)
        self.validation = dict(scores)
        shown = {k: v for k, v in scores.items() if isinstance(v, float)}
        self.folder.log(kind="epoch", **_tags(self.job), epoch=record.epoch, step=record.step, validation=shown)
        self.track({f"validation/{name}": value for name, value in shown.items()}, record.step)
        if self.watch.hear(record.epoch, scores) and self.job.training.keep == "best":
            self._keep_best()
        self._save_in_time()
        return self.watch.reason

    def _hear_fault(self, fault: FaultRecord) -> None:
        """Put a step that is not finite on record, with the terms and the samples that made it."""
        done = {"stop": "stopped", "skip": "skipped"}[self.job.training.non_finite]
        line = {**after(fault, self.job.before)._asdict(), "terms": list(fault.terms), "ids": list(fault.ids)}
        self.folder.log(kind="fault", **_tags(self.job), done=done, **line)

    def _score(self, source: Source, judge: Teaching | None) -> Scores:
        batches = on_device(evaluation(source, self.job.workers), self.engine)
        master = None if judge is None else self._asked(judge, source)
        with undisturbed(self.student), self._averaged():
            return score(self.engine.spread(self.student), batches, teacher=master)

    def _asked(self, judge: Teaching, source: Source) -> Callable[[Named], Named]:
        """What answers for the teacher in one pass over `source`: what it said before, where one process trains."""
        return self.engine.spread(judge) if self.engine.world_size > 1 else self.job.heard.by(judge, source)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The averaged weights in the student, where there are any."""
        if self.average is None:
            yield
            return
        self.average.swap()
        try:
            yield
        finally:
            self.average.swap()

    def _keep_best(self) -> None:
        with self._averaged():
            self.best = {k: whole(v.detach()).clone() for k, v in self.student.state_dict().items()}
        if self.home is not None:
            checkpoint.save_best(self.home, self.best)

    def _save_in_time(self) -> None:
        # Processes go by one clock, since all must take part.
        if collect(time.monotonic() - self.saved_at)[0] >= self.job.training.checkpoint_seconds:
            self._save()

    def _save(self) -> None:
        self.saved_at = time.monotonic()
        if self.home is None:
            return
        self.engine.align(self.student)
        plain = {
            "state": {**vars(self.state), "stopped_by": ""},
            "watch": self.watch.plain(),
            "validation": self.validation,
            **self.engine.plain(),
        }
        checkpoint.save(self.home, self.state.step, self.student, self.optimizer, plain, followers=self.followers)
        if first():
            checkpoint.prune(self.home, keep=self.job.training.checkpoints)

    def _resume(self) -> None:
        wait()
        last = checkpoint.latest(self.home) if self.home is not None else None
        if last is None or self.home is None:
            self._rewind()
            self._log_start()
            if self.home is not None and self.tuner.pulls:
                checkpoint.save_best(self.home, self.tuner.start(), "start")
            return
        plain = checkpoint.load(last, self.student, self.optimizer, followers=self.followers)
        self.engine.restore(plain)
        if self.tuner.pulls:
            begun = self.home / "start.safetensors"
            self.tuner.restore(load_file(begun) if begun.exists() else {}, str(begun))
        self.state = State(**plain["state"])
        # Steps are whole wherever they were cut, so the place in the epoch follows from them.
        pieces = self.job.training.pieces
        done = self.state.step - self.state.epoch * self.per_epoch
        self.state.micro = done * pieces
        self.watch.restore(plain["watch"])
        self.validation = plain["validation"]
        self._rewind()
        if self.watch.reason:
            self.state.stopped_by = self.watch.reason

    def _rewind(self) -> None:
        self.folder.rewind(self.job.arm, self.job.seed, self.job.before.step + self.state.step, self.job.stage)

    def _log_start(self) -> None:
        """Put on record what was settled on this machine: in which form the teacher answers, and the precision."""
        teacher, asked, step = self.job.teacher, self.job.training.precision, self.job.before.step + 1
        if asked == "auto" or self.engine.imitates:
            used = {"asked": asked, "used": self.engine.precision, "imitated": self.engine.imitates}
            self.folder.log(kind="precision", **_tags(self.job), step=step, **used)
        if teacher is not None and teacher.form:
            self.folder.log(kind="teacher", **_tags(self.job), step=step, words=teacher.words, form=dict(teacher.form))

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
            layout = self.student.state_dict()
            self.student.load_state_dict({name: parted(value, layout[name]) for name, value in kept.items()})

    def _finish(self) -> Result:
        best = self.job.training.keep == "best"
        self.engine.align(self.student)
        if self.home is not None:
            self._save()  # with the weights that training would go on from
        if best:
            self._restore_best()
            self.average = None  # the best weights were averaged when they were kept
        if best or self.state.micro:  # the weights are not those that the last epoch was scored with
            self.validation = dict(self._score(self.job.val, self.val_judge))
        scores = {**self._score(self.job.test, self.judge), **self._peers()}
        taught = self._teacher_scores()
        if self.home is not None and first():
            checkpoint.prune(self.home, keep=1)
            done = {"scores": scores, "validation": self.validation, "teacher": taught, "state": vars(self.state)}
            write_json(self.home / "done.json", done)
        wait()
        self._hand_over()
        return Result(kept_model(self.job.student), scores, self.validation, self.state, taught)

    def _peers(self) -> dict[str, list[float]]:
        """The accuracy of each of several peers; the first one's is the student's."""
        if not isinstance(self.given.model, Peers) or not labelled(self.job.test):
            return {}
        batches = on_device(evaluation(self.job.test, self.job.workers), self.engine)
        with undisturbed(self.student), self._averaged():
            return {"peers": accuracies(self.engine.spread(self.student), batches)}

    def _hand_over(self) -> None:
        """The weights that were scored, in the caller's own module."""
        self.tuner.leave()
        with self._averaged():
            if self.student is self.given and self.average is None:
                return
            final = {name: whole(value.detach()).clone() for name, value in self.student.state_dict().items()}
        self.given.load_state_dict(final)
        self.average = None

    def _teacher_scores(self) -> Mapping[str, Any] | None:
        if self.judge is None or not self.job.score_teacher or not labelled(self.job.test):
            return None
        batches = on_device(evaluation(self.job.test, self.job.workers), self.engine)
        return dict(score(self._asked(self.judge, self.job.test), batches))

    def reread(self, done: Mapping[str, Any]) -> Result:
        """The result of a finished run, its weights loaded."""
        last = checkpoint.latest(self.home) if self.home is not None else None
        if last is None:
            where, wrong = str(self.home), "it says it is done, and holds no checkpoint"
            raise ConfigError(problem(where, wrong, "delete this folder to train again"))
        checkpoint.load(last, self.student, followers=self.followers)
        if self.job.training.keep == "best":
            self._restore_best()
            self.average = None
        self._hand_over()
        try:
            state = State(**done["state"])
        except TypeError as error:
            wrong = f"is damaged: its state is no state ({error})"
            raise CheckpointError(problem(f"{self.home}/done.json", wrong, "delete it and run again")) from None
        return Result(kept_model(self.job.student), done["scores"], done["validation"], state, done["teacher"])
