"""The verdict of a run in plain sentences, and its scores as a small table; for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from limbeck.report import numbers
from limbeck.report.glossary import Metric, metric
from limbeck.report.reading import (
    Arm,
    arms,
    baseline,
    comparison,
    finite,
    is_search,
    primary,
    sequence,
    spread,
    subjects,
    teacher,
    text,
)  # fmt: skip

__all__ = ["Verdict", "called", "lines", "table", "verdict"]

Verdict = Literal["better", "worse", "no clear difference", "not compared"]

ALONE = "the same student trained alone"


def lines(scores: Mapping[str, Any]) -> list[str]:
    """What the run shows, one sentence for each student, for a reader who does not know the field.

    The student with the best validation score comes first. A student that is not better is said to be not better.

    Args:
        scores: the content of a run's `scores.json`.
    """
    if is_search(scores):
        return [text(said) for said in sequence(scores.get("said"))] or ["No scores were recorded."]
    chosen, elder = primary(scores), teacher(scores)
    if chosen is None:
        return ["No scores were recorded."]
    said = [sentence for arm in subjects(scores) if (sentence := _sentence(scores, arm, chosen))]
    if not said and elder is not None and (own := spread(scores, elder, chosen.key)):
        said = [f"The teacher {_achieves(scores, chosen, own.mean)}; there is no student yet."]
    if scores.get("complete") is False:
        said.append("The run is not complete, so these numbers may still change.")
    return said or ["No scores were recorded."]


def verdict(scores: Mapping[str, Any]) -> Verdict:
    """How the first student compares with the same student trained alone, in the metric of the headline.

    One seed is never a verdict: without an interval the answer is `not compared`.
    """
    chosen, found = primary(scores), subjects(scores)
    row = comparison(scores, found[0], chosen.key) if chosen and found else None
    if row is None or finite(row.get("low")) is None or finite(row.get("high")) is None:
        return "not compared"
    given = row.get("verdict")
    return given if given in ("better", "worse") else "no clear difference"


def table(scores: Mapping[str, Any]) -> list[list[str]]:
    """A header and a row for each arm: quality (mean ± standard deviation over seeds) and share of parameters."""
    columns = [metric(key) for key in ("accuracy", "macro_f1", "nll", "ece", "agreement")]
    elder = teacher(scores)
    rows = [["arm", "accuracy", "macro F1", "NLL", "ECE", "agreement", "parameters"]]
    for arm in arms(scores):
        found = [(column, spread(scores, arm, column.key)) for column in columns]
        cells = [column.spread(own.mean, own.sd) if own else numbers.DASH for column, own in found]
        rows.append([arm.label, *cells, _share(arm, elder)])
    return rows


def called(arm: Arm) -> str:
    """What a sentence calls an arm."""
    if arm.role == "plain":
        return "The student trained alone"
    if arm.role == "distilled":
        return "The distilled student" + ("" if arm.name in ("student", "distilled") else f" ({arm.name})")
    return "The student" + ("" if arm.name == "student" else f" ({arm.label})")


def _sentence(scores: Mapping[str, Any], arm: Arm, chosen: Metric) -> str:
    own = spread(scores, arm, chosen.key)
    if own is None:
        return ""
    clause, closing = _beside(scores, arm, chosen, own.mean)
    share = _share(arm, teacher(scores))
    cost = f", with {share} of the teacher's parameters" if share != numbers.DASH else ""
    return f"{called(arm)} {_achieves(scores, chosen, own.mean)}{clause}{cost}{closing}."


def _achieves(scores: Mapping[str, Any], chosen: Metric, value: float) -> str:
    where = f"{text(scores.get('split')) or 'test'} set"
    if chosen.key == "accuracy":
        return f"answers {chosen.show(value)} of the {where} correctly"
    return f"reaches {chosen.label} {chosen.show(value)} on the {where}"


def _beside(scores: Mapping[str, Any], arm: Arm, chosen: Metric, own: float) -> tuple[str, str]:
    """The clause that compares the student, and what closes the sentence."""
    plain, elder = baseline(scores), teacher(scores)
    if plain is None or plain.name == arm.name:
        beside = spread(scores, elder, chosen.key) if elder else None
        closing = "" if plain else "; no student was trained alone, so what distillation adds is not known"
        return (_below(chosen, own - beside.mean, beside.mean) if beside else ""), closing
    row = comparison(scores, arm, chosen.key)
    unit = " points" if chosen.unit == "fraction" else ""
    if row is None:
        alone = spread(scores, plain, chosen.key)
        if alone is None:
            return "", ""
        [difference] = chosen.differences(own - alone.mean)
        return f", {difference}{unit} against {ALONE}", "; no interval was computed, so chance is not excluded"
    mean, low, high = (finite(row.get(name)) for name in ("mean", "low", "high"))
    assert mean is not None  # `comparisons` lets no other row through
    if low is None or high is None:
        [difference] = chosen.differences(mean)
        return f", {difference}{unit} against {ALONE}", "; without more seeds this cannot be told from chance"
    return _tested(row, chosen, unit, (mean, low, high))


def _tested(row: Mapping[str, Any], chosen: Metric, unit: str, interval: tuple[float, float, float]) -> tuple[str, str]:
    difference, low, high = chosen.differences(*interval)
    level, n = finite(row.get("level")), finite(row.get("n"))
    seeds = f", {n:g} seeds" if n else ""
    range_ = f"{numbers.percent(level, 0) + ' ' if level else ''}interval {low} to {high}{seeds}"
    match row.get("verdict"):
        case "better":
            words = "over" if chosen.better != "lower" else "(lower is better) against"
            return f", {difference}{unit} {words} {ALONE} ({range_})", ""
        case "worse":
            size = difference.lstrip(f"+{numbers.MINUS}")
            words = "below" if chosen.better != "lower" else "above"
            return f", {size}{unit} {words} {ALONE} ({range_})", "; distillation did not help here"
        case _:
            clause = f", no clear difference from {ALONE} ({difference}{unit}, {range_})"
            return clause, "; distillation is not shown to help here"


def _below(chosen: Metric, difference: float, value: float) -> str:
    [size] = chosen.differences(abs(difference))
    unit = " points" if chosen.unit == "fraction" else ""
    if not difference:
        return f", the same as its teacher ({chosen.show(value)})"
    words = "above" if difference > 0 else "below"
    return f", {size.lstrip('+')}{unit} {words} its teacher ({chosen.show(value)})"


def _share(arm: Arm, elder: Arm | None) -> str:
    if elder is None:
        return numbers.DASH
    own, whole = (finite(each.footprint.get("parameters")) for each in (arm, elder))
    return numbers.ratio(own, whole)
