"""`lb.study`: the same training over several seeds, and how steady what comes out is."""

from __future__ import annotations

import inspect
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from limbeck import report
from limbeck.core.check import whole
from limbeck.core.errors import ConfigError, problem
from limbeck.core.folder import RunFolder
from limbeck.core.records import write_lines
from limbeck.costs import Costs, measure_costs
from limbeck.evaluation.study import document
from limbeck.examining import Subject
from limbeck.findings import findings
from limbeck.recipes import Recipe, find
from limbeck.recipes.members import Say
from limbeck.recipes.study import RATES, study_recipe
from limbeck.workflow import Run

__all__ = ["Study", "study"]

Runs = Mapping[str, Run]
Make = Callable[..., Recipe | Runs]
"""Makes a recipe, or trains: a function of the seed that gives back runs by the name of their arm."""

_ANSWER = "what it is given must be a recipe, its name, or a function that gives a recipe or runs by name"


@dataclass
class Study:
    """What `study` gives back."""

    document: Mapping[str, Any]
    """Scores by arm and seed, spread, paired differences, as in `scores.json`."""
    evidence: Mapping[str, Any]
    """Churn, jitter, rates at which training broke, robustness and the rest, as in `evidence.json`."""
    path: Path | None
    """The folder, where one was named."""
    lines: list[dict[str, Any]]

    @property
    def summary(self) -> Mapping[str, Mapping[str, Any]]:
        """By arm and score: mean, standard deviation over seeds, and how many."""
        found: Mapping[str, Mapping[str, Any]] = self.document["summary"]
        return found

    def report(self, out: str | Path | None = None) -> Path:
        """Write the page and return its path. A study without a folder needs `out`, a folder to write into.

        Raises:
            ConfigError: there is no folder.
        """
        if out is None and self.path is not None:
            return report.render(self.path)
        if out is None:
            mend = 'name one: study.report("runs/steady"), or pass out= to study'
            raise ConfigError(problem("report", "this study has no folder", mend))
        with RunFolder(Path(out), {"study": self.document["title"]}) as folder:
            write_lines(Path(out) / "metrics.jsonl", self.lines)
            folder.finish(self.document, 0.0, evidence=self.evidence)
            return report.render(Path(out))


def study(
    make: Make | Recipe | str,
    *,
    seeds: int = 5,
    rates: tuple[float, ...] | None = None,
    jobs: int = 1,
    out: str | Path | None = None,
    baseline: str = "plain",
    say: Say = lambda _: None,
    progress: bool = True,
) -> Study:
    """Train plain and distilled students over seeds under one budget, and say how steady each is.

    Spread and worst seed, churn, jitter of loss and gradient, how often training breaks down at other learning rates,
    sensitivity to noise on inputs and weights, each with an interval of the paired difference and an exact test.

    Args:
        make: a recipe, its name, or a function that makes one; or a function of the seed that trains with `distill`
            and gives back the runs by name, such as `{"plain": …, "distilled": …}`.
        seeds: how many.
        rates: factors on the learning rate that are tried as well; a recipe's own, or a grid around it, when None.
            Runs that a function trains itself have the rates it gives them.
        jobs: seeds that are trained at a time, in processes of their own; for recipes.
        out: the folder; the same call goes on where it stopped.
        baseline: the arm that others are compared to, where a function trains.
        say: hears a line when a member is done.
        progress: show a bar where stderr is a terminal.

    Raises:
        LimbeckError: the input is at fault.
    """
    whole("seeds", seeds)
    recipe, trains = _recipe(make)
    if recipe is None:
        return _of_runs(trains, seeds, baseline=baseline, out=out, say=say)
    recipe = replace(recipe, seeds=seeds, rates=rates if rates is not None else recipe.rates or RATES)
    if out is not None:
        done = study_recipe(recipe, Path(out), jobs=jobs, say=say, bars=progress)
        return Study(done.document, done.evidence, Path(out), done.folder.lines)
    with tempfile.TemporaryDirectory() as folder:
        done = study_recipe(recipe, Path(folder) / "study", jobs=jobs, say=say, bars=progress)
    return Study(done.document, done.evidence, None, done.folder.lines)


