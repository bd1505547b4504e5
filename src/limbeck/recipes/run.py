"""Run a recipe: teacher, then every arm, over the seeds, into one folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck import report
from limbeck.choosing import check_auto
from limbeck.core.errors import ConfigError, DataError, problem
from limbeck.core.folder import RunFolder
from limbeck.core.processes import first
from limbeck.core.setting import as_plain
from limbeck.costs import Costs, measure_costs
from limbeck.data import Source, Splits
from limbeck.evaluation.study import document
from limbeck.evidence import arm, footprints, incidents, save_student
from limbeck.examining import Subject
from limbeck.findings import findings
from limbeck.member import check
from limbeck.models import kept_model, kept_setting
from limbeck.pictures import looked_at, worst_disagreements
from limbeck.recipes.arms import budgets, helps, model_of, order, teacher_of
from limbeck.recipes.base import Arm, Recipe
from limbeck.recipes.build import built, loaded_teacher, shape_of
from limbeck.recipes.members import Members, job_of, members, teacher_job
from limbeck.replaying import check_views
from limbeck.teachers import ModuleTeacher

__all__ = ["Outcome", "check_recipe", "conclude", "run_recipe"]

Say = Callable[[str], None]


@dataclass
class Outcome:
    """What a recipe's run leaves: the documents of `scores.json` and `evidence.json`, its folder, and the page."""

    document: dict[str, Any]
    evidence: dict[str, Any]
    folder: RunFolder
    page: Path | None


def run_recipe(recipe: Recipe, out: str | Path | None, *, say: Say = lambda _: None, show: bool = True) -> Outcome:
    """Train the teacher (or load it) and every arm over the seeds; write scores, evidence, student and page.

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
    check_recipe(recipe, taught, splits, out)
    with RunFolder(Path(out) if out is not None else None, as_plain(recipe), device=recipe.training.device) as folder:
        made = members(recipe, taught, splits, folder, say=say if first() else lambda _: None, show=show)
        return conclude(recipe, splits, folder, made, seconds=time.perf_counter() - started)


def check_recipe(recipe: Recipe, taught: Splits, splits: Splits, out: object) -> None:
    """Build and try everything once, before any work, so that what can't be built is told now.

    Raises:
        LimbeckError: the input is at fault.
    """
    order(recipe)
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
        check(teacher_job(recipe, model, taught, splits, seed=recipe.seed, show=False))
    ended = {"teacher": teacher.model}  # as they are before they are trained
    for name in order(recipe):
        master, auto = teacher_of(recipe, name, teacher, teacher, ended), recipe.arms[name].auto
        job = job_of(recipe, name, splits, master, ended=ended, seed=recipe.seed, show=False)
        check(job) if auto is None else check_auto(auto, job)
        ended[name] = kept_model(job.student)


def conclude(recipe: Recipe, splits: Splits, folder: RunFolder, made: Members, *, seconds: float) -> Outcome:
    """Put everything beside each other, and write what a finished run holds."""
    shown = _shown(recipe)
    # Arms share a footprint where they share the recipe's student.
    kinds = {name: name if each.student is not None else "student" for name, each in recipe.arms.items()}
    pair = {"teacher": Subject(made.kept["teacher"]), **{k: Subject(made.kept[name]) for name, k in kinds.items()}}
    measured = footprints(pair, splits.train)
    words = _said(recipe.teacher.model)
    arms = {"teacher": arm("teacher", "Teacher", words, runs=made.runs["teacher"], footprint=measured.get("teacher"))}
    for name, each in recipe.arms.items():
        arms[name] = arm(
            _role(recipe, name),
            each.label,
            _said(model_of(recipe, name)) + _staged(each),
            objective=each.terms,
            runs=made.runs[name],
            footprint=measured.get(kinds[name]),
        )
    costs = _costs(recipe, splits, folder, made) if first() else Costs()
    remembered = () if recipe.targets is None else (_remembered_note(recipe, splits.train),)
    said = document(
        title=recipe.title,
        story=recipe.story,
        split="test",
        arms=arms,
        classes=splits.train.class_names,
        baseline=recipe.baseline,
        notes=(*remembered, *budgets(recipe), *_missing(recipe), *made.notes, *costs.notes, *incidents(folder.lines)),
    )
    evidence = _evidence(recipe, splits, made, shown, costs=costs.arms) if first() else {}
    page = None
    if folder.path is not None and first():
        base = {
            "model": as_plain(kept_setting(model_of(recipe, shown))),
            "shape": list(shape_of(splits.train)),
            "classes": splits.train.classes,
        }
        save_student(folder.path / "student", made.kept[shown], said, {**base, "arm": shown, "seed": recipe.seed})
        folder.finish(said, seconds, evidence=evidence)
        page = report.render(folder.path)
    return Outcome(said, evidence, folder, page)


def _shown(recipe: Recipe) -> str:
    """The arm whose student is kept: the first beside the baseline that no other arm needs."""
    beside = [name for name in recipe.arms if name != recipe.baseline]
    return next((name for name in beside if not helps(recipe, name)), next(iter(beside or recipe.arms)))


def _role(recipe: Recipe, name: str) -> str:
    if name == recipe.baseline:
        return "plain"
    arm = recipe.arms[name]
    if arm.student is not None and helps(recipe, name):
        return "teacher"
    return "distilled" if arm.taught else "student"


def _staged(each: Arm) -> str:
    said = ", ".join(f"{stage.name} for {stage.epochs} epochs" for stage in each.stages)
    return f", in stages: {said}" if said else ""


def _costs(recipe: Recipe, splits: Splits, folder: RunFolder, made: Members) -> Costs:
    """What the first seed's models cost, where it is asked for. All trainings have ended: nothing else of ours runs."""
    how = recipe.evidence
    if how is None or "costs" not in how.measures:
        return Costs()
    subjects = {name: _subject(recipe, splits, made, name) for name in ("teacher", *recipe.arms) if name in made.kept}
    return measure_costs(subjects, how.timing, splits.test, home=folder.checkpoints())


