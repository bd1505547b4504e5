"""What was measured besides the scores (`evidence.json`), as tables, figures and pictures for the page."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from limbeck.report import charts, numbers
from limbeck.report.figures import Figure
from limbeck.report.reading import arms, finite, mapping, sequence, text
from limbeck.report.sections import styles

__all__ = ["MEASURES", "Table", "disagreements", "gallery", "sections"]

_PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=]+")

MEASURES = {
    "churn": ("Churn", "Share of the answers that change when nothing but the seed does. Lower is steadier."),
    "gap": ("Gap", "Accuracy on the training samples minus accuracy on the test samples. A large one is overfitting."),
    "jitter_loss": ("Jitter of the loss", "How much the training loss wobbles between records, beside its level."),
    "jitter_grad_norm": ("Jitter of the gradient", "The same for the length of the gradient."),
    "input_noise": ("Accuracy, noisy inputs", "Mean accuracy while noise of five sizes is added to the inputs."),
    "weight_noise": ("Accuracy, noisy weights", "Mean accuracy while noise of five sizes is added to the weights."),
    "corruption": ("Accuracy, corrupted inputs", "Mean accuracy on noisy, blurred, faded and shifted samples."),
    "pgd": ("Accuracy under attack", "Mean accuracy on inputs moved a little, step by step, to fool this very model."),
    "attribution": ("Looks where its teacher looks",
                    "Rank correlation of which inputs move the answer: 1 is the same, 0 is what chance gives."),
}  # fmt: skip
_SHARES = frozenset({"churn", "gap", "input_noise", "weight_noise", "corruption", "pgd"})


class Table(NamedTuple):
    """A table with its heading; the first cell of a row is its name."""

    name: str
    title: str
    lead: str
    head: list[str]
    rows: list[list[str]]
    figures: list[Figure]


def sections(scores: Mapping[str, Any], evidence: Mapping[str, Any]) -> list[Table]:
    """What there is to show, each part only where it was measured."""
    found = [_differences(scores, evidence), _own(scores, evidence), _rates(scores, evidence)]
    curves = _curves(scores, evidence)
    shown = [table for table in found if table.rows]
    if curves:
        lead = (
            "Thin lines are single seeds, strong lines their mean. Strengths and sizes are those of the documentation."
        )
        shown.append(Table("robustness", "On harder inputs, and in itself", lead, [], [], curves))
    return shown


def gallery(scores: Mapping[str, Any], evidence: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """For each sample its label, and pictures (caption, data URI): the sample, and what each model looks at."""
    labels = {arm.name: arm.label for arm in arms(scores)}
    rows = []
    for entry in map(mapping, sequence(evidence.get("gallery"))):
        maps = [mapping(each) for each in sequence(entry.get("maps"))]
        pairs = [("Sample", entry.get("image"))]
        pairs += [(labels.get(text(each.get("arm")), text(each.get("arm"))), each.get("image")) for each in maps]
        pictures = [(caption, uri) for caption, value in pairs if (uri := _picture(value))]
        if pictures:
            rows.append((text(entry.get("label")), pictures))
    return rows


def disagreements(evidence: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """The samples on which student and teacher differ most: picture, id, label, and both answers."""
    rows = []
    for entry in map(mapping, sequence(evidence.get("disagreements"))):
        answers = [mapping(entry.get(who)) for who in ("teacher", "student")]
        elder, own = (f"{text(a.get('class'))} ({numbers.percent(finite(a.get('confidence')), 0)})" for a in answers)
        rows.append((_picture(entry.get("image")), text(entry.get("id")), text(entry.get("label")), elder, own))
    return rows


def _picture(value: Any) -> str:
    return value if isinstance(value, str) and _PICTURE.fullmatch(value) else ""


def _differences(scores: Mapping[str, Any], evidence: Mapping[str, Any]) -> Table:
    labels = {arm.name: arm.label for arm in arms(scores)}
    rows = []
    for row in map(mapping, sequence(evidence.get("comparisons"))):
        key, mean = text(row.get("measure")), finite(row.get("mean"))
        if text(row.get("arm")) not in labels or mean is None:
            continue
        low, high = finite(row.get("low")), finite(row.get("high"))
        bounds = f"{_signed(key, low)} to {_signed(key, high)}" if low is not None and high is not None else "none"
        p, least = finite(row.get("p")), finite(row.get("least_p"))
        tested = numbers.DASH if p is None else f"{p:.3g}" + (f" (least possible {least:.3g})" if p == least else "")
        name = MEASURES.get(key, (key, ""))[0]
        rows.append([labels[text(row["arm"])], name, _signed(key, mean), bounds, tested, text(row.get("verdict"))])
    lead = (
        "Seed by seed against the student trained alone. p is how often chance alone, swapping the two at each seed, "
        "gives a difference as large; few seeds cannot make it small."
    )
    return Table("steadiness", "Steadier, sturdier, closer to its teacher?", lead,
                 ["Model", "Measure", "Difference", "Interval", "p", "Verdict"], rows, [])  # fmt: skip


def _signed(key: str, value: float | None) -> str:
    if value is None:
        return numbers.DASH
    return numbers.signed(100 * value, 1) + " points" if key in _SHARES else numbers.signed(value, 3)


def _own(scores: Mapping[str, Any], evidence: Mapping[str, Any]) -> Table:
    """Each model's own figures, mean over seeds."""
    rows = []
    chance = finite(
        mapping(mapping(mapping(evidence.get("random")).get("attribution")).get("gradient_input")).get("rank")
    )
    for arm in arms(scores):
        runs = _entries(evidence, arm.name)
        values = [finite(mapping(run.get("scores")).get("accuracy")) for run in arm.runs]
        accuracy = [value for value in values if value is not None]
        churn = finite(mapping(mapping(evidence.get("churn")).get(arm.name)).get("mean"))
        turns = sum(finite(mapping(run.get("overfitting")).get("turned")) is not None for run in runs)
        if runs:
            looks = (
                "its own" if arm.role == "teacher" else _number(_average(runs, "attribution", "gradient_input", "rank"))
            )
            rows.append([
                arm.label,
                numbers.percent(min(accuracy), 1) if accuracy else numbers.DASH,
                numbers.percent(churn, 1),
                numbers.percent(_average(runs, "overfitting", "gap"), 1),
                f"{turns} of {len(runs)}",
                _number(_average(runs, "temperature")),
                looks,
            ])  # fmt: skip
    lead = (
        "Means over seeds. Validation turned: seeds at which validation loss rose for good before training ended. "
        "Temperature: what softens the answers to honest confidence; above 1 the model is too sure."
    )
    if chance is not None:
        lead += f" Looks like its teacher: a network with random weights gets {_number(chance)}."
    head = ["Model", "Worst seed", "Churn", "Gap", "Validation turned", "Temperature", "Looks like its teacher"]
    return Table("own", "Steady, calibrated, understandable", lead, head, rows, [])


