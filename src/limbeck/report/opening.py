"""What the page opens with: the verdict in plain words, point by point, and a few large numbers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from limbeck.report import numbers
from limbeck.report.glossary import MEASURES, Metric
from limbeck.report.looks import styles
from limbeck.report.reading import (
    Arm,
    Run,
    baseline,
    comparison,
    comparisons,
    finite,
    found_at,
    mapping,
    measured,
    primary,
    sequence,
    spread,
    subjects,
    teacher,
    text,
    whole,
)  # fmt: skip
from limbeck.report.searching import searches
from limbeck.report.sections.costs import COSTS, cost, relative
from limbeck.report.sections.seeds import worst
from limbeck.report.summary import called

__all__ = ["NOTE", "Tile", "Told", "headline", "points", "tiles"]


NOTE = (
    "“Instead of” is the same student trained alone, but for what was kept and for the cost, where it is the teacher. "
    "Sure: the interval over paired seeds does not hold zero."
)
"""How the points are to be read."""


class Told(NamedTuple):
    """One point of the verdict: what it is about in a word, the sentence, how it stands, and how sure it is."""

    about: str
    sentence: str
    tone: Literal["better", "worse", "same"]
    sure: str = ""


class Tile(NamedTuple):
    """One large number at the top of the page."""

    label: str
    value: str
    note: str
    style: str


class _Words(NamedTuple):
    """How a difference is told: what it is about, better, worse, and where the two numbers go."""

    about: str
    better: str
    worse: str
    levels: str
    show: Callable[[float], str] = numbers.percent


def _points(value: float) -> str:
    return f"{numbers.number(100 * value, 1)} points"


def _plain(value: float) -> str:
    return numbers.number(value, 2)


_WORDS = {
    "churn": _Words("Steadiness", "Steadier from seed to seed", "Less steady from seed to seed",
                    "{} of its answers change (churn) instead of {}"),
    "ece": _Words("Confidence", "Better calibrated", "Less calibrated",
                  "its confidence is {} off the truth instead of {}"),
    "gap": _Words("Overfitting", "Less learned by heart", "More learned by heart",
                  "{} lost from training to test samples instead of {}", _points),
    "corruption": _Words("Harder inputs", "Sturdier on corrupted inputs", "Weaker on corrupted inputs",
                         "{} right instead of {}"),
    "input_noise": _Words("Noisy inputs", "Sturdier on noisy inputs", "Weaker on noisy inputs",
                          "{} right instead of {}"),
    "weight_noise": _Words("Noisy weights", "Sturdier when its weights are disturbed",
                           "Weaker when its weights are disturbed", "{} right instead of {}"),
    "pgd": _Words("Attacks", "Harder to fool", "Easier to fool", "{} right under attack instead of {}"),
    "attribution": _Words("Reasons", "Looks more where its teacher looks", "Looks less where its teacher looks",
                          "rank correlation of {} (at most 1) instead of {}", _plain),
}  # fmt: skip
"""Jitter is left to its section: losses of different objectives wobble differently without any harm."""

_ALONE = "the same student trained alone"


def headline(scores: Mapping[str, Any]) -> str:
    """The verdict in one short sentence; empty where no student was scored."""
    column, found = primary(scores), subjects(scores)
    own = spread(scores, found[0], column.key) if column and found else None
    if column is None or own is None:
        return ""
    name, elder = called(found[0]), teacher(scores)
    above = spread(scores, elder, column.key) if elder else None
    said = f"{name} reaches {column.label} {column.show(own.mean)}"
    if column.unit == "fraction" and column.better == "higher" and above and above.mean > 0:
        said = f"{name} keeps {_kept(own.mean, above.mean)} of its teacher's {column.label.lower()}"
    row = comparison(scores, found[0], column.key)
    if row is None or not _sure(row):
        return f"{said}."
    [size] = column.differences(abs(finite(row["mean"]) or 0.0))
    unit = " points" if column.unit == "fraction" else ""
    match row.get("verdict"):
        case "better" | "worse" as given:
            return f"{said}, {size.lstrip('+')}{unit} {given} than {_ALONE}."
        case _:
            return f"{said}, with no clear difference from {_ALONE}."


def points(run: Run) -> list[Told]:
    """The verdict about the first student: what was kept, won and lost, what it costs, and how sure each is."""
    column, found = primary(run.scores), subjects(run.scores)
    if column is None or not found or spread(run.scores, found[0], column.key) is None:
        return []
    student = found[0]
    return [
        *_against_teacher(run.scores, student, column),
        *_against_plain(run.scores, student, column),
        *_worst(run.scores, student, column),
        *_beside(run, student),
        *_cheaper(run, student),
    ]


def tiles(run: Run) -> list[Tile]:
    """Quality of teacher, plain and first student, then the student's cost as a share of the teacher's."""
    scores = run.scores
    chosen, elder, found, coloured = primary(scores), teacher(scores), subjects(scores), styles(scores)
    shown: list[Tile] = []
    for arm in (elder, baseline(scores), found[0] if found else None):
        own = spread(scores, arm, chosen.key) if arm and chosen else None
        if arm and chosen and own is not None and not any(tile.style == coloured[arm.name] for tile in shown):
            note = f"± {chosen.show(own.sd)}, {own.n} seeds" if own.sd is not None else ""
            shown.append(Tile(f"{chosen.label}, {arm.label}", chosen.show(own.mean), note, coloured[arm.name]))
    if elder is None or not found:
        return shown
    # Bytes nearly always tell what parameters tell already, and memory is rarely known; both are in the table.
    for label, key, show in (entry for entry in COSTS if entry[1] not in ("bytes", "peak_memory")):
        share = relative(run, found[0], elder, key)
        pair = cost(run, found[0], key), cost(run, elder, key)
        if key == "latency" and (asked := _asked_for(run)) is not None:
            share, pair = numbers.ratio(*asked), asked
        if share != numbers.DASH:
            own_cost, all_of_it = map(show, pair)
            shown.append(Tile(f"{label} of the {whole(scores)}'s", share, f"{own_cost} of {all_of_it}", ""))
    return shown


def _asked_for(run: Run) -> tuple[float, float] | None:
    """Seconds a call of a search's result and of the original, as they were held against the budget."""
    made = searches(run)
    ends = [each.costs.get("latency") for each in (made[0].best, made[0].original)] if len(made) == 1 else [None, None]
    return None if ends[0] is None or not ends[1] else (ends[0], ends[1])


