"""From what was measured of every member to what a run shows as a whole: `evidence.json`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from limbeck.evaluation.study import compare, compare_churn
from limbeck.metrics import stability

__all__ = ["findings"]

Entry = Mapping[str, Any]
_FORMAT = 1


def findings(
    found: Mapping[str, Sequence[Entry]],
    *,
    rates: Mapping[str, Sequence[Entry]] | None = None,
    chance: Entry | None = None,
    baseline: str | None = None,
    **further: Any,
) -> dict[str, Any]:
    """The content of `evidence.json`.

    Args:
        found: by arm, what was measured of each seed (see `limbeck.examining`).
        rates: by arm, how each training at each rate went.
        chance: agreement of a network with random weights with the teacher.
        baseline: the arm that others are compared to, over the seeds both have.
        **further: other parts of the document: samples, gallery, disagreements, costs.
    """
    arms = {name: [{k: v for k, v in entry.items() if k != "predictions"} for entry in entries]
            for name, entries in found.items()}  # fmt: skip
    said: dict[str, Any] = {"format": _FORMAT, "arms": arms, "churn": _churn(found)}
    if rates:
        grid = {name: _grid(entries) for name, entries in rates.items()}
        said["rates"] = {name: rows for name, rows in grid.items() if len(rows["rate"]) > 1}
    if chance:
        said["random"] = {"attribution": dict(chance)}
    if baseline is not None and baseline in found:
        said["comparisons"] = [
            row for name in found if name not in (baseline, "teacher") for row in _compared(name, baseline, found)
        ]
    return {**said, **{name: value for name, value in further.items() if value}}


def _churn(found: Mapping[str, Sequence[Entry]]) -> dict[str, Any]:
    """By arm: the share of answers that differ between two seeds."""
    said = {}
    for name, entries in found.items():
        runs = {entry["seed"]: entry["predictions"] for entry in entries if "predictions" in entry}
        if len(runs) < 2:
            continue
        seeds, churn = list(runs), stability.churn(list(runs.values()))
        if name == "teacher" and not churn.mean:
            continue  # one teacher for all seeds
        pairs = [(seeds[i], seeds[j]) for i in range(len(seeds)) for j in range(i + 1, len(seeds))]
        shares = [{"seeds": list(pair), "share": share} for pair, share in zip(pairs, churn.pairs, strict=True)]
        said[name] = {"mean": churn.mean, "pairs": shares}
    return said


def _grid(entries: Sequence[Entry]) -> dict[str, Any]:
    """What happened at each rate, lowest first."""
    rates = sorted({entry["rate"] for entry in entries})
    at = [[entry for entry in entries if entry["rate"] == rate] for rate in rates]
    return {
        "rate": rates,
        "runs": [len(same) for same in at],
        "diverged": [sum(bool(entry["diverged"]) for entry in same) for same in at],
        "accuracy": [[entry["accuracy"] for entry in same] for same in at],
    }


def _compared(name: str, baseline: str, found: Mapping[str, Sequence[Entry]]) -> list[dict[str, Any]]:
    """Paired differences between two arms, a row for each measure that both have at two seeds or more."""
    ours, theirs = ({entry["seed"]: entry for entry in found[arm]} for arm in (name, baseline))
    seeds = [seed for seed in ours if seed in theirs]
    rows = []
    for measure, (read, lower) in MEASURES.items():
        pairs = [(read(ours[seed]), read(theirs[seed])) for seed in seeds]
        whole = [(a, b) for a, b in pairs if a is not None and b is not None]
        if len(whole) > 1:
            rows.append(compare(name, baseline, measure, [a for a, _ in whole], [b for _, b in whole],
                                lower_is_better=lower))  # fmt: skip
    mine, other = (
        [each[seed]["predictions"] for seed in seeds if "predictions" in each[seed]] for each in (ours, theirs)
    )
    if len(seeds) > 1 and len(mine) == len(other) == len(seeds):
        rows.append(compare_churn(name, baseline, mine, other))
    return rows


def _part(*path: str) -> Callable[[Entry], float | None]:
    def read(entry: Entry) -> float | None:
        value: Any = entry
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value if isinstance(value, int | float) else None

    return read


def _mean(*path: str) -> Callable[[Entry], float | None]:
    """The mean over all numbers below a place: over strengths, scales, kinds."""

    def read(entry: Entry) -> float | None:
        value: Any = entry
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        numbers = _numbers(value)
        return statistics.fmean(numbers) if numbers else None

    return read


def _numbers(value: Any) -> list[float]:
    if isinstance(value, Mapping):
        return [x for part in value.values() for x in _numbers(part)]
    if isinstance(value, list):
        return [x for part in value for x in _numbers(part)]
    return [float(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []


MEASURES: dict[str, tuple[Callable[[Entry], float | None], bool]] = {
    "gap": (_part("overfitting", "gap"), True),
    "jitter_loss": (_part("jitter", "loss"), True),
    "jitter_grad_norm": (_part("jitter", "grad_norm"), True),
    "input_noise": (_mean("sensitivity", "inputs", "accuracy"), False),
    "weight_noise": (_mean("sensitivity", "weights", "accuracy"), False),
    "corruption": (_mean("robustness", "corruptions"), False),
    "pgd": (_mean("robustness", "attacks", "pgd", "accuracy"), False),
    "attribution": (_part("attribution", "gradient_input", "rank"), False),
}
"""What arms are compared in beside their scores: how it is read, and whether lower is better."""
