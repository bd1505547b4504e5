"""A run folder as plain records, and the questions that the page and the summary ask of them.

Everything is optional but what is there must be readable: a missing piece is empty, a damaged file is an error.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from limbeck.core.errors import CheckpointError, problem
from limbeck.core.records import read_json, read_lines
from limbeck.report.glossary import METRICS, Metric, metric

__all__ = [
    "Arm",
    "Run",
    "Spread",
    "arms",
    "baseline",
    "comparison",
    "comparisons",
    "finite",
    "found_at",
    "is_search",
    "mapping",
    "measured",
    "metrics_of",
    "primary",
    "read",
    "sequence",
    "spread",
    "subjects",
    "teacher",
    "text",
    "whole",
]  # fmt: skip

FORMAT = 1


class Run(NamedTuple):
    """The files of a run folder; what is absent is empty."""

    scores: Mapping[str, Any]
    metrics: list[Mapping[str, Any]]
    environment: Mapping[str, Any]
    recipe: str
    evidence: Mapping[str, Any] = {}


class Arm(NamedTuple):
    """One model of a run: the teacher, the student trained alone, a distilled student."""

    name: str
    role: str
    label: str
    describe: str
    objective: list[str]
    runs: list[Mapping[str, Any]]
    footprint: Mapping[str, Any]


class Spread(NamedTuple):
    """Mean and sample standard deviation (None for one run) over `n` runs."""

    mean: float
    sd: float | None
    n: int


def read(folder: Path) -> Run:
    """The files of a run folder.

    Raises:
        CheckpointError: there is no such folder, a file is damaged, or a newer limbeck wrote it.
    """
    if not folder.is_dir():
        raise CheckpointError(problem(str(folder), "there is no such folder", "give the folder of a run"))
    scores = _object(folder / "scores.json")
    written = finite(scores.get("format"))
    if written is not None and written > FORMAT:
        raise CheckpointError(
            problem(
                str(folder / "scores.json"),
                f"has format {written:g}, and this limbeck reads up to {FORMAT}",
                "update limbeck",
            )
        )
    evidence = _object(folder / "evidence.json")
    environment = _object(folder / "environment.json")
    return Run(scores, _lines(folder / "metrics.jsonl"), environment, _recipe(folder), evidence)


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def sequence(value: Any) -> list[Any]:
    """The value if it is a list or tuple, else an empty list."""
    return list(value) if isinstance(value, list | tuple) else []


def finite(value: Any) -> float | None:
    """The value as a float if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer that no float holds
        return None


def text(value: Any) -> str:
    """The value as text; None is empty."""
    return "" if value is None else str(value)


def is_search(scores: Mapping[str, Any]) -> bool:
    """Whether the run looked for a smaller model, so that its teacher is the original and nothing trained alone."""
    return scores.get("kind") == "squeeze"


def whole(scores: Mapping[str, Any]) -> str:
    """What costs and quality are shares of, in a word."""
    return "original" if is_search(scores) else "teacher"


def found_at(value: Any, *path: str) -> Any:
    """What lies below a path of keys; None where a key is missing."""
    for key in path:
        value = mapping(value).get(key)
    return value


def measured(evidence: Mapping[str, Any], arm: str) -> list[Mapping[str, Any]]:
    """What was measured of each seed of an arm beside its scores."""
    return [mapping(entry) for entry in sequence(found_at(evidence, "arms", arm))]


def arms(scores: Mapping[str, Any]) -> list[Arm]:
    """The arms of a run, in the order in which they were written."""
    return [_arm(str(name), found) for name, found in mapping(scores.get("arms")).items() if isinstance(found, Mapping)]


def teacher(scores: Mapping[str, Any]) -> Arm | None:
    """The arm that is the teacher, if there is one."""
    return next((arm for arm in arms(scores) if arm.role == "teacher"), None)


def baseline(scores: Mapping[str, Any]) -> Arm | None:
    """The student trained alone: the arm that the scores name, else the first whose role is `plain`."""
    named = scores.get("baseline")
    students = [arm for arm in arms(scores) if arm.role != "teacher"]
    return next(
        (arm for arm in students if arm.name == named), next((arm for arm in students if arm.role == "plain"), None)
    )