def _against_teacher(scores: Mapping[str, Any], student: Arm, column: Metric) -> Iterator[Told]:
    elder, own = teacher(scores), spread(scores, student, column.key)
    above = spread(scores, elder, column.key) if elder else None
    if own is None or above is None:
        return
    both = f"{column.show(own.mean)} instead of {column.show(above.mean)}"
    if column.unit == "fraction" and column.better == "higher" and above.mean > 0:
        kept = f"{_kept(own.mean, above.mean)} of the teacher's {column.label.lower()}"
        yield Told("Kept", f"{kept}: {both}.", "same")
    else:
        yield Told("Kept", f"{column.label} of {both} for the teacher.", "same")


def _against_plain(scores: Mapping[str, Any], student: Arm, column: Metric) -> Iterator[Told]:
    plain, row = baseline(scores), comparison(scores, student, column.key)
    if plain is None or plain.name == student.name:
        yield Told("Distilling", "No student was trained alone, so what distilling adds is not known.", "same")
        return
    own, alone = (spread(scores, arm, column.key) for arm in (student, plain))
    if own is None or alone is None:
        return
    both = f"{column.show(own.mean)} instead of {column.show(alone.mean)}"
    if row is None or not _sure(row):
        said = f"{column.label} {both} for {_ALONE}; without more seeds this cannot be told from chance."
        yield Told("Distilling", said, "same", "not sure")
        return
    mean, low, high = (finite(row[key]) or 0.0 for key in ("mean", "low", "high"))
    _, *bounds = column.differences(mean, low, high)
    [size] = column.differences(abs(mean))
    unit = " points" if column.unit == "fraction" else ""
    range_ = f"{bounds[0]} to {bounds[1]}{unit}"
    match row.get("verdict"):
        case "better" | "worse" as given:
            said = f"{size.lstrip('+')}{unit} {given} than {_ALONE}: {both}."
            yield Told("Distilling", said, given, f"sure: {range_}")
        case _:
            said = f"No clear difference from {_ALONE}: {both}."
            yield Told("Distilling", said, "same", f"not sure: {range_}")