def _rates(scores: Mapping[str, Any], evidence: Mapping[str, Any]) -> Table:
    labels = {arm.name: arm.label for arm in arms(scores)}
    grids = {name: mapping(grid) for name, grid in mapping(evidence.get("rates")).items() if name in labels}
    rows, lines, coloured = [], [], styles(scores)
    for name, grid in grids.items():
        points = []
        for rate, runs, broke, values in zip(
            *(sequence(grid.get(key)) for key in ("rate", "runs", "diverged", "accuracy")), strict=False
        ):
            known = [x for value in sequence(values) if (x := finite(value)) is not None]
            mean = statistics.fmean(known) if known else None
            rows.append([labels[name], f"{finite(rate) or 0:g}", f"{text(broke)} of {text(runs)}",
                         numbers.percent(mean, 1)])  # fmt: skip
            if mean is not None and finite(rate) is not None:
                points.append((float(rate), mean))
        lines.append(charts.Line(labels[name], coloured.get(name, ""), [points]))
    svg = charts.line_chart(lines, title="Accuracy by learning rate", fraction=True)
    legend = [(line.style, line.name) for line in lines]
    figures = [Figure("Accuracy by learning rate", svg, legend)] if svg else []
    lead = "The same training at other learning rates: how often it broke down, and what it reached where it did not."
    return Table("rates", "Learning rates", lead, ["Model", "Rate", "Broke down", "Accuracy"], rows, figures)


_CURVES = (
    ("Noise", ("robustness", "corruptions", "noise"), None),
    ("Blur", ("robustness", "corruptions", "blur"), None),
    ("Contrast", ("robustness", "corruptions", "contrast"), None),
    ("Shift", ("robustness", "corruptions", "shift"), None),
    ("Attack in one step (FGSM)", ("robustness", "attacks", "fgsm", "accuracy"), "epsilon"),
    ("Attack step by step (PGD)", ("robustness", "attacks", "pgd", "accuracy"), "epsilon"),
    ("Noise on inputs", ("sensitivity", "inputs", "accuracy"), "scale"),
    ("Noise on weights", ("sensitivity", "weights", "accuracy"), "scale"),
    ("Share that is right, by confidence", ("reliability", "accuracy"), "confidence"),
)


def _curves(scores: Mapping[str, Any], evidence: Mapping[str, Any]) -> list[Figure]:
    coloured, drawn = styles(scores), []
    for caption, path, across in _CURVES:
        lines = []
        for arm in arms(scores):
            seeds = [_points(run, path, across) for run in _entries(evidence, arm.name)]
            if any(seeds):
                lines.append(charts.Line(arm.label, coloured.get(arm.name, ""), [seed for seed in seeds if seed]))
        svg = charts.line_chart(lines, title=f"Accuracy: {caption}", fraction=True)
        if svg:
            drawn.append(Figure(caption, svg, [(line.style, line.name) for line in lines]))
    return drawn


def _points(run: Mapping[str, Any], path: Sequence[str], across: str | None) -> list[charts.Point]:
    home: Any = run
    for key in path[:-1]:
        home = mapping(mapping(home).get(key))
    values = sequence(home.get(path[-1]))
    at = sequence(home.get(across)) if across else list(range(1, len(values) + 1))
    pairs = [(finite(x), finite(y)) for x, y in zip(at, values, strict=False)]
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def _entries(evidence: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    return [mapping(run) for run in sequence(mapping(evidence.get("arms")).get(name))]


def _average(runs: Sequence[Mapping[str, Any]], *path: str) -> float | None:
    values = []
    for run in runs:
        value: Any = run
        for key in path:
            value = mapping(value).get(key)
        if (number := finite(value)) is not None:
            values.append(number)
    return statistics.fmean(values) if values else None


def _number(value: float | None) -> str:
    return numbers.DASH if value is None else numbers.number(value, 2)
