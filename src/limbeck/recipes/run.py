"""Run a recipe: teacher, then every arm, over the seeds, into one folder."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from limbeck import report
from limbeck.core.errors import ConfigError, DataError, problem
from limbeck.core.folder import RunFolder
from limbeck.core.processes import first
from limbeck.core.setting import as_plain
from limbeck.data import Source, Splits
from limbeck.evaluation import Scores, score
from limbeck.evaluation.study import document
from limbeck.evidence import arm, footprints, incidents, save_student
from limbeck.job import Job, evaluation
from limbeck.member import Result, check, train_member
from limbeck.objectives import Label
from limbeck.recipes.base import Arm, Recipe
from limbeck.recipes.build import built, loaded_teacher, shape_of
from limbeck.recipes.remember import remember_for, teacher_names
from limbeck.replaying import check_views
from limbeck.teachers import ModuleTeacher
from limbeck.teachers.signal import Teaching

__all__ = ["Outcome", "run_recipe"]

Say = Callable[[str], None]


@dataclass
class Outcome:
    """What a recipe's run leaves: the document of `scores.json`, its folder, and the page."""

    document: dict[str, Any]
    folder: RunFolder
    page: Path | None


def run_recipe(recipe: Recipe, out: str | Path | None, *, say: Say = lambda _: None, show: bool = True) -> Outcome:
    """Train the teacher (or load it) and every arm over the seeds; write scores, student and page.

    The same call on the same folder goes on where a killed run stopped, and only reads a finished one.

    Args:
        recipe: the run.
        out: the run folder; None keeps everything in memory.
        say: hears a line when a member is done.
        show: bars where stderr is a terminal.

    Raises:
        LimbeckError: the input is at fault.
        KeyboardInterrupt: Ctrl-C, after the step was finished and saved.
    """
    started = time.perf_counter()
    splits = recipe.data.load()
    taught = recipe.teacher.data.load() if recipe.teacher.data is not None else splits
    _check(recipe, taught, splits, out)
    with RunFolder(Path(out) if out is not None else None, as_plain(recipe), device=recipe.training.device) as folder:
        runs, kept = _members(recipe, taught, splits, folder, say=say if first() else lambda _: None, show=show)
        notes = () if recipe.targets is None else (_remembered_note(recipe, splits.train),)
        seconds = time.perf_counter() - started
        return _conclude(recipe, splits, folder, runs=runs, kept=kept, notes=notes, seconds=seconds)


def _members(
    recipe: Recipe, taught: Splits, splits: Splits, folder: RunFolder, *, say: Say, show: bool
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, nn.Module]]:
    """Train everything, seed by seed: the records by arm, and the models of the first seed."""
    runs: dict[str, list[dict[str, Any]]] = {"teacher": [], **{name: [] for name in recipe.arms}}
    kept: dict[str, nn.Module] = {}
    for seed in range(recipe.seed, recipe.seed + recipe.seeds):
        teacher, record = _teacher(recipe, taught, splits, folder, seed=seed, show=show)
        runs["teacher"].append(record)
        say(_line("teacher", seed, record))
        kept.setdefault("teacher", teacher.model)
        if seed == recipe.seed or recipe.teacher.weights is None:  # a loaded teacher is the same for all seeds
            master = _remembered(recipe, splits.train, teacher, folder, seed=seed, say=say, show=show)
        for name in recipe.arms:
            result = train_member(_job(recipe, name, splits, master, seed=seed, show=show), folder)
            runs[name].append(result.record(seed))
            say(_line(name, seed, runs[name][-1]))
            kept.setdefault(name, result.student)
    return runs, kept


def _line(name: str, seed: int, record: Mapping[str, Any]) -> str:
    accuracy = f"{100 * record['scores']['accuracy']:.2f} %"
    return f"{name:>12}  seed {seed}  accuracy {accuracy}" + (
        f"  {record['seconds']:.1f} s" if "seconds" in record else ""
    )


def _check(recipe: Recipe, taught: Splits, splits: Splits, out: object) -> None:
    """Build and try everything once, before any work, so that what can't be built is told now."""
    if not splits.train.classes:
        raise DataError(problem("data", "it has no labels, so there are no classes to tell apart", "give labels"))
    for each in recipe.arms.values():
        if each.labelled_only and splits.train.labels is None:
            raise DataError(problem("data", "an arm wants labelled samples and there are none", "give labels"))
    if recipe.targets is not None:
        check_views(recipe.targets.views, recipe.augment)
        if recipe.targets.path is None and out is None:
            mend = "set targets.path, or give the run a folder with --out"
            raise ConfigError(problem("targets", "there is no folder to keep them in", mend))
    if recipe.teacher.weights is not None:
        teacher = loaded_teacher(recipe, splits.train)
    else:
        model = built(recipe.teacher.model, splits.train, recipe.seed, "teacher")
        teacher = ModuleTeacher(model)
        check(_teacher_job(recipe, model, taught, splits, seed=recipe.seed, show=False))
    for name in recipe.arms:
        check(_job(recipe, name, splits, teacher, seed=recipe.seed, show=False))


