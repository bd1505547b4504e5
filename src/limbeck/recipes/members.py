"""Train what a recipe names: teacher, every arm, every arm at other rates, seed by seed; and examine what came out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from limbeck.choosing import choosing
from limbeck.core.errors import NonFiniteError
from limbeck.core.folder import RunFolder
from limbeck.core.processes import first, wait
from limbeck.core.records import read_object, write_json
from limbeck.data import Source, Splits
from limbeck.evaluation import Scores, score
from limbeck.examining import Evidence, Subject, by_chance, examine
from limbeck.job import Job, evaluation
from limbeck.judging import Heard
from limbeck.member import Result, train_member
from limbeck.metrics import stability
from limbeck.objectives import Label
from limbeck.recipes.arms import needs, order, student_of, teacher_of
from limbeck.recipes.base import Arm, Recipe
from limbeck.recipes.build import built, loaded_teacher
from limbeck.recipes.remember import remember_for, teacher_names
from limbeck.staging import records
from limbeck.teachers import ModuleTeacher
from limbeck.teachers.signal import Teaching

__all__ = ["Members", "Say", "job_of", "members", "teacher_job"]

Say = Callable[[str], None]


@dataclass
class Members:
    """What was trained, seed by seed."""

    runs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Records by arm, as they stand in `scores.json`."""
    found: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """What was measured besides, by arm, as in `evidence.json`, and `predictions`."""
    rates: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By arm: rate, seed, whether training diverged, and the accuracy."""
    kept: dict[str, nn.Module] = field(default_factory=dict)
    """Teacher and students of the first seed."""
    chance: dict[str, Any] = field(default_factory=dict)
    """How far a network with random weights agrees with the teacher."""
    trials: list[dict[str, Any]] = field(default_factory=list)
    """What arms that choose their objective tried."""
    notes: list[str] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    """The records of all trainings, where they were made in folders of their own."""
    answers: Teaching | None = None
    """A loaded teacher's answers on disk, which serve all seeds."""
    heard: Heard = field(default_factory=Heard)
    """What teachers said of the samples that students are scored on."""

    def add(self, other: Members) -> None:
        """Take in what was trained elsewhere, with other seeds."""
        for mine, theirs in ((self.runs, other.runs), (self.found, other.found), (self.rates, other.rates)):
            for name, entries in theirs.items():
                mine.setdefault(name, []).extend(entries)
        self.kept = {**other.kept, **self.kept}
        self.chance = self.chance or other.chance
        self.trials += other.trials
        self.notes += other.notes
        self.lines += other.lines


def members(recipe: Recipe, taught: Splits, splits: Splits, folder: RunFolder, *, say: Say, show: bool) -> Members:
    """Train everything, or read what a finished run left.

    A training that breaks down is noted and left out.

    Raises:
        NonFiniteError: an arm broke down at every seed.
    """
    made = Members()
    for seed in range(recipe.seed, recipe.seed + recipe.seeds):
        _Seed(recipe, taught, splits, folder, made, seed=seed, say=say, show=show).run()
    for name in recipe.arms:
        if not made.runs.get(name):
            raise NonFiniteError(made.notes[-1])
    return made