def _worst(scores: Mapping[str, Any], student: Arm, column: Metric) -> Iterator[Told]:
    own, plain = worst(student, column), baseline(scores)
    alone = worst(plain, column) if plain and plain.name != student.name else None
    if own is None:
        return
    beside = f"; trained alone, {column.show(alone[1])} at its worst" if alone else ""
    yield Told("Worst seed", f"{column.label} of {column.show(own[1])} at seed {own[0]}{beside}.", "same")


def _beside(run: Run, student: Arm) -> Iterator[Told]:
    """What was compared besides: what is sure in a sentence each, better first, and the rest by name."""
    plain = baseline(run.scores)
    if plain is None:
        return
    open_, told = [], []
    rows = [(text(row["metric"]), row) for row in comparisons(run.scores)]
    rows += [(text(row.get("measure")), row) for row in map(mapping, sequence(run.evidence.get("comparisons")))]
    for key, row in rows:
        mine = text(row.get("arm")) == student.name and row.get("baseline") in (plain.name, None)
        if not mine or key not in _WORDS or not _sure(row):
            continue
        words, given = _WORDS[key], row.get("verdict")
        levels = [_level(run, key, arm) for arm in (student, plain)]
        both = (
            f": {words.levels.format(*(words.show(v) for v in levels if v is not None))}" if None not in levels else ""
        )
        if given in ("better", "worse"):
            said = f"{words.better if given == 'better' else words.worse}{both}."
            told.append(Told(words.about, said, given, "sure"))
        else:
            open_.append(words.about.lower())
    order = [words.about for words in _WORDS.values()]
    yield from sorted(told, key=lambda each: (each.tone != "better", order.index(each.about)))
    if open_:
        yield Told("Undecided", f"No clear difference in: {', '.join(open_)}.", "same", "not sure")


def _cheaper(run: Run, student: Arm) -> Iterator[Told]:
    elder, parts = teacher(run.scores), []
    for key, words in (("parameters", "parameters"), ("bytes", "size"), ("latency", "time per call")):
        share = relative(run, student, elder, key)
        if elder is not None and share != numbers.DASH:
            show = next(show for _, known, show in COSTS if known == key)
            own, whole = (show(cost(run, arm, key)) for arm in (student, elder))
            parts.append(f"{share} of its {words} ({own} instead of {whole})")
    if parts:
        # Of three costs the first two are often the same share; time is what a user feels.
        kept = parts if len(parts) < 3 else [parts[0], parts[2]]
        yield Told("Cost", f"{', '.join(kept)}.".replace("its", "its teacher's", 1), "same")


def _level(run: Run, key: str, arm: Arm) -> float | None:
    if key not in MEASURES:
        own = spread(run.scores, arm, key)
        return own.mean if own else None
    if key == "churn":
        return finite(found_at(run.evidence, "churn", arm.name, "mean"))
    values = [found for entry in measured(run.evidence, arm.name)
              if (found := _flat(found_at(entry, *MEASURES[key].path)))]  # fmt: skip
    return statistics.fmean(statistics.fmean(each) for each in values) if values else None


def _flat(value: Any) -> list[float]:
    """All numbers below a place: over strengths, scales, kinds."""
    if isinstance(value, Mapping):
        return [x for part in value.values() for x in _flat(part)]
    if isinstance(value, list):
        return [x for part in value for x in _flat(part)]
    number = finite(value)
    return [] if number is None else [number]


def _sure(row: Mapping[str, Any]) -> bool:
    """Whether there is an interval at all."""
    return finite(row.get("low")) is not None and finite(row.get("high")) is not None


def _kept(own: float, whole: float) -> str:
    return "all" if own >= whole else numbers.percent(own / whole, 1)
