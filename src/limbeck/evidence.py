"""From results to what a run folder shows: arms, footprints, the saved student and its card."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from limbeck.core.errors import LimbeckError
from limbeck.core.setting import as_plain
from limbeck.costs import example_of
from limbeck.data import Source
from limbeck.evaluation import compare_latency
from limbeck.evaluation import footprint as measure
from limbeck.examining import Subject
from limbeck.export import save_model
from limbeck.objectives import Term
from limbeck.report import lines, table
from limbeck.teachers.signal import Teaching

__all__ = ["arm", "describe", "footprints", "incidents", "phrase", "save_student"]

_SECONDS = 1.0
"""For the latency in `scores.json`, which every run has."""


def describe(model: Any) -> str:
    """What a model or a teacher is, in a word or a setting."""
    return model.words if isinstance(model, Teaching) else type(model).__qualname__


def arm(
    role: str,
    label: str,
    words: str,
    *,
    runs: Sequence[Mapping[str, Any]],
    objective: Sequence[Term] = (),
    footprint: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One arm as it stands in `scores.json`."""
    return {
        "role": role,
        "label": label,
        "describe": words,
        "objective": [phrase(term) for term in objective],
        "runs": list(runs),
        "footprint": footprint,
    }


def phrase(term: Term) -> str:
    """A term in a few words: kind, weight, a temperature that is not 1, and what else is set otherwise than usual."""
    usual = {field.name: field.default for field in dataclasses.fields(term)} | {"temperature": 1.0}  # type: ignore[arg-type]
    plain = {k: v for k, v in as_plain(term).items() if k not in ("kind", "on", "head")}
    told = (k for k, v in plain.items() if k == "weight" or v not in (usual.get(k), 0.0))
    return f"{term.kind} " + ", ".join(f"{k} {_short(plain[k])}" for k in told)


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        rest = ", ".join(f"{k} {_short(v)}" for k, v in value.items() if k != "kind")
        return f"{value.get('kind', '')} ({rest})" if rest else str(value.get("kind", ""))
    if isinstance(value, list):
        return " + ".join(_short(item) for item in value)
    return str(value)


def footprints(subjects: Mapping[str, Subject], source: Source) -> dict[str, dict[str, Any]]:
    """The footprint of each model on one sample, latencies taken in turns; what can't be measured is left out."""
    found: dict[str, Any] = {}
    examples = {}
    for name, subject in subjects.items():
        example = example_of(subject, source, 1)
        try:
            found[name] = measure(subject.model, example, latency=False)
        except LimbeckError:
            continue
        examples[name] = (subject.model, example)
    for name, latency in compare_latency(examples, seconds=_SECONDS).items():
        found[name] = dataclasses.replace(found[name], latency=dataclasses.replace(latency, seconds=()))
    return {name: as_plain(value) for name, value in found.items()}


def save_student(folder: Path, model: nn.Module, document: Mapping[str, Any], base: Mapping[str, Any]) -> None:
    """Write the student with its lineage (what it is, how it was trained) and a card with its scores."""
    arms = document["arms"]
    lineage = {
        "base": dict(base),
        "operations": [],
        "objective": {name: entry["objective"] for name, entry in arms.items()},
    }
    rows = table(document)
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    text = "\n".join(
        [
            f"# {document['title']}",
            "",
            document["story"],
            "",
            *lines(document),
            "",
            head,
            f"|{'---|' * len(rows[0])}",
            *body,
            "",
            f"Scores are on the {document['split']} split ({document['samples']} samples).",
            "Load the weights with `limbeck.load(folder, into=model)`; they are safetensors, nothing is executed.",
            "",
        ]
    )
    save_model(folder, model, lineage=lineage, card=text)


def incidents(lines: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What a reader of the page should know of a run's records: steps left out, batches cut for want of memory."""
    notes = []
    by_member: dict[tuple[str, Any], list[Mapping[str, Any]]] = {}
    for line in lines:
        if line["kind"] == "fault" and line["done"] == "skipped":
            by_member.setdefault((line["arm"], line["seed"]), []).append(line)
    for (name, seed), faults in by_member.items():
        terms = sorted({term for fault in faults for term in fault["terms"]})
        where = f" in {' and '.join(terms)}" if terms else ""
        often = "1 step was" if len(faults) == 1 else f"{len(faults)} steps were"
        notes.append(
            f"{name}, seed {seed}: {often} left out, because the loss or its gradient was not finite{where}. Their "
            f"samples are in metrics.jsonl (lines of the kind fault)."
        )
    settled = {(line["asked"], line["used"], line["imitated"]) for line in lines if line["kind"] == "precision"}
    for asked, used, imitated in sorted(settled):
        if imitated:
            notes.append(
                "bfloat16 was asked for, and this processor imitates it: a step takes many times longer than in "
                'float32, which precision "auto" would have taken here.'
            )
        elif asked == "auto":
            notes.append(f"Students were trained in {used}, as suits this machine (precision is auto).")
    cut = {(line["arm"], line["seed"]): line["accumulate"] for line in lines if line["kind"] == "memory"}
    for (name, seed), pieces in cut.items():
        notes.append(f"{name}, seed {seed}: memory ran out, so each step was cut into {pieces} micro-batches.")
    return tuple(notes)