class _Seed:
    """One repetition of a recipe."""

    def __init__(
        self, recipe: Recipe, taught: Splits, splits: Splits, folder: RunFolder, made: Members,
        *, seed: int, say: Say, show: bool,
    ) -> None:  # fmt: skip
        self.recipe, self.taught, self.splits, self.folder, self.made = recipe, taught, splits, folder, made
        self.seed, self.say, self.show = seed, say, show
        self.how = recipe.evidence.here() if recipe.evidence is not None else Evidence(measures=())
        self.elder: Subject | None = None

    def run(self) -> None:
        """Teacher, arms, and arms at other rates."""
        recipe = self.recipe
        teacher, record = self._teacher()
        applied = self.splits.train.normalize
        fix = teacher.normalize.after(applied) if teacher.normalize is not None else None
        self.elder = Subject(teacher.model, normalize=fix)
        self._note("teacher", record, self.elder, teacher.model)
        answers = self._remembered(teacher)
        ended: dict[str, nn.Module] = {"teacher": teacher.model}
        for name in order(recipe):
            if not self._lacks(name, ended):
                self._arm(name, teacher_of(recipe, name, teacher, answers, ended), ended)

    def _arm(self, name: str, master: Teaching | None, ended: dict[str, nn.Module]) -> None:
        """One arm, and the same at other rates. Where it chooses its objective, that is done first, and once."""
        recipe, seed = self.recipe, self.seed
        auto = recipe.arms[name].auto
        job = self._job(name, master, ended)
        with ExitStack() as stack:
            if auto is not None:
                choice = stack.enter_context(choosing(auto, job, self.folder, say=self.say))
                self.made.trials += choice.trials
                self.made.notes.append(f"{name}, seed {seed}: {choice.words}")
                job = choice.job
            result = self._tried(job)
            entry: dict[str, Any] = {"rate": job.training.optimizer.rate, "seed": seed}
            entry |= {"diverged": self._broke(job, result), "accuracy": _accuracy(result)}
            self.made.rates.setdefault(name, []).append(entry)
            if result is not None:
                ended[name] = result.student
                self._note(name, result.record(seed), Subject(result.student), result.student, job)
            for factor in recipe.rates:
                if factor != 1:
                    self._at_rate(name, factor, master, ended, job)

    def _job(self, name: str, master: Teaching | None, ended: Mapping[str, nn.Module], factor: float = 1) -> Job:
        job = job_of(self.recipe, name, self.splits, master, seed=self.seed, show=self.show, factor=factor, ended=ended)
        return dataclasses.replace(job, heard=self.made.heard)

    def _lacks(self, name: str, ended: Mapping[str, nn.Module]) -> bool:
        """Whether an arm that this one needs broke down; then it is left out too, and said so."""
        missing = [other for other in needs(self.recipe, name) if other not in ended]
        if missing:
            self.made.notes.append(f"{name}, seed {self.seed}: left out, because it needs {missing[0]}, which was.")
            self.say(f"{name:>12}  seed {self.seed}  left out")
        return bool(missing)

    def _note(
        self, name: str, record: dict[str, Any], subject: Subject, model: nn.Module, job: Job | None = None
    ) -> None:
        """Put a member on record, examined."""
        self.made.runs.setdefault(name, []).append(record)
        self.say(_line(name, self.seed, record))
        self.made.kept.setdefault(name, model)
        if first():
            found = self._examined(name, subject, job)
            self.made.found.setdefault(name, []).append({"seed": self.seed, **found})
        wait()

    def _examined(self, name: str, subject: Subject, job: Job | None) -> dict[str, Any]:
        loaded = name == "teacher" and self.recipe.teacher.weights is not None
        before = self.made.found.get(name)
        if loaded and before:
            return before[0]
        home = self.folder.checkpoints(name, self.seed)
        trained_on = job.train if job is not None else self.taught.train
        lines = records(self.folder.lines, name, self.seed, job.stages if job is not None else ())
        elder = self.elder if name != "teacher" else None
        found = examine(
            subject, self.how, train=trained_on, val=self.splits.val, test=self.splits.test, teacher=elder,
            lines=lines, home=home,
        )  # fmt: skip
        if elder is not None and not self.made.chance and "attribution" in found:
            self.made.chance = self._by_chance(subject, elder, home)
        return found

    def _by_chance(self, subject: Subject, elder: Subject, home: Path | None) -> dict[str, Any]:
        file = home / "chance.json" if home is not None else None
        if file is not None and file.exists():
            return read_object(file)
        found = by_chance(subject, elder, self.how, self.splits.test)
        if file is not None:
            write_json(file, found)
        return found

    def _at_rate(
        self, name: str, factor: float, master: Teaching | None, ended: Mapping[str, nn.Module], like: Job
    ) -> None:
        """An arm once more, at another rate, with what was chosen for it at its own."""
        job = self._job(name, master, ended, factor)
        if self.recipe.arms[name].auto is not None:
            training = dataclasses.replace(like.training, optimizer=job.training.optimizer)
            job = dataclasses.replace(
                job, objective=like.objective, teacher=like.teacher, train=like.train, training=training
            )
        result = self._tried(job)
        broke = self._broke(job, result)
        entry = {"rate": job.training.optimizer.rate, "seed": self.seed, "diverged": broke}
        self.made.rates[name].append({**entry, "accuracy": _accuracy(result)})
        said = "diverged" if broke else f"accuracy {100 * (_accuracy(result) or 0):.2f} %"
        self.say(f"{name:>12}  seed {self.seed}  rate {entry['rate']:g}  {said}")

    def _tried(self, job: Job) -> Result | None:
        """The result of a training, or None where it broke down; that is kept, so that it is not tried again."""
        home = self.folder.checkpoints(job.folder_name, job.seed)
        broken = home / "diverged.json" if home is not None else None
        try:
            if broken is not None and broken.exists():
                raise NonFiniteError(str(read_object(broken, "said")["said"]))
            return train_member(job, self.folder)
        except NonFiniteError as error:
            if broken is not None and first():
                write_json(broken, {"said": str(error)})
            wait()
            if job.arm in self.recipe.arms:
                said = " ".join(str(error).split())
                self.made.notes.append(f"{job.arm}, seed {job.seed}: left out, because it broke down. {said}")
                self.say(f"{job.arm:>12}  seed {job.seed}  broke down")
            return None

    def _broke(self, job: Job, result: Result | None) -> bool:
        if result is None:
            return True
        steps = [x for x in records(self.folder.lines, job.arm, job.seed, job.stages) if x["kind"] == "step"]
        recalls, samples = result.scores.get("recall_per_class", ()), result.scores["samples"]
        return stability.diverged([x["loss"] for x in steps], recalls=recalls, samples=samples)

    def _teacher(self) -> tuple[ModuleTeacher, dict[str, Any]]:
        """The teacher of this seed, trained or loaded, and its record."""
        recipe, splits, seed = self.recipe, self.splits, self.seed
        if recipe.teacher.weights is not None:
            teacher = loaded_teacher(recipe, splits.train)
            # Scored as it was handed over: a faster form is for its answers in training.
            original = ModuleTeacher(teacher.model, normalize=teacher.normalize, prepare="none")
            before = self.made.runs.get("teacher")
            scores = before[0]["scores"] if before else dict(_loaded_scores(original, splits.test))
            return teacher, {"seed": seed, "scores": scores}
        model = built(recipe.teacher.model, splits.train, seed, "teacher")
        result = train_member(teacher_job(recipe, model, self.taught, splits, seed=seed, show=self.show), self.folder)
        return ModuleTeacher(model), result.record(seed)

    def _remembered(self, teacher: ModuleTeacher) -> Teaching:
        """The teacher itself, or its answers on disk: made now, or found there. A loaded one serves all seeds."""
        recipe, how, train = self.recipe, self.recipe.targets, self.splits.train
        if how is None or not teacher_names(recipe):
            return teacher
        if self.made.answers is not None:
            return self.made.answers
        shared = recipe.teacher.weights is not None
        home = Path(how.path) if how.path is not None else (self.folder.path or Path()) / "targets"
        out = home if shared else home / str(self.seed)  # a teacher of its own for each seed
        seed = recipe.seed if shared else self.seed
        started = time.perf_counter()
        targets = remember_for(recipe, train, teacher, out, seed=seed, say=self.say, show=self.show)
        plan, size = targets.store.plan, targets.store.nbytes / 1e6
        said = f"{plan.views} views of {len(targets.store.ids):,} samples, {size:.1f} MB"
        self.say(f"{'targets':>12}  {said}  {time.perf_counter() - started:.1f} s")
        if shared:
            self.made.answers = targets
        return targets


