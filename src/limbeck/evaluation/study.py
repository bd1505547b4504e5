"""Several runs beside each other: one document with every score, its spread, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.metrics.intervals import paired, summary
from limbeck.metrics.resampling import bootstrap, permutation_test
from limbeck.metrics.stability import churn

__all__ = ["LOWER_IS_BETTER", "compare", "compare_churn", "document"]

LOWER_IS_BETTER = frozenset(
    {"nll", "brier", "ece", "adaptive_ece", "teacher_kl", "mse", "mae", "teacher_mse", "perplexity"}
)
_COMPARED = ("accuracy", "macro_f1", "nll", "ece", "mse", "r2", "spearman")
_SHARES = frozenset({"accuracy", "macro_f1", "ece"})


def document(
    *,
    title: str,
    story: str,
    split: str,
    arms: Mapping[str, Mapping[str, Any]],
    classes: Sequence[str] | None = None,
    baseline: str | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The content of `scores.json`: plain data from which tables, verdicts and the page are made.

    Args:
        title: the run's name.
        story: what was run, in a sentence or two.
        split: which data the scores are from.
        arms: by name: role, label, describe, objective, footprint, and `runs`, one a seed, each with its `scores`.
        classes: names of the classes.
        baseline: the arm to which other students are compared, run by run, over the seeds both have.
        notes: what a reader must know besides.
    """
    said = list(notes)
    comparisons = []
    for name, arm in arms.items():
        if baseline is not None and baseline in arms and arm["role"] in ("distilled", "student"):
            rows = [_compare(name, arm, baseline, arms[baseline], metric) for metric in _COMPARED]
            known = [row for row in rows if row]
            comparisons += known
            if known and known[0]["verdict"] != "better":
                said.append(_not_better(arm, arms[baseline]["label"], known[0]))
    said += [note for arm in arms.values() if (note := _peers(arm))]
    runs = [run for arm in arms.values() for run in arm["runs"]]
    return {
        "format": 1,
        "title": title,
        "story": story,
        "split": split,
        "samples": runs[0]["scores"]["samples"] if runs else 0,
        "classes": list(classes) if classes else None,
        "baseline": baseline,
        "complete": True,
        "arms": dict(arms),
        "summary": {name: _summaries(arm["runs"]) for name, arm in arms.items()},
        "comparisons": comparisons,
        "notes": said,
    }


def compare(
    arm: str, baseline: str, measure: str, ours: Sequence[float], theirs: Sequence[float], *, lower_is_better: bool
) -> dict[str, Any]:
    """The paired difference of two arms in one measure, seed by seed: bootstrap interval, exact test, verdict.

    Raises:
        DataError: there is no pair, or a value is NaN or infinite.
        ShapeError: the arms differ in the number of seeds.
    """
    result, test = bootstrap(ours, theirs), permutation_test(ours, theirs)
    verdict = "no clear difference"
    if result.low is not None and result.high is not None and result.low * result.high > 0:
        verdict = "better" if (result.mean < 0) == lower_is_better else "worse"
    row = {"arm": arm, "baseline": baseline, "measure": measure, **result._asdict()}
    return {**row, "p": test.p, "least_p": test.least, "verdict": verdict}


def compare_churn(
    arm: str, baseline: str, ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """The difference in churn: of each seed, how far its answers are from those of the other seeds, on average.

    Seeds share partners, so these values are not quite independent, and the interval is somewhat too narrow.
    """
    mine, other = (_own_churn(side) for side in (ours, theirs))
    return compare(arm, baseline, "churn", mine, other, lower_is_better=True)


def _own_churn(answers: Sequence[Sequence[int]]) -> list[float]:
    count = len(answers)
    shares = iter(churn(answers).pairs)
    totals = [0.0] * count
    for i in range(count):
        for j in range(i + 1, count):
            share = next(shares)
            totals[i] += share
            totals[j] += share
    return [total / (count - 1) for total in totals]


def _summaries(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | int]]:
    names = [k for k, v in runs[0]["scores"].items() if isinstance(v, float)] if runs else []
    values = {name: [run["scores"].get(name) for run in runs] for name in names}
    whole = {k: v for k, v in values.items() if all(x is not None and math.isfinite(x) for x in v)}
    return {name: summary(numbers)._asdict() for name, numbers in whole.items()}


def _compare(
    name: str, arm: Mapping[str, Any], baseline: str, base: Mapping[str, Any], metric: str
) -> dict[str, Any] | None:
    ours = {run["seed"]: run["scores"].get(metric) for run in arm["runs"]}
    theirs = {run["seed"]: run["scores"].get(metric) for run in base["runs"]}
    seeds = [seed for seed in ours if seed in theirs and ours[seed] is not None and theirs[seed] is not None]
    if not seeds:
        return None
    result = paired([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])
    sign = -1 if metric in LOWER_IS_BETTER else 1
    verdict = "no clear difference"
    if result.low is not None and result.high is not None and result.low * result.high > 0:
        verdict = "better" if result.mean * sign > 0 else "worse"
    row = {"arm": name, "baseline": baseline, "metric": metric, **result._asdict(), "verdict": verdict}
    return {**row, "p": permutation_test([ours[s] for s in seeds], [theirs[s] for s in seeds]).p}


def _peers(arm: Mapping[str, Any]) -> str:
    """How far peers ended apart; the one that is scored was not chosen for it."""
    each = [run["scores"]["peers"] for run in arm["runs"] if "peers" in run["scores"]]
    if not each:
        return ""
    low, high = (100 * sum(side(one) for one in each) / len(each) for side in (min, max))
    return (
        f"{arm['label']}: the first of {len(each[0])} peers is the student, chosen before training. Their accuracy "
        f"goes from {low:.2f} to {high:.2f} %" + (" (means over seeds)." if len(each) > 1 else ".")
    )


def _not_better(arm: Mapping[str, Any], base: str, row: Mapping[str, Any]) -> str:
    label, what = arm["label"], "distillation" if arm["role"] == "distilled" else "it"
    share = row["metric"] in _SHARES
    apart = f"{100 * row['mean']:+.2f} points" if share else f"{row['mean']:+.4g} in {row['metric'].upper()}"
    if row["verdict"] == "worse":
        return f"{label} is worse than {base} ({apart}): {what} does harm in this setting."
    if row["low"] is None:
        return f"{label} against {base}: {apart} with one seed, whose spread is unknown: run more seeds."
    return f"{label} is not clearly better than {base} ({apart}; the interval holds zero)."
