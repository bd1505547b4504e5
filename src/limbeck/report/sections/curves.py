"""How training went: validation by step, loss by step, and the terms of each loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from limbeck.report import charts
from limbeck.report.charts.scale import SMALL
from limbeck.report.glossary import Metric, metric
from limbeck.report.looks import Legend, labels, styles
from limbeck.report.reading import Run, finite, found_at, mapping, metrics_of, text
from limbeck.report.sections.blocks import Block, Figure, Figures, Heading, Section, line_figure

__all__ = ["section"]

Records = Sequence[Mapping[str, Any]]

# What all polylines of a page may hold together: it keeps the page small however many arms and seeds a run has.
POINTS = 15_000
MOST_POINTS, LEAST_POINTS = 200, 12


def section(run: Run) -> Section | None:
    """Curves of every arm at the learning rate of the recipe; other rates have a section of their own."""
    # `arm@factor` is an arm at another learning rate.
    records = [record for record in run.metrics if "@" not in text(record.get("arm"))]
    validation, losses = _validation(run.scores, records), _losses(run.scores, records)
    if not (validation or losses):
        return None
    blocks: list[Block] = []
    if validation:
        blocks.append(Figures(validation, _legend(run.scores, records, "epoch")))
    if losses:
        lead = "Each model has its own scale, because its objective is its own."
        blocks += [Heading("Training loss by step", lead), Figures(losses, small=True)]
    for name, figures in _terms(run.scores, records):
        blocks += [Heading(f"{name}: the terms of its loss"), Figures(figures, small=True)]
    lead = "Thin lines are single seeds, strong lines their mean."
    return Section("curves", "Training", "Training", lead, blocks)


def _validation(scores: Mapping[str, Any], records: Records) -> list[Figure]:
    """The headline metric and the likelihood of each epoch, by step, all arms in one chart."""
    epochs = [record for record in records if record.get("kind") == "epoch"]
    found = dict.fromkeys(str(key) for record in epochs for key in mapping(record.get("validation")))
    wanted = [column for column in _described(scores, found) if column.key in found][:2]
    share, drawn = _share(epochs, len(wanted)), []
    for column in wanted:
        caption = f"Validation {_small(column.label)} by step {column.arrow}".strip()
        lines = _lines(scores, epochs, ("validation", column.key))
        drawn.append(line_figure(caption, lines, title=f"Validation {column.label} by step", axis="step",
                                 fraction=column.unit == "fraction", points=share))  # fmt: skip
    return [figure for figure in drawn if figure]


def _losses(scores: Mapping[str, Any], records: Records) -> list[Figure]:
    """One chart for each arm: losses of different objectives share no scale."""
    steps = [record for record in records if record.get("kind") == "step"]
    share = _share(steps, 1)
    drawn = [
        line_figure(line.name, [line], title=f"Training loss of {line.name} by step", axis="step", points=share,
                    width=SMALL)
        for line in _lines(scores, steps, ("loss",))
    ]  # fmt: skip
    return [figure for figure in drawn if figure]


def _terms(scores: Mapping[str, Any], records: Records) -> list[tuple[str, list[Figure]]]:
    """The terms of each objective that has several, one small chart for each, grouped by arm."""
    steps = [record for record in records if record.get("kind") == "step"]
    terms: dict[str, dict[str, None]] = {}
    for record in steps:
        terms.setdefault(text(record.get("arm")), {}).update(dict.fromkeys(map(str, mapping(record.get("terms")))))
    several = {name: list(keys) for name, keys in terms.items() if len(keys) > 1}
    share = _share(steps, max(map(len, several.values()), default=1))
    groups: dict[str, list[Figure]] = {}
    for name, keys in several.items():
        own = [record for record in steps if text(record.get("arm")) == name]
        for key in keys:
            for line in _lines(scores, own, ("terms", key)):
                figure = line_figure(key, [line], title=f"{line.name}: {key} by step", axis="step", points=share,
                                     width=SMALL)  # fmt: skip
                if figure:
                    groups.setdefault(line.name, []).append(figure)
    return list(groups.items())


def _lines(scores: Mapping[str, Any], records: Iterable[Mapping[str, Any]], path: Sequence[str]) -> list[charts.Line]:
    """One line for each arm, one seed for each that was recorded; values that are missing are left out."""
    found: dict[str, dict[str, list[charts.Point]]] = {}
    for record in records:
        x, y = finite(record.get("step")), finite(found_at(record, *path))
        if x is not None and y is not None:
            found.setdefault(text(record.get("arm")), {}).setdefault(text(record.get("seed")), []).append((x, y))
    coloured, called = styles(scores), labels(scores)
    order = [name for name in called if name in found] + [name for name in found if name not in called]
    return [
        charts.Line(called.get(name) or name or "training", coloured.get(name, "s1"), list(found[name].values()),
                    list(found[name]))
        for name in order
    ]  # fmt: skip


def _legend(scores: Mapping[str, Any], records: Records, kind: str) -> Legend:
    names = {text(record.get("arm")) for record in records if record.get("kind") == kind}
    coloured, called = styles(scores), labels(scores)
    order = [name for name in called if name in names] + sorted(name for name in names if name not in called)
    return [(coloured.get(name, "s1"), called.get(name) or name or "training") for name in order]


def _share(records: Records, charts_each: int) -> int:
    """How many points one line may keep, so that three kinds of chart stay within `POINTS` together."""
    drawn = {(text(record.get("arm")), text(record.get("seed"))) for record in records}
    number = max(1, charts_each) * (len(drawn) + len({arm for arm, _ in drawn}))
    return max(LEAST_POINTS, min(MOST_POINTS, POINTS // 3 // max(1, number)))


def _described(scores: Mapping[str, Any], found: Iterable[str]) -> list[Metric]:
    """Headline metric, then the likelihood, then the rest."""
    listed = metrics_of(scores) or [metric(key) for key in found]
    keys = dict.fromkeys([*[column.key for column in listed[:1]], "nll", *found])
    return [metric(key) for key in keys]


def _small(label: str) -> str:
    return label if label.isupper() else label[:1].lower() + label[1:]
