"""What a model costs: size, operations, memory and time, from the evidence where it was measured, else the scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from limbeck.report import charts, numbers
from limbeck.report.looks import styles
from limbeck.report.reading import Arm, Run, arms, finite, found_at, mapping, sequence, teacher, whole
from limbeck.report.sections.blocks import Block, Cell, Figure, Figures, Head, Heading, Section, Table

__all__ = ["COSTS", "Timing", "common", "conditions", "cost", "relative", "section", "timings"]

Costs = Mapping[str, Any]

COSTS: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
    ("Parameters", "parameters", numbers.count),
    ("Size", "bytes", numbers.size),
    ("MACs", "macs", numbers.count),
    ("Peak memory", "peak_memory", numbers.size),
    ("Latency", "latency", numbers.seconds),
)
"""Label, key, and how it is written."""


_MOST_CALLS = 200


class Timing(NamedTuple):
    """How long one batch takes, in seconds: percentiles, the median's interval, and every call."""

    batch: int
    threads: int
    p10: float
    p50: float
    p90: float
    low: float | None
    high: float | None
    calls: Sequence[Any]
    """As the records have them."""

    @property
    def seconds(self) -> list[float]:
        """Every call that can be read. A page asks for conditions a hundred times, and for these once."""
        return [s for value in self.calls if (s := finite(value)) is not None and s > 0]

    @property
    def condition(self) -> str:
        """What it was measured under."""
        return f"batch {self.batch}, {_threads(self.threads)}"


def section(run: Run) -> Section | None:
    """Every cost beside its share of the teacher's, and where calls were timed, how long they took."""
    table = _table(run)
    if table is None:
        return None
    blocks: list[Block] = [table]
    figures, timed = _distributions(run), _times(run)
    if timed:
        lead = (
            "Each faint stroke is one call; the box holds the middle 80 of 100, the dot is the median, and the bar in "
            "the box is where the median surely lies."
        )
        blocks += [Heading("How long a call takes", lead), Figures(figures), timed]
    lead = f"Beneath each number: its share of the {whole(run.scores)}'s."
    if any(cost(run, arm, "latency") is not None for arm in arms(run.scores)) and not timed:
        lead += " Latency is the median for one batch [10th – 90th percentile]."
    return Section("footprint", "Size and speed", "Size and speed", lead, blocks)


def timings(run: Run, arm: Arm) -> list[Timing]:
    """The latencies of an arm that were measured under named conditions; what cannot be read is left out."""
    found = []
    for entry in map(mapping, sequence(found_at(run.evidence, "costs", arm.name, "latency"))):
        p10, p50, p90, batch, threads = (finite(entry.get(key)) for key in ("p10", "p50", "p90", "batch", "threads"))
        if p10 is None or p50 is None or p90 is None or batch is None or threads is None or min(p10, p50, p90) <= 0:
            continue
        low, high = (finite(entry.get(key)) for key in ("low", "high"))
        sure = low is not None and high is not None and 0 < low <= high
        found.append(Timing(int(batch), int(threads), p10, p50, p90, low if sure else None, high if sure else None,
                            sequence(entry.get("seconds"))))  # fmt: skip
    return sorted(found, key=lambda timing: (timing.batch, timing.threads))


def common(run: Run) -> str | None:
    """The first condition under which the most arms were timed; None where none was."""
    every = [timing.condition for arm in arms(run.scores) for timing in timings(run, arm)]
    return max(dict.fromkeys(every), key=every.count, default=None)


def cost(run: Run, arm: Arm, key: str) -> float | None:
    """One cost of an arm: measured beside the scores, else as in its footprint."""
    measured: Costs = mapping(found_at(run.evidence, "costs", arm.name))
    if key == "latency":
        shared = common(run)
        same = [timing.p50 for timing in timings(run, arm) if timing.condition == shared]
        return same[0] if same else finite(found_at(arm.footprint, "latency", "p50"))
    known = finite(measured.get("disk" if key == "bytes" else key))
    return known if known is not None else finite(arm.footprint.get(key))


def conditions(run: Run, arm: Arm) -> str:
    """What an arm's latency was measured under."""
    shared = common(run)
    if any(timing.condition == shared for timing in timings(run, arm)):
        return shared or ""
    batch, threads = (finite(found_at(arm.footprint, "latency", key)) for key in ("batch", "threads"))
    parts = [f"batch {batch:.0f}"] if batch is not None else []
    return ", ".join([*parts, *([_threads(threads)] if threads is not None else [])])


