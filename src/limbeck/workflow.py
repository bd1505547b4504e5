"""The few calls that users make."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import nn

from limbeck import report
from limbeck.auto import Auto, as_auto
from limbeck.choosing import Choice, check_auto, choosing
from limbeck.core.errors import ConfigError, ModelError, nearest, problem
from limbeck.core.folder import RunFolder
from limbeck.core.keras import as_module
from limbeck.core.processes import first
from limbeck.core.seeds import derive
from limbeck.core.setting import as_plain
from limbeck.core.taps import Inputs, Outputs, Reader
from limbeck.costs import Costs, measure_costs
from limbeck.data import Augmentation, Source, as_source, split
from limbeck.data import describe as describe_augmentation
from limbeck.evaluation import Footprint, Scores, Timing, score
from limbeck.evaluation import footprint as measure_footprint
from limbeck.evaluation.study import document
from limbeck.evidence import arm, describe, footprints, incidents, save_student
from limbeck.examining import Evidence, Subject, examine
from limbeck.findings import findings
from limbeck.job import Job, evaluation
from limbeck.member import Result, check, train_member
from limbeck.objectives import KL, Label, Term, as_objective
from limbeck.staging import records
from limbeck.teachers import ModuleTeacher, as_teacher
from limbeck.teachers.stored import Targets
from limbeck.train import Stage, State, Training
from limbeck.train.stages import check_stages, terms_of

__all__ = ["Run", "distill", "evaluate", "footprint"]


@dataclass
class Run:
    """What `distill` gives back."""

    student: nn.Module
    """The trained student: the module that was handed over."""
    scores: Mapping[str, Mapping[str, Any]]
    """By model ("student", and "teacher" where there is one): accuracy, macro_f1, nll, ece, agreement, …"""
    state: State
    """Steps, epochs, seconds, and what ended the run."""
    document: Mapping[str, Any]
    """All of it as plain data, as in `scores.json`."""
    folder: RunFolder
    examined: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What was measured besides, by model: reliability, overfitting, jitter, and what `evidence` asked for."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """The same as it stands in `evidence.json`."""
    subjects: Mapping[str, Subject] = field(default_factory=dict)
    """The student, and a teacher that is a module, as they are called."""
    source: Source | None = None
    """The data it was scored on."""
    timing: Timing | None = None
    """How latency was measured, where costs were asked for."""

    def report(self, out: str | Path | None = None) -> Path:
        """Write the page and return its path. A run without a folder needs `out`, a folder to write into.

        Raises:
            ConfigError: there is no folder.
        """
        if self.folder.path is not None:
            return report.render(self.folder.path)
        if out is None:
            mend = 'name one: run.report("runs/first"), or pass out= to distill'
            raise ConfigError(problem("report", "this run has no folder", mend))
        with RunFolder(Path(out), self.folder.recipe) as folder:
            for line in self.folder.lines:
                folder.log(**line)
            folder.finish(self.document, self.state.seconds, evidence=self.evidence)
            return report.render(Path(out))


def distill(
    student: nn.Module,
    teacher: Any,
    *,
    train: Any,
    val: Any = None,
    test: Any = None,
    objective: Term | Sequence[Term] | Auto | Literal["auto"] | None = None,
    epochs: int = 10,
    batch_size: int = 128,
    seed: int = 0,
    out: str | Path | None = None,
    augment: Augmentation | None = None,
    inputs: Inputs = None,
    outputs: Outputs = None,
    workers: int = 0,
    evidence: Evidence | None = None,
    progress: bool = True,
    stages: Sequence[Stage] = (),
    **training: Any,
) -> Run:
    """Train `student` to match `teacher` on `train`, and score both. The teacher is bit-identical afterwards.

    Args:
        student: any module, or a Keras model on the torch backend; it is trained in place. It may return a tensor,
            tuple, dict, dataclass or a Hugging Face-style output.
        teacher: any module, or a function from the inputs to logits, or what `limbeck.remember` made, or None to train
            on labels alone (the plain baseline, through the same loop). `limbeck.teacher(...)` gives it its own
            normalisation, inputs, classes.
        train: `(X, y)` arrays or tensors, a map-style dataset, a loader, or a dict of columns.
        val: as `train`; a tenth of `train` when None. Chosen on, never scored as the result when `test` is there.
        test: as `train`; when None the scores are those on `val`.
        objective: terms, whose weighted sum is minimised; by default a mix of `KL` and `Label`, or `Label` alone
            without a teacher. "auto" or `limbeck.Auto(...)` tries several for a short while beside plain training, and
            trains with the best on validation; plain, unless one is better.
        epochs: passes over `train`; where there are stages, each says its own.
        batch_size: samples an optimizer step.
        seed: of shuffling, augmentation, dropout and new heads.
        out: the run folder. The same call on the same folder goes on where a killed run stopped.
        augment: what is done to images, as whole batches (`Augment`), or any function of a sample (`Transform`).
        inputs: which columns the student takes; None finds out.
        outputs: names for what the student returns; None finds out.
        workers: processes that read a map-style dataset.
        evidence: what is measured beside the scores, where that takes passes of its own (`Evidence()` for all).
        progress: show a bar where stderr is a terminal.
        stages: the training in stages, one after the other, such as hints and then outputs.
        **training: any other field of `limbeck.Training`: optimizer, schedule, clip, precision, patience, …

    Raises:
        LimbeckError: the input is at fault; the message says where, what, and how to mend it, before training starts.
    """
    trained = as_module(student)
    if not isinstance(trained, nn.Module):
        wrong = f"{type(student).__name__} is no torch.nn.Module"
        raise ModelError(problem("student", wrong, "give the module that is to be trained"))
    check_stages("stages", stages)
    epochs = sum(stage.epochs for stage in stages) or epochs
    settings = _training(epochs=epochs, batch_size=batch_size, **training)
    source = as_source(train, where="train")
    if val is None:
        source, held_out = split(source, 0.1, derive(seed, "split"))
    else:
        held_out = as_source(val, where="val", classes=source.classes)
    final = as_source(test, where="test", classes=source.classes) if test is not None else held_out
    master = None if teacher is None else as_teacher(teacher)
    auto = as_auto(objective)
    terms = as_objective(_default(master) if objective is None or isinstance(objective, str | Auto) else objective)
    job = Job(
        student=trained,
        teacher=master,
        train=source,
        val=held_out,
        test=final,
        objective=terms,
        training=settings,
        augment=augment,
        seed=seed,
        inputs=inputs,
        outputs=outputs,
        workers=workers,
        show=progress,
        score_teacher=True,
        stages=tuple(stages),
    )
    # Before the folder is made: what is corrected after a refusal would belong to another run.
    check(job) if auto is None else check_auto(auto, job)
    split_name = "test" if test is not None else "validation"
    asked = _recipe(job) if auto is None else {**_recipe(job), "objective": {"auto": as_plain(auto)}}
    with ExitStack() as stack:
        folder = stack.enter_context(RunFolder(Path(out) if out is not None else None, asked, device=settings.device))
        started = time.perf_counter()
        choice = None if auto is None else stack.enter_context(choosing(auto, job, folder))
        job = job if choice is None else choice.job
        result = train_member(job, folder)
        how = evidence.here() if evidence is not None else Evidence(measures=())
        seconds = time.perf_counter() - started
        run = _finish(job, result, folder, split_name, how=how, choice=choice, seconds=seconds)
    return run if trained is student else dataclasses.replace(run, student=student)


def evaluate(
    model: nn.Module,
    data: Any,
    *,
    teacher: Any = None,
    inputs: Inputs = None,
    outputs: Outputs = None,
    workers: int = 0,
) -> Scores:
    """How right `model` is on `data` (see `Scores`): accuracy, recall, F1, likelihood, calibration; errors of numbers.

    With a teacher, also how often the two agree. Nothing is changed: flags and buffers are as before.

    Raises:
        LimbeckError: the data or the model is at fault.
    """
    source = as_source(data, where="data")
    batches = evaluation(source, workers)
    reader = Reader(as_module(model), inputs=inputs, outputs=outputs)
    example = next(iter(batches.epoch(0)))
    reader.probe(example, ("logits",))
    master = None if teacher is None else as_teacher(teacher)
    if isinstance(master, Targets):
        if master.live is None:
            wrong = "these are targets, which answer for the views that they were made on alone"
            raise ConfigError(problem("teacher", wrong, "give the teacher itself"))
        master = master.live
    try:
        if master is not None:
            master.open(("logits",), example, applied=source.normalize)
        return score(reader, batches.epoch(0), teacher=master)
    finally:
        reader.close()
        if master is not None:
            master.close()


def footprint(model: nn.Module, example: Any, *, seconds: float = 1.0, latency: bool = True) -> Footprint:
    """Parameters, bytes, multiply-accumulates an example, peak memory and latency of `model` on `example` (a batch).

    Raises:
        ModelError: the model cannot be called with the example.
    """
    return measure_footprint(as_module(model), example, seconds=seconds, latency=latency)


def _training(**given: Any) -> Training:
    known = [f.name for f in fields(Training)]
    for name in given:
        if name not in known:
            raise ConfigError(problem("distill", f"there is no setting {name!r}", nearest(name, known)))
    return Training(**given)


def _default(teacher: Any) -> tuple[Term, ...]:
    return (Label(),) if teacher is None else (KL(temperature=2.0, weight=0.5), Label(weight=0.5))


def _recipe(job: Job) -> dict[str, Any]:
    """What makes this run this run; a folder refuses any other."""
    shapes = "".join(f"{name}{tuple(value.shape)}" for name, value in job.student.state_dict().items())
    return {
        "student": f"{type(job.student).__qualname__}-{hashlib.sha256(shapes.encode()).hexdigest()[:12]}",
        "teacher": job.teacher.fingerprint() if job.teacher is not None else None,
        "data": {"train": job.train.fingerprint(), "val": job.val.fingerprint(), "test": job.test.fingerprint()},
        "objective": as_plain(job.objective),
        "training": as_plain(job.training),
        "augment": describe_augmentation(job.augment),
        "seed": job.seed,
        **({"stages": as_plain(job.stages)} if job.stages else {}),
    }


def _finish(
    job: Job, result: Result, folder: RunFolder, split_name: str,
    *, how: Evidence, choice: Choice | None, seconds: float,
) -> Run:  # fmt: skip
    """Put the scores of student and teacher beside each other, and write what a finished run holds."""
    arms: dict[str, Any] = {}
    subjects = _subjects(job, result)
    measured = footprints(subjects, job.train)
    timing = how.timing if "costs" in how.measures else None
    costs = Costs()
    if timing is not None and first():
        costs = measure_costs(subjects, timing, job.test, home=folder.checkpoints())
    if job.teacher is not None and result.teacher_scores is not None:
        run = {"seed": job.seed, "scores": dict(result.teacher_scores)}
        words = describe(job.teacher)
        arms["teacher"] = arm("teacher", "Teacher", words, runs=[run], footprint=measured.get("teacher"))
    role = "distilled" if job.teacher is not None else "plain"
    record = result.record(job.seed)
    words, size = describe(result.student), measured.get("student")
    arms["student"] = arm(
        role, "Student", words, objective=terms_of(job.objective, job.stages), runs=[record], footprint=size
    )
    said = document(
        title=folder.path.name if folder.path else "distill",
        story=f"{describe(result.student)}, trained for {result.state.epoch} epochs "
        + (f"to match {describe(job.teacher)}." if job.teacher is not None else "on labels alone."),
        split=split_name,
        arms=arms,
        classes=job.train.class_names,
        notes=[*([choice.words] if choice else []), *result.notes, *costs.notes, *incidents(folder.lines)],
    )
    examined = _examined(job, subjects, folder, how) if first() else {}
    found = findings({name: [{"seed": job.seed, **entry}] for name, entry in examined.items()}, costs=costs.arms,
                     trials=choice.trials if choice else None)  # fmt: skip
    if folder.path is not None and first():
        save_student(folder.path / "student", result.student, said, {"class": describe(result.student)})
        folder.finish(said, seconds, evidence=found)
        report.render(folder.path)
    scores = {name: entry["runs"][0]["scores"] for name, entry in arms.items()}
    return Run(result.student, scores, result.state, said, folder, examined, found, subjects, job.test, timing)


def _subjects(job: Job, result: Result) -> dict[str, Subject]:
    """The student, and a teacher that is a module, with what it needs applied to the batches of this run."""
    live = job.teacher.live if isinstance(job.teacher, Targets) else job.teacher
    found = {}
    if isinstance(live, ModuleTeacher):
        fix = live.normalize.after(job.train.normalize) if live.normalize is not None else None
        found["teacher"] = Subject(live.model, live.inputs, live.outputs, fix)
    return {**found, "student": Subject(result.student, job.inputs, job.outputs)}


def _examined(job: Job, subjects: Mapping[str, Subject], folder: RunFolder, how: Evidence) -> dict[str, dict[str, Any]]:
    """What was measured of the student, and of a teacher that is a module."""
    on = partial(examine, how=how, train=job.train, val=job.val, test=job.test)
    home = folder.checkpoints(job.folder_name, job.seed)
    found, elder = {}, subjects.get("teacher")
    if elder is not None and how.measures:
        found["teacher"] = on(elder)
    found["student"] = on(
        subjects["student"], teacher=elder, lines=records(folder.lines, job.arm, job.seed, job.stages), home=home
    )
    return found
