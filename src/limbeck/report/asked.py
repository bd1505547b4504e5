"""What the page of a search opens with: whether the budget is met, line by line, and what was kept of each score."""

from __future__ import annotations

from collections.abc import Iterator

from limbeck.report import numbers
from limbeck.report.glossary import metric
from limbeck.report.opening import Told
from limbeck.report.reading import Arm, Run, spread, subjects, teacher, text
from limbeck.report.searching import COSTS, Search, fine, plain, searches

__all__ = ["NOTE", "headline", "points"]

NOTE = "Beside the original on the same samples; attempts were chosen by the validation samples alone."

_KEPT = ("accuracy", "macro_recall", "macro_f1", "r2")


def headline(run: Run) -> str:
    """Whether the budget is met, at which cost, and what quality is left, in a sentence."""
    found = _paired(run)
    if not found:
        return ""
    search, arm = found[0]
    quality = next(_beside(run, arm), "")
    said = ", ".join([*_sizes(search), *([quality] if quality else [])])
    if not search.name:
        return f"The budget is {'met' if search.met else 'missed'}: {said}."
    lead = "The budget is met by" if search.met else "No chain meets the budget; first comes"
    return f"{lead} “{search.name}”: {said}."


def points(run: Run) -> list[Told]:
    """The budget line by line, then what was kept; of several chains, a line each."""
    found = _paired(run)
    if len(found) == 1:
        [(search, arm)] = found
        return [*_asked(search), *_kept(run, search, arm)]
    return [_in_short(run, search, arm) for search, arm in found]


def _sizes(search: Search) -> Iterator[str]:
    """Each budgeted cost of the result, and beside what is above its limit, the limit."""
    for key, called, _ in COSTS:
        own, most, whole = search.best.costs.get(key), search.ceilings.get(key), search.original.costs.get(key)
        if own is not None and most is not None:
            above = f" ({numbers.ratio(most, whole)} asked for)" if own > most else ""
            yield f"{numbers.ratio(own, whole)} of the {called}{above}"


def _in_short(run: Run, search: Search, arm: Arm | None) -> Told:
    said = "; ".join(", ".join(each) for each in (list(_sizes(search)), list(_beside(run, arm))) if each)
    return Told(search.name, f"{said}.", "better" if search.met else "worse",
                "budget met" if search.met else "budget missed")  # fmt: skip


def _asked(search: Search) -> Iterator[Told]:
    for key, called, show in COSTS:
        most, own, whole = search.ceilings.get(key), search.best.costs.get(key), search.original.costs.get(key)
        if most is None or own is None:
            continue
        of = f", {search.calls}" if key == "latency" and search.calls else ""
        said = f"{numbers.ratio(own, whole)} of the original's {called} ({show(own)} instead of {show(whole)}{of})"
        asked = f"asked for: at most {numbers.ratio(most, whole)}"
        if own <= most:
            yield Told(called.capitalize(), f"{said}; {asked}.", "better", "met")
        else:
            yield Told(called.capitalize(), f"{said}; {asked}.", "worse", f"missed: {own / most:.2f} × as much")
    for bounds, word, up in ((search.floors, "least", True), (search.lids, "most", False)):
        for key, bound in bounds.items():
            own, column = search.best.scores.get(key), metric(key)
            if own is None:
                continue
            start = search.original.scores.get(key)
            beside = f" (the original: {fine(column, start)})" if start is not None else ""
            said = f"{fine(column, own)} on the validation samples{beside}; asked for: at {word} {fine(column, bound)}."
            holds = own >= bound if up else own <= bound
            yield Told(f"{column.label} limit", said, "better" if holds else "worse", "met" if holds else "missed")


def _kept(run: Run, search: Search, arm: Arm | None) -> Iterator[Told]:
    scores = list(_beside(run, arm)) if arm else []
    if scores:
        where = text(run.scores.get("split")) or "test"
        yield Told("Kept", f"On the {where} samples: {'; '.join(scores)}.", "same")
    others = [f"{numbers.ratio(search.best.costs[key], search.original.costs.get(key))} of the {called}"
              for key, called, _ in COSTS if key in search.best.costs and key not in search.ceilings]  # fmt: skip
    if others:
        yield Told("Other costs", f"{', '.join(others)}.", "same")
    held = sum(each.held for each in search.attempts[1:])
    tried = len(search.attempts) - 1
    yield Told("Search", f"{tried} changed model{'s' if tried != 1 else ''} scored, {held} of them within the loss "
               f"that is allowed; the result is attempt {search.best.number}.", "same")  # fmt: skip


def _beside(run: Run, arm: Arm | None) -> Iterator[str]:
    """Each score of an arm beside the original's: 'accuracy 97.0 % instead of 96.8 %'."""
    elder = teacher(run.scores)
    if arm is None or elder is None:
        return
    for key in _KEPT:
        own, whole, column = spread(run.scores, arm, key), spread(run.scores, elder, key), metric(key)
        if own is not None and whole is not None:
            yield f"{plain(column)} {column.show(own.mean)} instead of {column.show(whole.mean)}"


def _paired(run: Run) -> list[tuple[Search, Arm | None]]:
    """Each search with the arm that it ended with: those that met their budget first, then by validation score."""
    arms = subjects(run.scores)
    names = [arm.name for arm in arms]
    found = []
    for search in searches(run):
        wanted = f"{search.name}/student" if search.name else "student"
        place = names.index(wanted) if wanted in names else len(names)
        found.append((not search.met, place, search))
    return [(search, arms[place] if place < len(arms) else None)
            for _, place, search in sorted(found, key=lambda each: each[:2])]  # fmt: skip
