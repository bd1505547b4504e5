"""Several run folders as the records of one: arms named by their run, the same teacher once. Never imports torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from limbeck.core.errors import CheckpointError, ConfigError, DataError, nearest, problem
from limbeck.core.records import read_object
from limbeck.report.reading import FORMAT, finite, is_search, mapping, read, sequence, text
from limbeck.report.reading import baseline as own_baseline

__all__ = ["Held", "Joined", "held", "join", "names"]

_TOLD = 6
_MACHINE = ("processor", "cores", "threads", "device")
_OF_ONE = ("started", "seconds", "command")
_CHAIN = ("attempts", "limits", "best", "costs_of_best", "calls")
_NOTHING = object()


class Held(NamedTuple):
    """The records of one run, and what it is called beside the others."""

    name: str
    scores: Mapping[str, Any]
    evidence: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]
    recipe: Mapping[str, Any]
    environment: Mapping[str, Any]


class Joined(NamedTuple):
    """The records of several runs as those of one. `baseline` is the arm that the others are compared with."""

    scores: dict[str, Any]
    baseline: str | None
    evidence: dict[str, Any]
    lines: list[dict[str, Any]]
    recipe: dict[str, Any]
    environment: dict[str, Any]


class _Place(NamedTuple):
    """Where an arm of a run went: its name there, and the seeds that came from this run (None: all)."""

    name: str
    seeds: frozenset[Any] | None

    def takes(self, seed: Any) -> bool:
        """Whether what this run has of that seed is new there."""
        return self.seeds is None or seed in self.seeds


def names(folders: Sequence[Path]) -> list[str]:
    """What each folder is called: its own name, with as many parents before it as tell it from the others.

    Raises:
        ConfigError: there are fewer than two, or one is given twice.
    """
    if len(folders) < 2:
        wrong = "one run alone" if folders else "no run"
        raise ConfigError(problem("compare", f"{wrong} is given", "name two run folders or more"))
    parts = [folder.resolve().parts for folder in folders]
    for i, folder in enumerate(folders):
        if parts[i] in parts[:i]:
            raise ConfigError(problem(str(folder), "this run is given twice", "name each run once"))
    taken = [1] * len(parts)
    while True:
        shown = ["/".join(part[-n:]) for part, n in zip(parts, taken, strict=True)]
        doubled = [i for i, name in enumerate(shown) if shown.count(name) > 1]
        if not doubled:
            return shown
        for i in doubled:
            taken[i] += 1


def held(folder: Path, name: str) -> Held:
    """The records of a finished run.

    Raises:
        CheckpointError: there is no such folder, its run has not ended, or a file is damaged or of a newer limbeck.
    """
    found = read(folder)
    if not (folder / "scores.json").exists():
        if not (folder / "recipe.yaml").exists():
            raise CheckpointError(problem(str(folder), "holds no run", "give the folder of a finished run"))
        mend = "give the same command on it again, which goes on where it stopped, or leave it out"
        raise CheckpointError(problem(str(folder), "this run has not ended: there is no scores.json", mend))
    _sound(folder / "scores.json", found.scores)
    path = folder / "evidence.json"
    evidence = read_object(path) if path.exists() else {}
    written = finite(evidence.get("format"))
    if written is not None and written > FORMAT:
        wrong = f"has format {written:g}, and this limbeck reads up to {FORMAT}"
        raise CheckpointError(problem(str(path), wrong, "update limbeck"))
    try:
        recipe = yaml.safe_load(found.recipe) or {}
    except yaml.YAMLError as error:
        wrong = f"is damaged ({' '.join(str(error).split())})"
        raise CheckpointError(problem(str(folder / "recipe.yaml"), wrong, "restore it, or delete it")) from None
    return Held(name, found.scores, evidence, found.metrics, mapping(recipe), found.environment)


def join(runs: Sequence[Held], *, baseline: str | None = None) -> Joined:
    """One run's records made of several: arms are named `run/arm`, a teacher that several share is there once.

    Args:
        runs: two or more, each with a name of its own.
        baseline: the arm the others are compared with, as `run/arm`; by default the student trained alone of the
            first run that has one.

    Raises:
        ConfigError: no student is called as `baseline` says.
        DataError: the runs were scored on different test data.
    """
    _same_test(runs)
    arms, places = _arms(runs)
    chosen = _baseline(runs, arms, places, baseline)
    samples = {run.name: run.evidence["samples"] for run in runs if run.evidence.get("samples") is not None}
    scores = {
        "title": " · ".join(run.name for run in runs),
        "story": "\n".join(f"{run.name}: {text(run.scores.get('story'))}".rstrip(": ") for run in runs),
        "split": text(runs[0].scores.get("split")) or "test",
        "samples": runs[0].scores.get("samples"),
        "classes": next((found for run in runs if (found := run.scores.get("classes"))), None),
        "complete": all(run.scores.get("complete") is not False for run in runs),
        "arms": arms,
        "notes": [
            *_differences(runs),
            *_doubts(arms, chosen),
            *([f"Robustness and the like were measured on {_each(samples)} samples."] if _vary(samples) else []),
            *_machines(runs),
            *(f"{run.name}: {text(note)}" for run in runs for note in sequence(run.scores.get("notes"))),
        ],
    }
    if all(is_search(run.scores) for run in runs):
        said = [f"{run.name}: {text(one)}" for run in runs for one in sequence(run.scores.get("said"))]
        scores |= {"kind": runs[0].scores["kind"], "said": said}
    recipe = {"compare": {run.name: dict(run.recipe) for run in runs}}
    evidence = _evidence(runs, places, samples)
    return Joined(scores, chosen, evidence, list(_lines(runs, places)), recipe, _environment(runs))


def _sound(path: Path, scores: Mapping[str, Any]) -> None:
    """Refuse scores whose arms cannot be read: whoever compares must not leave one out in silence."""

    def is_number(value: Any) -> bool:
        return value is None or (isinstance(value, int | float) and not isinstance(value, bool))

    def is_sound(arm: Any) -> bool:
        runs = arm.get("runs") if isinstance(arm, Mapping) else None
        if not isinstance(runs, list) or not all(
            isinstance(run, Mapping) and isinstance(run.get("seed"), int) and isinstance(run.get("scores"), Mapping)
            for run in runs
        ):
            return False
        keys = {key for run in runs for key in run["scores"]}
        values = {key: [run["scores"].get(key) for run in runs] for key in keys}
        return all(all(map(is_number, each)) or all(isinstance(v, list) for v in each) for each in values.values())

    found = mapping(scores.get("arms"))
    wrong = next((f"the arm {name!r} cannot be read" for name, arm in found.items() if not is_sound(arm)), "")
    if wrong or not found:
        mend = "restore it, or make the run again"
        raise CheckpointError(problem(str(path), f"is damaged: {wrong or 'it has no arms'}", mend))


def _same_test(runs: Sequence[Held]) -> None:
    """Refuse runs that are known to be scored on different samples."""
    first, *others = runs
    for other in others:
        pairs = [(key, first.scores.get(key), other.scores.get(key)) for key in ("split", "samples", "classes")]
        ours, theirs = (mapping(run.recipe.get("data")).get("test") for run in (first, other))
        if isinstance(ours, str) and isinstance(
            theirs, str
        ):  # a fingerprint; in other recipes `data` says how it is made
            pairs.append(("data.test", ours, theirs))
        for key, ours, theirs in pairs:
            if None not in (ours, theirs) and ours != theirs:
                where = f"compare: `{key}` is {_short(ours)} in {first.name} and {_short(theirs)} in {other.name}"
                wrong = "scores on different test data say nothing about each other"
                raise DataError(problem(where, wrong, "compare runs that were scored on the same samples"))


def _arms(runs: Sequence[Held]) -> tuple[dict[str, dict[str, Any]], list[dict[str, _Place]]]:
    """All arms under their new names, and where each arm of each run went."""
    arms: dict[str, dict[str, Any]] = {}
    places: list[dict[str, _Place]] = []
    for run in runs:
        places.append({})
        for name, arm in run.scores["arms"].items():
            same = next((known for known, other in arms.items() if _same_teacher(arm, other)), None)
            if same is None:
                named = f"{run.name}/{name}"
                label = f"{text(arm.get('label')) or name} ({run.name})"
                role = text(arm.get("role")) or ("teacher" if name == "teacher" else "student")
                arms[named] = {**arm, "role": role, "label": label, "runs": list(arm["runs"])}
                places[-1][name] = _Place(named, None)
            else:
                known_seeds = {one["seed"] for one in arms[same]["runs"]}
                new = [one for one in arm["runs"] if one["seed"] not in known_seeds]
                arms[same]["runs"] += new
                arms[same]["footprint"] = arms[same].get("footprint") or arm.get("footprint")
                places[-1][name] = _Place(same, frozenset(one["seed"] for one in new))
    teachers = [name for name, arm in arms.items() if arm["role"] == "teacher"]
    if len(teachers) == 1:
        run, own = next(
            (run, own) for run, at in zip(runs, places, strict=True) for own in at if at[own].name in teachers
        )
        arms[teachers[0]]["label"] = text(run.scores["arms"][own].get("label")) or "Teacher"
    return arms, places


def _same_teacher(arm: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two arms are one teacher: described alike, with equal scores for the seeds both have (else, for any)."""
    if not (arm.get("role") == other.get("role") == "teacher" and arm.get("describe") == other.get("describe")):
        return False
    ours, theirs = ({one["seed"]: one["scores"] for one in each["runs"]} for each in (arm, other))
    shared = [seed for seed in ours if seed in theirs]
    if shared:
        return all(ours[seed] == theirs[seed] for seed in shared)
    every = [*ours.values(), *theirs.values()]
    return bool(ours and theirs) and all(scores == every[0] for scores in every)


