"""The figures of the page: which records go into which chart, and who is in its legend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from limbeck.report import charts, numbers
from limbeck.report.glossary import Metric, metric
from limbeck.report.reading import Arm, arms, comparisons, finite, mapping, metrics_of, text
from limbeck.report.sections import styles

__all__ = ["Difference", "Figure", "class_figure", "differences", "interval_figures", "loss_figures", "term_figures",
           "validation_figures"]  # fmt: skip

# What all polylines of a page may hold together: it keeps the page small however many arms and seeds a run has.
POINTS = 15_000
MOST_POINTS, LEAST_POINTS = 200, 12
SMALL = 280.0


class Figure(NamedTuple):
    """A caption, the drawing (SVG that is already escaped) and who is in it (style, name)."""

    caption: str
    svg: str
    legend: list[tuple[str, str]]


class Difference(NamedTuple):
    """One paired difference as a row of the table."""

    arm: str
    style: str
    metric: str
    mean: str
    interval: str
    seeds: str
    verdict: str
    tone: str


def differences(scores: Mapping[str, Any]) -> list[Difference]:
    """The paired differences to the student trained alone, as text."""
    labels, coloured = {arm.name: arm.label for arm in arms(scores)}, styles(scores)
    rows = []
    for row in comparisons(scores):
        column, name = metric(text(row["metric"])), text(row["arm"])
        mean, bounds = _interval(row)
        shown = column.differences(mean, *bounds)
        unit = " points" if column.unit == "fraction" else ""
        level = finite(row.get("level"))
        interval = f"{shown[1]} to {shown[2]}" if bounds else "one seed: none"
        if bounds and level is not None:
            interval += f" ({numbers.percent(level, 0)})"
        said = text(row.get("verdict")) if bounds else "cannot be told"
        seeds = numbers.number(finite(row.get("n")), 0)
        rows.append(Difference(labels[name], coloured.get(name, ""), f"{column.label} {column.arrow}".strip(),
                               shown[0] + unit, interval, seeds, said, _tone(row)))  # fmt: skip
    return rows


def interval_figures(scores: Mapping[str, Any]) -> list[Figure]:
    """One dot-and-interval chart for each metric that was compared."""
    labels, drawn = {arm.name: arm.label for arm in arms(scores)}, []
    by_metric: dict[str, list[Mapping[str, Any]]] = {}
    for row in comparisons(scores):
        by_metric.setdefault(text(row["metric"]), []).append(row)
    for key, rows in by_metric.items():
        column, marks = metric(key), []
        for row in rows:
            mean, bounds = _interval(row)
            low, high = bounds or (None, None)
            said = column.differences(mean, *bounds)[0]
            marks.append(charts.Interval(labels[text(row["arm"])], _tone(row), mean, low, high, said))
        unit = "points" if column.unit == "fraction" else ""
        side = {"higher": "right of zero is better", "lower": "left of zero is better", "neither": ""}[column.better]
        caption = f"{column.label}{f', {unit}' if unit else ''}{f' · {side}' if side else ''}"
        svg = charts.interval_chart(marks, title=f"Difference in {column.label}", fraction=column.unit == "fraction")
        drawn.append(Figure(caption, svg, []))
    return drawn


def validation_figures(scores: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Validation metrics of each epoch, by step, all arms in one chart: the headline metric and the likelihood."""
    epochs = [record for record in records if record.get("kind") == "epoch"]
    found = dict.fromkeys(str(key) for record in epochs for key in mapping(record.get("validation")))
    wanted = [column for column in _described(scores, found) if column.key in found][:2]
    share = _points(epochs, len(wanted))
    drawn = []
    for column in wanted:
        lines = _lines(scores, epochs, "step", ("validation", column.key))
        svg = charts.line_chart(lines, title=f"Validation {column.label} by step",
                                fraction=column.unit == "fraction", points=share)  # fmt: skip
        drawn.append(Figure(f"Validation {_small(column.label)} by step {column.arrow}".strip(), svg, _legend(lines)))
    return [figure for figure in drawn if figure.svg]