def _subject(recipe: Recipe, splits: Splits, made: Members, name: str) -> Subject:
    """A model of the first seed; a loaded teacher may need an input of its own."""
    own = recipe.teacher.normalize if name == "teacher" and recipe.teacher.weights is not None else None
    return Subject(made.kept[name], normalize=own.after(splits.test.normalize) if own is not None else None)


def _evidence(recipe: Recipe, splits: Splits, made: Members, shown: str, *, costs: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `evidence.json`: every member's, and what is made once, of the first seed's models."""
    how = recipe.evidence.here() if recipe.evidence is not None else None
    further: dict[str, Any] = {"trials": made.trials}
    if how is not None:
        teacher, student = (_subject(recipe, splits, made, name) for name in ("teacher", shown))
        further["samples"] = min(how.samples, len(splits.test))
        further["disagreements"] = worst_disagreements(shown, student, teacher, splits.test)
        if "attribution" in how.measures:
            names = [name for name in (recipe.baseline, shown) if name in made.kept]
            models = {"teacher": teacher, **{name: Subject(made.kept[name]) for name in dict.fromkeys(names)}}
            further["gallery"] = looked_at(models, splits.test)
    return findings(made.found, rates=made.rates, chance=made.chance, baseline=recipe.baseline, costs=costs, **further)


def _missing(recipe: Recipe) -> tuple[str, ...]:
    if recipe.evidence is None or recipe.evidence.here() == recipe.evidence:
        return ()
    return ('What models look at was not measured, because captum is not installed: pip install "limbeck[explain]".',)


def _remembered_note(recipe: Recipe, train: Source) -> str:
    assert recipe.targets is not None
    views = recipe.targets.views
    return (
        f"The teacher's answers to {views} views of {len(train):,} samples were remembered on disk, and distilled "
        f"students saw these views in turn; the others saw new ones in every epoch."
    )


def _said(model: Any) -> str:
    plain = as_plain(model)
    return f"{plain.pop('kind')} " + ", ".join(f"{k} {v}" for k, v in plain.items())