def subjects(scores: Mapping[str, Any]) -> list[Arm]:
    """The students that the page is about, best validation score first.

    The order never looks at test scores: a headline chosen by them would be optimistic. Without any student beside
    the baseline, the baseline is the subject.
    """
    plain = baseline(scores)
    found = [arm for arm in arms(scores) if arm.role != "teacher" and (plain is None or arm.name != plain.name)]
    chosen = primary(scores)
    if chosen is not None:
        sign = -1 if chosen.better == "lower" else 1
        values = {arm.name: _mean(_values(arm, chosen.key, "validation")) for arm in found}
        found.sort(key=lambda arm: -sign * v if (v := values[arm.name]) is not None else math.inf)
    return found or ([plain] if plain else [])


def spread(scores: Mapping[str, Any], arm: Arm, key: str) -> Spread | None:
    """A metric of an arm over its runs: as summarised in the scores, else computed from the runs."""
    said = mapping(mapping(mapping(scores.get("summary")).get(arm.name)).get(key))
    mean, sd, n = (finite(said.get(name)) for name in ("mean", "sd", "n"))
    if mean is not None:
        alone = n is not None and n < 2
        return Spread(mean, None if alone else sd, int(n) if n is not None else len(arm.runs))
    values = _values(arm, key, "scores")
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def metrics_of(scores: Mapping[str, Any]) -> list[Metric]:
    """The metrics that any arm has: the described ones in their order, then the others as they come."""
    summary = mapping(scores.get("summary"))
    keys: dict[str, None] = {}
    for arm in arms(scores):
        keys |= dict.fromkeys(map(str, mapping(summary.get(arm.name))))
        for run in arm.runs:
            keys |= dict.fromkeys(map(str, mapping(run.get("scores"))))
    ordered = [key for key in METRICS if key in keys] + [key for key in keys if key not in METRICS]
    shown = (key for key in ordered if key != "samples")
    return [metric(key) for key in shown if any(spread(scores, arm, key) for arm in arms(scores))]


def primary(scores: Mapping[str, Any]) -> Metric | None:
    """The metric that the verdict is about: accuracy where there is one, else the first."""
    return next(iter(metrics_of(scores)), None)


def comparisons(scores: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The paired differences that name an arm, a metric and a mean."""
    known = {arm.name for arm in arms(scores)}
    return [
        row
        for row in map(mapping, sequence(scores.get("comparisons")))
        if text(row.get("arm")) in known and row.get("metric") and finite(row.get("mean")) is not None
    ]


def comparison(scores: Mapping[str, Any], arm: Arm, key: str) -> Mapping[str, Any] | None:
    """The paired difference between an arm and the baseline in one metric."""
    plain = baseline(scores)
    return next(
        (
            row
            for row in comparisons(scores)
            if text(row["arm"]) == arm.name
            and row["metric"] == key
            and plain
            and row.get("baseline") in (plain.name, None)
        ),
        None,
    )


def _arm(name: str, found: Mapping[str, Any]) -> Arm:
    return Arm(
        name=name,
        role=text(found.get("role")) or ("teacher" if name == "teacher" else "student"),
        label=text(found.get("label")) or name,
        describe=text(found.get("describe")),
        objective=[text(said) for said in sequence(found.get("objective"))],
        runs=[run for run in sequence(found.get("runs")) if isinstance(run, Mapping)],
        footprint=mapping(found.get("footprint")),
    )


def _values(arm: Arm, key: str, part: str) -> list[float]:
    found = (finite(mapping(run.get(part)).get(key)) for run in arm.runs)
    return [value for value in found if value is not None]


def _mean(values: list[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _object(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    value = read_json(path)
    if not isinstance(value, Mapping):
        raise CheckpointError(
            problem(str(path), "is damaged: it holds no JSON object", "restore it, or delete it and run again")
        )
    return value


def _lines(path: Path) -> list[Mapping[str, Any]]:
    try:
        return [line for line in read_lines(path) if isinstance(line, Mapping)]
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            problem(str(path), f"cannot be read ({error})", "restore it, or delete it to do without the curves")
        ) from None


def _recipe(folder: Path) -> str:
    path = folder / "recipe.yaml"
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    except OSError as error:
        raise CheckpointError(problem(str(path), f"cannot be read ({error.strerror})", "check the path")) from None