def relative(run: Run, arm: Arm, elder: Arm | None, key: str) -> str:
    """The arm's cost as a share of the teacher's; latencies measured under other conditions are not compared."""
    if elder is None or (key == "latency" and conditions(run, arm) != conditions(run, elder)):
        return numbers.DASH
    return numbers.ratio(cost(run, arm, key), cost(run, elder, key))


def _threads(number: float) -> str:
    return f"{number:.0f} thread{'s' if number != 1 else ''}"


def _table(run: Run) -> Table | None:
    elder, coloured, rows = teacher(run.scores), styles(run.scores), []
    keys = [entry for entry in COSTS if any(cost(run, arm, entry[1]) is not None for arm in arms(run.scores))]
    for arm in arms(run.scores):
        if not any(cost(run, arm, key) is not None for _, key, _ in COSTS):
            continue
        row = [Cell(arm.label, style=coloured.get(arm.name, ""), note=conditions(run, arm))]
        for _, key, show in keys:
            value = cost(run, arm, key)
            share = relative(run, arm, elder, key) if elder and arm.name != elder.name else numbers.DASH
            row.append(Cell(show(value) + _range(run, arm, key), value, note="" if share == numbers.DASH else share))
        rows.append(row)
    head = [Head("Model"), *(Head(label) for label, _, _ in keys)]
    return Table("Size and speed of every model", head, rows) if keys and rows else None


def _range(run: Run, arm: Arm, key: str) -> str:
    if key != "latency" or timings(run, arm):
        return ""
    low, high = (finite(found_at(arm.footprint, "latency", name)) for name in ("p10", "p90"))
    if low is None or high is None:
        return ""
    return f" [{numbers.seconds(low)} {numbers.DASH} {numbers.seconds(high)}]"


def _distributions(run: Run) -> list[Figure]:
    """A drawing for each condition."""
    coloured = styles(run.scores)
    by_condition: dict[str, list[charts.Batch]] = {}
    for arm in arms(run.scores):
        for timing in timings(run, arm):
            tip = (
                f"{arm.label}\nMedian {numbers.seconds(timing.p50)}{_sure(timing)}\n"
                f"90 of 100 below {numbers.seconds(timing.p90)}"
            )
            by_condition.setdefault(timing.condition, []).append(
                charts.Batch(arm.label, coloured.get(arm.name, ""), timing.seconds, timing.p10, timing.p50, timing.p90,
                             timing.low, timing.high, tip)
            )  # fmt: skip
    drawn = []
    for condition, rows in by_condition.items():
        caption = condition[:1].upper() + condition[1:]
        svg = charts.box_chart(rows, title=f"Latency, {condition}", show=numbers.seconds)
        calls = [[Cell(row.name), Cell(numbers.seconds(s), s)] for row in rows for s in _some(row.seconds)]
        drawn.append(Figure(caption, svg, Table(f"Every call, {condition}", [Head("Model"), Head("Time")], calls)))
    return drawn


def _some(seconds: Sequence[float]) -> list[float]:
    """As many calls as a table may hold, evenly from the fastest to the slowest; the records hold all."""
    every = -(-len(seconds) // _MOST_CALLS)
    return sorted(seconds)[::every] if every > 1 else list(seconds)


def _times(run: Run) -> Table | None:
    coloured, elder = styles(run.scores), teacher(run.scores)
    theirs = {t.condition: t.p50 for t in timings(run, elder)} if elder else {}
    rows: list[Sequence[Cell]] = []
    for arm in arms(run.scores):
        for timing in timings(run, arm):
            share = numbers.ratio(timing.p50, theirs.get(timing.condition))
            own = elder is not None and arm.name == elder.name
            rows.append([
                Cell(arm.label, style=coloured.get(arm.name, "")),
                Cell(str(timing.batch), timing.batch),
                Cell(str(timing.threads), timing.threads),
                Cell(numbers.seconds(timing.p50), timing.p50, note="" if own or share == numbers.DASH else share),
                Cell(_bounds(timing), timing.low),
                Cell(numbers.seconds(timing.p90), timing.p90),
                Cell(numbers.seconds(timing.p50 / timing.batch) if timing.batch else numbers.DASH,
                     timing.p50 / timing.batch if timing.batch else None),
            ])  # fmt: skip
    head = [Head("Model"), Head("Batch"), Head("Threads"), Head("Median"), Head("Interval"), Head("90 of 100 below"),
            Head("For one sample")]  # fmt: skip
    return Table("How long a call takes", head, rows) if rows else None


def _bounds(timing: Timing) -> str:
    if timing.low is None or timing.high is None:
        return numbers.DASH
    return f"{numbers.seconds(timing.low)} to {numbers.seconds(timing.high)}"


def _sure(timing: Timing) -> str:
    return "" if timing.low is None else f", surely {_bounds(timing)}"