def _baseline(
    runs: Sequence[Held],
    arms: Mapping[str, Mapping[str, Any]],
    places: Sequence[Mapping[str, _Place]],
    given: str | None,
) -> str | None:
    students = [name for name, arm in arms.items() if arm["role"] != "teacher"]
    if given is None:
        found = [(at, own_baseline(run.scores)) for run, at in zip(runs, places, strict=True)]
        return next((at[arm.name].name for at, arm in found if arm is not None and arm.role == "plain"), None)
    if given not in students:
        wrong = f"{given!r} is a teacher" if given in arms else f"there is no student {given!r}"
        raise ConfigError(problem("baseline", wrong, nearest(given, students)))
    return given


def _differences(runs: Sequence[Held]) -> Iterator[str]:
    """What the recipes of the others have otherwise than the first, data before all else."""
    first, *others = runs
    for other in others:
        if not first.recipe or not other.recipe:
            continue
        found = [row for row in _unlike(first.recipe, other.recipe) if row[0] not in ("title", "story")]
        for data in (True, False):
            rows = [row for row in found if (row[0].partition(".")[0] == "data") == data]
            said = [f"{path} is {_short(b)} and not {_short(a)}" for path, a, b in rows[:_TOLD]]
            if len(rows) > _TOLD:
                said.append(f"and {len(rows) - _TOLD} more settings differ, which the recipe shows")
            if said:
                opening = (
                    f"{other.name} has other data than {first.name}" if data else f"{other.name} beside {first.name}"
                )
                closing = "; where the test samples are not the same, their scores cannot be compared" if data else ""
                yield f"{opening}: {'; '.join(said)}{closing}."


