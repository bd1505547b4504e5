"""Attempts: every model that a search met, in a table and as dots beside the limits."""

from __future__ import annotations

from collections.abc import Iterator

from limbeck.report import charts, numbers
from limbeck.report.glossary import metric
from limbeck.report.reading import Run
from limbeck.report.searching import COSTS, Attempt, Search, budget, fine, searches
from limbeck.report.sections.blocks import Block, Cell, Figure, Figures, Head, Heading, Section, Table

__all__ = ["section"]

_SHORT = {"parameters": "Parameters", "bytes": "Size", "macs": "MACs", "latency": "Latency"}
_LEAD = (
    "Each attempt is a changed model, scored on the validation samples. In the drawings a hollow dot lost more than it "
    "may, a large one is the result, and dashed lines are what was asked for: the result belongs left of the upright "
    "line and on the good side of the level one. Costs are shares of the original's."
)


def section(run: Run) -> Section | None:
    """Quality against each budgeted cost over all attempts, then a table of them for each chain."""
    found = searches(run)
    if not found:
        return None
    blocks: list[Block] = []
    figures = list(_figures(found))
    if figures:
        named = [(f"s{index % 5 + 1}", search.name) for index, search in enumerate(found)]
        legend = [("teacher", "Original"), *named] if len(found) > 1 else ()
        blocks.append(Figures(figures, legend))
    for index, search in enumerate(found):
        asked = f"Asked for: {budget(search)}."
        blocks.append(Heading(search.name.capitalize() or "Every attempt", asked))
        blocks.append(_table(search, f"s{index % 5 + 1}"))
    return Section("attempts", "Attempts", "Attempts", _LEAD, blocks)


def _watched(search: Search) -> list[str]:
    """The scores that have a limit; without one, the main score."""
    limited = [*search.floors, *search.lids]
    return limited or [name for name in ("accuracy", "r2") if name in search.original.scores][:1]


def _figures(found: list[Search]) -> Iterator[Figure]:
    for key, called, _ in COSTS:
        for score in dict.fromkeys(name for search in found for name in _watched(search)):
            if any(key in search.ceilings for search in found):
                figure = _figure(found, key, called, score)
                if figure is not None:
                    yield figure


def _figure(found: list[Search], key: str, called: str, score: str) -> Figure | None:
    column, met, rows = metric(score), [], []
    most: dict[float, None] = {}
    bounds: dict[float, str] = {}
    for index, search in enumerate(found):
        if key in search.ceilings and search.original.costs.get(key):
            most[search.ceilings[key] / search.original.costs[key]] = None
        for limits, word in ((search.floors, "least"), (search.lids, "most")):
            if score in limits:
                bounds[limits[score]] = f"at {word} {fine(column, limits[score])}"
        for attempt in search.attempts:
            share, value, first = search.share(attempt, key), attempt.scores.get(score), attempt is search.original
            if share is None or value is None or (first and index):  # the original is there once
                continue
            name = attempt.step if first else _called(attempt)
            series, style = ("Original", "teacher") if first else (search.name, f"s{index % 5 + 1}")
            best = attempt is search.best
            tip = (
                f"{f'{search.name}: ' if search.name and not first else ''}{name}\n{fine(column, value)} at "
                f"{numbers.ratio(share, 1.0)} of the {called}\n{'the result' if best else _fate(attempt)}"
            )
            met.append(charts.Met(share, value, style, series, tip, holds=attempt.held, best=best))
            rows.append([Cell(f"{f'{search.name} ' if not first else ''}{attempt.number} · {name}".strip()),
                         Cell(numbers.ratio(share, 1.0), share), Cell(fine(column, value), value)])  # fmt: skip
    title = f"{column.label} against {called}"
    svg = charts.limits_chart(met, title=title, axis=f"share of the original's {called}",
                              value=lambda v: fine(column, v), most=list(most), bounds=list(bounds.items()),
                              fraction=column.unit == "fraction")  # fmt: skip
    table = Table(title, [Head("Attempt"), Head(called.capitalize()), Head(column.label)], rows)
    return Figure(title, svg, table) if svg else None


def _table(search: Search, style: str) -> Table:
    costs = [key for key, _, _ in COSTS if key in search.original.costs]
    shown = dict.fromkeys([*_watched(search), "accuracy", "macro_recall", "macro_f1"])
    scores = [name for name in shown if name in search.original.scores]
    head = [Head("Attempt"), Head("Became", left=True), *(Head(_SHORT[key]) for key in costs),
            *(Head(metric(name).label) for name in scores), Head("Why", left=True, wraps=True)]  # fmt: skip
    rows = []
    for each in search.attempts:
        best, first = each is search.best, each is search.original
        limits = {**search.floors, **search.lids}
        row = [Cell(f"{each.number} · {_called(each)}", each.number, style=style if best else "",
                    note="" if first else f"from {each.parent}{', repaired' if each.repaired else ', not repaired'}"),
               Cell("result" if best else "kept" if each.kept else "left", best=best)]  # fmt: skip
        for key in costs:
            share = search.share(each, key)
            tone = (
                "worse"
                if not first and key in search.ceilings and each.costs.get(key, 0.0) > search.ceilings[key]
                else ""
            )
            row.append(Cell(numbers.ratio(share, 1.0), share, tone=tone, best=best))
        for name in scores:
            value = each.scores.get(name)
            lost = (value is not None and name in limits
                    and (value < limits[name] if name in search.floors else value > limits[name]))  # fmt: skip
            row.append(Cell(fine(metric(name), value) if value is not None else numbers.DASH, value,
                            tone="worse" if lost else "", best=best))  # fmt: skip
        rows.append([*row, Cell(each.why)])
    return Table(f"Attempts{f' of {search.name}' if search.name else ''}", head, rows)


def _called(attempt: Attempt) -> str:
    strength = "" if attempt.strength is None else f" {numbers.percent(attempt.strength)}"
    return f"{attempt.step}{strength}"


def _fate(attempt: Attempt) -> str:
    repaired = "repaired, " if attempt.repaired else ""
    return f"{repaired}{'kept' if attempt.kept else 'left'}: {attempt.why}"