def _settings(recipe: Recipe, each: Arm) -> Any:
    training = recipe.training
    if each.rate is not None:
        training = dataclasses.replace(training, optimizer=dataclasses.replace(training.optimizer, rate=each.rate))
    return training if each.epochs is None else dataclasses.replace(training, epochs=each.epochs)


def _job(recipe: Recipe, name: str, splits: Splits, teacher: Teaching, *, seed: int, show: bool) -> Job:
    each = recipe.arms[name]
    train = splits.train
    if each.labelled_only and train.labels is not None:  # `_check` refused the other case
        train = train.subset((train.labels >= 0).nonzero().flatten())
    return Job(
        student=built(recipe.student, splits.train, seed, "student"),
        teacher=teacher if any(term.needs().teacher for term in each.objective) else None,
        train=train,
        val=splits.val,
        test=splits.test,
        objective=each.objective,
        training=_settings(recipe, each),
        augment=recipe.augment,
        seed=seed,
        arm=name,
        folder_name=name,
        workers=recipe.workers,
        show=show,
    )


def _remembered(
    recipe: Recipe, train: Source, teacher: ModuleTeacher, folder: RunFolder, *, seed: int, say: Say, show: bool
) -> Teaching:
    """The teacher itself, or its answers on disk: made now, or found there. A loaded one serves all seeds."""
    how = recipe.targets
    if how is None or not teacher_names(recipe):
        return teacher
    shared = recipe.teacher.weights is not None
    home = Path(how.path) if how.path is not None else (folder.path or Path()) / "targets"
    out = home if shared else home / str(seed)  # a teacher of its own for each seed
    started = time.perf_counter()
    targets = remember_for(recipe, train, teacher, out, seed=recipe.seed if shared else seed, say=say, show=show)
    plan, size = targets.store.plan, targets.store.nbytes / 1e6
    said = f"{plan.views} views of {len(targets.store.ids):,} samples, {size:.1f} MB"
    say(f"{'targets':>12}  {said}  {time.perf_counter() - started:.1f} s")
    return targets


def _remembered_note(recipe: Recipe, train: Source) -> str:
    assert recipe.targets is not None
    views = recipe.targets.views
    return (
        f"The teacher's answers to {views} views of {len(train):,} samples were remembered on disk, and distilled "
        f"students saw these views in turn; the others saw new ones in every epoch."
    )


def _teacher(
    recipe: Recipe, taught: Splits, splits: Splits, folder: RunFolder, *, seed: int, show: bool
) -> tuple[ModuleTeacher, dict[str, Any]]:
    """The teacher of a seed, trained or loaded, and its record."""
    if recipe.teacher.weights is not None:
        teacher = loaded_teacher(recipe, splits.train)
        # Scored as it was handed over: a faster form is for its answers in training.
        original = ModuleTeacher(teacher.model, normalize=teacher.normalize, prepare="none")
        return teacher, {"seed": seed, "scores": dict(_loaded_scores(original, splits.test))}
    model = built(recipe.teacher.model, splits.train, seed, "teacher")
    result: Result = train_member(_teacher_job(recipe, model, taught, splits, seed=seed, show=show), folder)
    return ModuleTeacher(model), result.record(seed)


def _teacher_job(recipe: Recipe, model: nn.Module, taught: Splits, splits: Splits, *, seed: int, show: bool) -> Job:
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


def _conclude(
    recipe: Recipe,
    splits: Splits,
    folder: RunFolder,
    *,
    runs: Mapping[str, list[dict[str, Any]]],
    kept: Mapping[str, nn.Module],
    notes: Sequence[str],
    seconds: float,
) -> Outcome:
    shown = next((name for name in recipe.arms if name != recipe.baseline), next(iter(recipe.arms)))
    measured = footprints(
        {"teacher": (kept["teacher"], None, None), "student": (kept[shown], None, None)}, splits.train
    )
    words = _said(recipe.teacher.model)
    arms = {"teacher": arm("teacher", "Teacher", words, runs=runs["teacher"], footprint=measured.get("teacher"))}
    for name, each in recipe.arms.items():
        arms[name] = arm(
            "plain" if name == recipe.baseline else "distilled",
            each.label,
            _said(recipe.student),
            objective=each.objective,
            runs=runs[name],
            footprint=measured.get("student"),
        )
    said = document(
        title=recipe.title,
        story=recipe.story,
        split="test",
        arms=arms,
        classes=splits.train.class_names,
        baseline=recipe.baseline,
        notes=(*notes, *incidents(folder.lines)),
    )
    page = None
    if folder.path is not None and first():
        base = {
            "model": as_plain(recipe.student),
            "shape": list(shape_of(splits.train)),
            "classes": splits.train.classes,
        }
        save_student(folder.path / "student", kept[shown], said, {**base, "arm": shown, "seed": recipe.seed})
        folder.finish(said, seconds)
        page = report.render(folder.path)
    return Outcome(said, folder, page)


def _said(model: Any) -> str:
    plain = as_plain(model)
    return f"{plain.pop('kind')} " + ", ".join(f"{k} {v}" for k, v in plain.items())