def _accuracy(result: Result | None) -> float | None:
    return None if result is None else result.scores.get("accuracy")


def _line(name: str, seed: int, record: Mapping[str, Any]) -> str:
    accuracy = f"{100 * record['scores']['accuracy']:.2f} %"
    return f"{name:>12}  seed {seed}  accuracy {accuracy}" + (
        f"  {record['seconds']:.1f} s" if "seconds" in record else ""
    )


def job_of(
    recipe: Recipe, name: str, splits: Splits, teacher: Teaching | None, *, seed: int, show: bool, factor: float = 1,
    ended: Mapping[str, nn.Module] | None = None,
) -> Job:  # fmt: skip
    """The training of an arm, after those that have ended; `factor` multiplies its rate.

    An arm that chooses its objective has none yet.
    """
    each = recipe.arms[name]
    train = splits.train
    if each.labelled_only and train.labels is not None:  # the other case was refused before
        train = train.subset((train.labels >= 0).nonzero().flatten())
    member = name if factor == 1 else f"{name}@{factor:g}"
    return Job(
        student=student_of(recipe, name, splits, ended or {}, seed=seed),
        teacher=teacher,
        train=train,
        val=splits.val,
        test=splits.test,
        objective=each.objective,
        training=_settings(recipe, each, factor),
        augment=recipe.augment,
        seed=seed,
        arm=member,
        folder_name=member,
        workers=recipe.workers,
        show=show,
        stages=tuple(s if s.rate is None else dataclasses.replace(s, rate=factor * s.rate) for s in each.stages),
    )


def _settings(recipe: Recipe, each: Arm, factor: float) -> Any:
    training = recipe.training
    rate = factor * (training.optimizer.rate if each.rate is None else each.rate)
    training = dataclasses.replace(training, optimizer=dataclasses.replace(training.optimizer, rate=rate))
    epochs = sum(stage.epochs for stage in each.stages) or each.epochs or training.epochs
    tuning = training.tuning if each.tuning is None else each.tuning
    ema = training.ema if each.ema is None else each.ema
    return dataclasses.replace(training, epochs=epochs, ema=ema, tuning=tuning)


def teacher_job(recipe: Recipe, model: nn.Module, taught: Splits, splits: Splits, *, seed: int, show: bool) -> Job:
    """The training of the teacher, on labels."""
    return Job(
        student=model,
        teacher=None,
        train=taught.train,
        val=taught.val,
        test=splits.test,
        objective=(Label(),),
        training=recipe.teacher.training,
        augment=recipe.teacher.augment,
        seed=seed,
        arm="teacher",
        folder_name="teacher",
        workers=recipe.workers,
        show=show,
    )


def _loaded_scores(teacher: ModuleTeacher, test: Source) -> Scores:
    batches = evaluation(test)
    teacher.open(("logits",), next(iter(batches.epoch(0))), applied=test.normalize)
    try:
        return score(teacher, batches.epoch(0))
    finally:
        teacher.close()