def _recipe(make: Make | Recipe | str) -> tuple[Recipe | None, Callable[[int], Runs]]:
    """The recipe, or None and the function that trains."""
    if isinstance(make, Recipe):
        return make, _none
    if isinstance(make, str):
        return find(make), _none
    if not callable(make):
        raise ConfigError(problem("study", f"a {type(make).__name__} is nothing to repeat", _ANSWER))
    if not inspect.signature(make).parameters:
        found = make()
        if not isinstance(found, Recipe):
            mend = "let it take the seed: def make(seed): ..."
            raise ConfigError(problem("study", f"the function gave a {type(found).__name__} and takes no seed", mend))
        return found, _none
    return None, make  # type: ignore[return-value]  # what it gives is looked at when it is called


def _none(_: int) -> Runs:
    return {}


def _of_runs(trains: Callable[[int], Runs], seeds: int, *, baseline: str, out: str | Path | None, say: Say) -> Study:
    """A study of what a function trains, seed by seed."""
    started = time.perf_counter()
    arms: dict[str, dict[str, Any]] = {}
    found: dict[str, list[dict[str, Any]]] = {}
    lines: list[dict[str, Any]] = []
    first: Run | None = None
    subjects: dict[str, Subject] = {}
    for seed in range(seeds):
        runs = trains(seed)
        if not isinstance(runs, Mapping) or not all(isinstance(run, Run) for run in runs.values()) or not runs:
            raise ConfigError(problem(f"study, seed {seed}", f"the function gave a {type(runs).__name__}", _ANSWER))
        first = first or next(iter(runs.values()))
        if not seed:
            subjects = {
                own if own == "teacher" else name: each
                for name, run in runs.items()
                for own, each in run.subjects.items()
            }
        for name, run in runs.items():
            _take(name, run, seed, arms, found, baseline=baseline)
            lines += [{**line, "arm": name, "seed": seed} for line in run.folder.lines]
            record = arms[name]["runs"][-1]
            say(f"{name:>12}  seed {seed}  " + ", ".join(f"{k} {v:.4f}" for k, v in _headline(record["scores"])))
    assert first is not None
    plain = baseline if baseline in arms else None
    costs = Costs()
    if first.timing is not None and first.source is not None:
        home = Path(out) / "checkpoints" if out is not None else None
        costs = measure_costs(subjects, first.timing, first.source, home=home)
    said = document(
        title=Path(out).name if out is not None else "study",
        story=f"{', '.join(arms)}, each trained at {seeds} seed{'s' if seeds > 1 else ''}.",
        split=first.document["split"],
        arms=arms,
        classes=first.document["classes"],
        baseline=plain,
        notes=costs.notes,
    )
    evidence = findings(found, baseline=plain, costs=costs.arms)
    made = Study(said, evidence, None, lines)
    if out is not None:
        with RunFolder(Path(out), {"study": said["title"], "seeds": seeds}) as folder:
            write_lines(Path(out) / "metrics.jsonl", lines)
            folder.finish(said, time.perf_counter() - started, evidence=evidence)
            report.render(Path(out))
        made.path = Path(out)
    return made


def _take(
    name: str, run: Run, seed: int, arms: dict[str, dict[str, Any]], found: dict[str, list[dict[str, Any]]],
    *, baseline: str,
) -> None:  # fmt: skip
    """Put one run under its arm, and its teacher under `teacher`."""
    for own, entry in run.document["arms"].items():
        key = "teacher" if own == "teacher" else name
        if key == "teacher" and any(each["seed"] == seed for each in arms.get(key, {"runs": []})["runs"]):
            continue
        role = entry["role"] if key == "teacher" else "plain" if name == baseline else "distilled"
        label = entry["label"] if key == "teacher" else name.replace("_", " ").capitalize()
        arm = arms.setdefault(key, {**entry, "role": role, "label": label, "runs": []})
        arm["runs"].append({**entry["runs"][0], "seed": seed})
        examined = run.examined.get(own)
        if examined is not None:
            found.setdefault(key, []).append({**examined, "seed": seed})


def _headline(scores: Mapping[str, Any]) -> list[tuple[str, float]]:
    return [(name, value) for name, value in scores.items() if isinstance(value, float)][:1]
