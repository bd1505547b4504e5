"""What a search for a smaller model left behind: every attempt, the limits, and the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from limbeck.report import numbers
from limbeck.report.glossary import Metric, metric
from limbeck.report.reading import Run, finite, mapping, sequence, text

__all__ = ["COSTS", "Attempt", "Search", "budget", "fine", "plain", "searches"]

COSTS: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
    ("parameters", "parameters", numbers.count),
    ("bytes", "size", numbers.size),
    ("macs", "multiply-accumulates", numbers.count),
    ("latency", "time a call", numbers.seconds),
)
"""Key, what it is called in a sentence, and how it is written."""


class Attempt(NamedTuple):
    """One model that was met. `costs` are absolute, `scores` those on the validation samples."""

    number: int
    parent: int | None
    step: str
    strength: float | None
    costs: Mapping[str, float]
    scores: Mapping[str, float]
    repaired: bool
    held: bool
    kept: bool
    why: str


class Search(NamedTuple):
    """One chain: its name (empty where there is one), its attempts, its limits, and which attempt is the result."""

    name: str
    attempts: list[Attempt]
    ceilings: Mapping[str, float]
    floors: Mapping[str, float]
    lids: Mapping[str, float]
    best: Attempt
    calls: str
    """Of how many samples on how many threads a timed call is, where that is known."""

    @property
    def original(self) -> Attempt:
        """Where it started."""
        return self.attempts[0]

    @property
    def met(self) -> bool:
        """Whether the result is within every limit."""
        within = all(self.best.costs.get(name, 0.0) <= most for name, most in self.ceilings.items())
        return within and self.best.held

    def share(self, attempt: Attempt, key: str) -> float | None:
        """A cost as a share of the original's; None where it is not known."""
        own, whole = attempt.costs.get(key), self.original.costs.get(key)
        return own / whole if own and whole else None


def searches(run: Run) -> list[Search]:
    """The searches of a run; empty where there was none or its records cannot be read."""
    chains = mapping(run.evidence.get("chains")) or {"": run.evidence}
    return [found for name, held in chains.items() if (found := _search(text(name), mapping(held))) is not None]


def budget(search: Search) -> str:
    """What was asked for, in a line."""
    parts = []
    for key, called, show in COSTS:
        most = search.ceilings.get(key)
        if most is not None:
            share = numbers.ratio(most, search.original.costs.get(key))
            parts.append(f"at most {share} of the {called} ({show(most)})")
    for bounds, word in ((search.floors, "least"), (search.lids, "most")):
        for key, bound in bounds.items():
            column = metric(key)
            parts.append(f"{plain(column)} of at {word} {fine(column, bound)}")
    return ", ".join(parts)


def fine(column: Metric, value: float) -> str:
    """A score with one more decimal than elsewhere: a limit of half a point must not vanish in rounding."""
    return numbers.percent(value, column.digits + 1) if column.unit == "fraction" else numbers.number(value, 4)


def plain(column: Metric) -> str:
    """What a score is called within a sentence: 'accuracy', 'macro F1', 'NLL'."""
    first, _, rest = column.label.partition(" ")
    return column.label if first.isupper() else f"{first.lower()} {rest}".strip()


def _search(name: str, held: Mapping[str, Any]) -> Search | None:
    attempts = [found for row in sequence(held.get("attempts")) if (found := _attempt(mapping(row))) is not None]
    best = next((each for each in attempts if each.number == held.get("best")), None)
    if best is None:
        return None
    limits = mapping(held.get("limits"))
    ceilings, floors, lids = (_numbers(limits.get(key)) for key in ("ceilings", "floors", "lids"))
    return Search(name, attempts, ceilings, floors, lids, best, _calls(mapping(held.get("calls"))))


def _calls(held: Mapping[str, Any]) -> str:
    batch, threads = finite(held.get("batch")), finite(held.get("threads"))
    if batch is None or threads is None:
        return ""
    return f"calls of {batch:.0f} sample{'s' * (batch != 1)} on {threads:.0f} thread{'s' * (threads != 1)}"


def _attempt(row: Mapping[str, Any]) -> Attempt | None:
    number, parent = finite(row.get("number")), finite(row.get("parent"))
    if number is None:
        return None
    return Attempt(
        int(number), None if parent is None else int(parent), text(row.get("lever")).replace("_", " "),
        finite(row.get("strength")), _numbers(row.get("costs")), _numbers(row.get("scores")),
        row.get("repaired") is True, row.get("held") is True, row.get("kept") is True, text(row.get("why")),
    )  # fmt: skip


def _numbers(value: Any) -> dict[str, float]:
    return {text(key): number for key, one in mapping(value).items() if (number := finite(one)) is not None}