def _unlike(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted path and both values of everything in which two pieces of plain data differ."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in dict.fromkeys([*a, *b]):
            yield from _unlike(a.get(key, _NOTHING), b.get(key, _NOTHING), f"{path}.{key}" if path else str(key))
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from _unlike(x, y, f"{path}.{i}")
    elif a != b:
        yield path, a, b


def _short(value: Any) -> str:
    if value is _NOTHING:
        return "absent"
    said = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return said if len(said) <= 40 else f"{said[:39]}…"


def _doubts(arms: Mapping[str, Mapping[str, Any]], baseline: str | None) -> Iterator[str]:
    """What stands between a difference and its reading."""
    teachers = [name for name, arm in arms.items() if arm["role"] == "teacher"]
    if len(teachers) > 1:
        yield (
            f"The runs have different teachers. Sizes are shares of {arms[teachers[0]]['label']}; agreement is with "
            f"the teacher that each student had."
        )
    if baseline is None:
        return
    base = arms[baseline]
    students = {name: arm for name, arm in arms.items() if arm["role"] != "teacher" and name != baseline}
    others = [arm["label"] for arm in students.values() if arm.get("describe") != base.get("describe")]
    if others:
        yield (
            f"Of another network than {base['label']} ({base.get('describe')}), so that a difference is not that of "
            f"training alone: {', '.join(others)}."
        )
    seeds = {one["seed"] for one in base["runs"]}
    apart = [arm["label"] for arm in students.values() if not seeds & {one["seed"] for one in arm["runs"]}]
    if apart:
        yield f"Without an interval, because no seed is shared with {base['label']}: {', '.join(apart)}."


def _vary(values: Mapping[str, Any]) -> bool:
    return any(value != next(iter(values.values())) for value in values.values())


def _each(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{_short(value)} ({name})" for name, value in values.items())


def _machines(runs: Sequence[Held]) -> Iterator[str]:
    """Whether times can be compared."""
    for key in _MACHINE:
        values = {run.name: run.environment[key] for run in runs if key in run.environment}
        if _vary(values):
            yield f"Times cannot be compared: the runs were made under another {key}: {_each(values)}."


def _environment(runs: Sequence[Held]) -> dict[str, Any]:
    """What all runs were made with, and where they differ, each."""
    found = {}
    for key in dict.fromkeys(key for run in runs for key in run.environment if key not in _OF_ONE):
        values = {run.name: run.environment.get(key) for run in runs}
        found[key] = _each(values) if _vary(values) else values[runs[0].name]
    return found


def _lines(runs: Sequence[Held], places: Sequence[Mapping[str, _Place]]) -> Iterator[dict[str, Any]]:
    for run, at in zip(runs, places, strict=True):
        for line in run.lines:
            place = at.get(text(line.get("arm"))) or _Place(f"{run.name}/{text(line.get('arm'))}", None)
            if place.takes(line.get("seed")):
                yield {**line, "arm": place.name}


def _evidence(
    runs: Sequence[Held], places: Sequence[Mapping[str, _Place]], samples: Mapping[str, Any]
) -> dict[str, Any]:
    """The evidence of all runs under the new names; empty when none has any."""
    found: dict[str, Any] = {"format": FORMAT, "arms": {}, "churn": {}, "rates": {}, "costs": {}, "comparisons": [],
                             "gallery": [], "disagreements": []}  # fmt: skip
    for run, at in zip(runs, places, strict=True):
        for name, entries in mapping(run.evidence.get("arms")).items():
            if name in at:
                kept = [
                    e
                    for e in sequence(entries)
                    if isinstance(mapping(e).get("seed"), int) and at[name].takes(e["seed"])
                ]
                found["arms"].setdefault(at[name].name, []).extend(kept)
        for part in ("churn", "rates", "costs"):
            for name, entry in mapping(run.evidence.get(part)).items():
                if name in at:
                    found[part].setdefault(at[name].name, entry)
        found["comparisons"] += _renamed(run.evidence.get("comparisons"), at, "arm", "baseline")
        found["disagreements"] += _renamed(run.evidence.get("disagreements"), at, "arm")
        for shown in map(mapping, sequence(run.evidence.get("gallery"))):
            _hang(found["gallery"], {**shown, "maps": _renamed(shown.get("maps"), at, "arm")})
    if len({place.name for at in places for own, place in at.items() if own == "teacher"}) == 1:
        chance = next((run.evidence["random"] for run in runs if run.evidence.get("random")), None)
        found |= {"random": chance} if chance else {}
    found |= {"samples": next(iter(samples.values()))} if samples and not _vary(samples) else {}
    found["chains"] = {run.name: {key: run.evidence[key] for key in _CHAIN if key in run.evidence}
                       for run in runs if run.evidence.get("attempts")}  # fmt: skip
    whole = {key: value for key, value in found.items() if value or key == "format"}
    return whole if len(whole) > 1 else {}


def _renamed(rows: Any, at: Mapping[str, _Place], *keys: str) -> list[dict[str, Any]]:
    """Rows that name arms, with the new names; a row about an arm that is not there is left out."""
    known = [row for row in map(mapping, sequence(rows)) if all(text(row.get(key)) in at for key in keys)]
    return [{**row, **{key: at[text(row[key])].name for key in keys}} for row in known]


def _hang(gallery: list[dict[str, Any]], shown: dict[str, Any]) -> None:
    """Add a sample to the gallery, or its maps where the sample hangs there already."""
    there = next((one for one in gallery if all(one.get(k) == shown.get(k) for k in ("id", "label", "image"))), None)
    if there is None:
        gallery.append(shown)
    else:
        known = {each["arm"] for each in there["maps"]}
        there["maps"] += [each for each in shown["maps"] if each["arm"] not in known]