def loss_figures(scores: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Training loss by step, one chart for each arm: losses of different objectives share no scale."""
    steps = [record for record in records if record.get("kind") == "step"]
    share, drawn = _points(steps, 1), []
    for line in _lines(scores, steps, "step", ("loss",)):
        svg = charts.line_chart([line], title=f"Training loss of {line.name} by step", points=share, width=SMALL)
        drawn.append(Figure(line.name, svg, []))
    return [figure for figure in drawn if figure.svg]


def term_figures(scores: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Figure]]]:
    """The terms of each objective that has several, one small chart for each, grouped by arm."""
    steps = [record for record in records if record.get("kind") == "step"]
    terms: dict[str, dict[str, None]] = {}
    for record in steps:
        terms.setdefault(text(record.get("arm")), {}).update(dict.fromkeys(map(str, mapping(record.get("terms")))))
    several = {name: list(keys) for name, keys in terms.items() if len(keys) > 1}
    share = _points(steps, max(map(len, several.values()), default=1))
    groups: dict[str, list[Figure]] = {}
    for name, keys in several.items():
        own = [record for record in steps if text(record.get("arm")) == name]
        for key in keys:
            for line in _lines(scores, own, "step", ("terms", key)):
                svg = charts.line_chart([line], title=f"{line.name}: {key} by step", points=share, width=SMALL)
                if svg:
                    groups.setdefault(line.name, []).append(Figure(key, svg, []))
    return list(groups.items())


def class_figure(
    scores: Mapping[str, Any], shown: Sequence[Arm], rows: Sequence[tuple[str, Sequence[float | None]]]
) -> Figure | None:
    """Recall of each class as dots, one for each arm that is shown."""
    coloured = styles(scores)
    dots = [
        (name, [(coloured.get(arm.name, ""), v) for arm, v in zip(shown, values, strict=True) if v is not None])
        for name, values in rows
    ]
    svg = charts.class_chart(dots, title="Recall by class")
    return Figure("Recall by class", svg, [(coloured.get(arm.name, ""), arm.label) for arm in shown]) if svg else None


def _lines(
    scores: Mapping[str, Any], records: Iterable[Mapping[str, Any]], axis: str, path: Sequence[str]
) -> list[charts.Line]:
    """One line for each arm, one seed for each that was recorded; values that are missing are left out."""
    found: dict[str, dict[str, list[charts.Point]]] = {}
    for record in records:
        value: Any = record
        for key in path:
            value = mapping(value).get(key)
        x, y = finite(record.get(axis)), finite(value)
        if x is not None and y is not None:
            found.setdefault(text(record.get("arm")), {}).setdefault(text(record.get("seed")), []).append((x, y))
    coloured, labels = styles(scores), {arm.name: arm.label for arm in arms(scores)}
    order = [name for name in labels if name in found] + [name for name in found if name not in labels]
    return [
        charts.Line(labels.get(name) or name or "training", coloured.get(name, "s1"), list(found[name].values()))
        for name in order
    ]


def _points(records: Sequence[Mapping[str, Any]], charts_each: int) -> int:
    """How many points one line may keep, so that three kinds of chart stay within `POINTS` together."""
    drawn = {(text(record.get("arm")), text(record.get("seed"))) for record in records}
    number = max(1, charts_each) * (len(drawn) + len({arm for arm, _ in drawn}))
    return max(LEAST_POINTS, min(MOST_POINTS, POINTS // 3 // max(1, number)))


def _described(scores: Mapping[str, Any], found: Iterable[str]) -> list[Metric]:
    """Headline metric, then the likelihood, then the rest."""
    listed = metrics_of(scores) or [metric(key) for key in found]
    keys = dict.fromkeys([*[column.key for column in listed[:1]], "nll", *found])
    return [metric(key) for key in keys]


def _legend(lines: Sequence[charts.Line]) -> list[tuple[str, str]]:
    return [(line.style, line.name) for line in lines]


def _small(label: str) -> str:
    return label if label.isupper() else label[:1].lower() + label[1:]


def _interval(row: Mapping[str, Any]) -> tuple[float, tuple[float, float] | tuple[()]]:
    mean, low, high = (finite(row.get(key)) for key in ("mean", "low", "high"))
    assert mean is not None  # `comparisons` lets no other row through
    return mean, (low, high) if low is not None and high is not None else ()


def _tone(row: Mapping[str, Any]) -> str:
    if not _interval(row)[1]:
        return "same"
    return {"better": "better", "worse": "worse"}.get(text(row.get("verdict")), "same")
