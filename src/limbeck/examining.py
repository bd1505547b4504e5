"""What is measured of a trained model beside its scores, once, and kept beside its checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from limbeck.core.check import one_of, whole
from limbeck.core.errors import LimbeckError
from limbeck.core.normalize import Normalize
from limbeck.core.records import read_json, write_json
from limbeck.core.seeds import derive
from limbeck.core.setting import as_plain, setting
from limbeck.core.still import undisturbed
from limbeck.core.taps import Inputs, Outputs, Reader
from limbeck.core.types import Named
from limbeck.data import Source
from limbeck.evaluation import score
from limbeck.evaluation.attribution import attribution_agreement, randomised
from limbeck.evaluation.robustness import robustness
from limbeck.evaluation.sensitivity import sensitivity
from limbeck.job import evaluation, labelled
from limbeck.metrics import calibration, quality, stability

__all__ = ["Evidence", "Measure", "Subject", "attribution", "by_chance", "examine", "read_by", "some"]

Measure = Literal["robustness", "sensitivity", "attribution"]
_MOST_CLASSES = 30
_TRAINED_ON = 2000


@setting
class Evidence:
    """What is measured beside the scores. Reliability, confusion, overfitting, churn and jitter always are.

    Args:
        measures: "robustness" to corruptions and attacks, "sensitivity" to noise on inputs and weights, "attribution"
            held against the teacher's.
        samples: test samples for robustness and sensitivity.
        attributed: test samples for attribution.
    """

    measures: tuple[Measure, ...] = ("robustness", "sensitivity", "attribution")
    samples: int = 500
    attributed: int = 100

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        whole("evidence.samples", self.samples)
        whole("evidence.attributed", self.attributed)
        for measure in self.measures:
            one_of("evidence.measures", measure, get_args(Measure))

    def here(self) -> Evidence:
        """What of it can be measured with the packages that are installed: attributions need captum."""
        if "attribution" in self.measures and find_spec("captum") is None:
            return replace(self, measures=tuple(m for m in self.measures if m != "attribution"))
        return self


@dataclass(frozen=True)
class Subject:
    """A model and how it is called. `normalize` is what it needs applied to the batches of this run's data."""

    model: nn.Module
    inputs: Inputs = None
    outputs: Outputs = None
    normalize: Normalize | None = None

    def fit(self, batch: Named) -> Named:
        """The batch as this model takes it."""
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        moved = {name: value.to(device) for name, value in batch.items()}
        return moved if self.normalize is None else {**moved, "x": self.normalize(moved["x"])}


@contextmanager
def read_by(subject: Subject) -> Iterator[Any]:
    """The subject as a function from a batch to named tensors, gradients included."""
    reader = Reader(subject.model, inputs=subject.inputs, outputs=subject.outputs)
    try:
        yield lambda batch: reader(subject.fit(batch))
    finally:
        reader.close()


def examine(
    subject: Subject,
    how: Evidence,
    *,
    train: Source,
    val: Source,
    test: Source,
    teacher: Subject | None = None,
    lines: Sequence[Mapping[str, Any]] = (),
    home: Path | None = None,
) -> dict[str, Any]:
    """Everything that is known of one trained model, as plain data (an entry of `evidence.json`, and `predictions`).

    Args:
        subject: the model.
        how: what is measured.
        train: what it was trained on; it is scored there on samples that are not augmented.
        val: what its temperature is fitted on.
        test: what everything else is measured on.
        teacher: what attributions are held against.
        lines: the records of its training.
        home: a folder to keep it in; what is there and was measured in the same way is only read.
    """
    file = home / "examined.json" if home is not None else None
    asked = as_plain(how)
    if file is not None and file.exists():
        known = read_json(file)
        if isinstance(known, dict) and known.get("how") == asked:
            return dict(known["found"])
    with torch.random.fork_rng(devices=[]), read_by(subject) as forward:
        found = {**_training(lines), **_answers(subject, forward, val, test)}
        if "predictions" in found:
            found |= _overfitting(subject, forward, train, found["accuracy"], lines)
            found |= _measured(forward, subject, how, test, teacher)
    if file is not None:
        write_json(file, {"how": asked, "found": found})
    return found


def some(source: Source, most: int) -> Source:
    """At most so many labelled samples of the source, drawn once and for all."""
    known = (source.labels >= 0).nonzero().flatten() if source.labels is not None else torch.arange(len(source))
    if len(known) <= most == len(source):
        return source
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(derive(0, "evidence")))
    return source.subset(known[order[:most]].sort().values)


def _answers(subject: Subject, forward: Any, val: Source, test: Source) -> dict[str, Any]:
    """Answers to the test samples, and what follows from them; nothing for a model without class logits."""
    if not labelled(test):
        return {}
    answers = _logits(subject, forward, test)
    if answers is None or answers[0].shape[1] < 2:
        return {}
    logits, labels = answers
    classes, known = logits.shape[1], labels >= 0
    predictions = logits.argmax(dim=1)
    top = logits[known].double().softmax(dim=1).amax(dim=1)
    bins = calibration.reliability(top, predictions[known] == labels[known])
    found: dict[str, Any] = {
        "predictions": predictions.tolist(),
        "accuracy": quality.accuracy(predictions[known], labels[known]),
        "reliability": {
            "confidence": _plain(bins.confidence),
            "accuracy": _plain(bins.accuracy),
            "count": bins.samples,
        },
    }
    if classes <= _MOST_CLASSES:
        table = quality.confusion(predictions[known], labels[known], num_classes=classes)
        found["confusion"] = torch.as_tensor(table).tolist()
    if labelled(val):
        held_out = _logits(subject, forward, val)
        if held_out is not None and bool((held_out[1] >= 0).any()):
            told, truth = held_out
            found["temperature"] = calibration.fit_temperature(told[truth >= 0], truth[truth >= 0])
    return found


def _logits(subject: Subject, forward: Any, source: Source) -> tuple[Tensor, Tensor] | None:
    """Logits [N, C] and class labels [N]; None for outputs of another shape and labels that are no classes."""
    told, labels = [], []
    with undisturbed(subject.model):
        for batch in evaluation(source).epoch(0):
            logits, y = forward(batch)["logits"], batch.get("y")
            if logits.dim() != 2 or y is None or y.dim() != 1 or y.is_floating_point():
                return None  # at the first batch, before answers over tokens fill the memory
            told.append(logits.float().cpu())
            labels.append(y)
    return torch.cat(told), torch.cat(labels)


def _plain(values: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


def _training(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How steadily it was trained."""
    steps = [line for line in lines if line.get("kind") == "step"]
    found = {}
    for name in ("loss", "grad_norm"):
        values = [line[name] for line in steps if isinstance(line.get(name), int | float)]
        try:
            found[name] = stability.jitter(values)
        except LimbeckError:  # too few points, or none that are finite
            continue
    return {"jitter": found} if found else {}


def _overfitting(
    subject: Subject, forward: Any, train: Source, accuracy: float, lines: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Scores on what it was trained on, beside its accuracy on the test samples, and whether validation turned."""
    if not labelled(train):
        return {}
    with undisturbed(subject.model):
        own = score(forward, evaluation(some(train, _TRAINED_ON)).epoch(0))
    found: dict[str, Any] = {"gap": own["accuracy"] - accuracy}  # type: ignore[operator]
    epochs = [(line["epoch"], line["validation"]["nll"]) for line in lines if _has_nll(line)]
    if epochs:
        turn = stability.turned([epoch for epoch, _ in epochs], [value for _, value in epochs])
        best = min(epochs, key=lambda pair: pair[1])
        found |= {
            "turned": None if turn is None else turn.epoch,
            "best": {"epoch": best[0], "nll": best[1]},
            "last": {"epoch": epochs[-1][0], "nll": epochs[-1][1]},
        }
    return {"train": {name: own[name] for name in ("accuracy", "nll")}, "overfitting": found}


def _has_nll(line: Mapping[str, Any]) -> bool:
    return line.get("kind") == "epoch" and isinstance((line.get("validation") or {}).get("nll"), float)


def _measured(forward: Any, subject: Subject, how: Evidence, test: Source, teacher: Subject | None) -> dict[str, Any]:
    """What takes passes of its own, on some of the test samples."""
    found: dict[str, Any] = {}
    chosen = some(test, how.samples)
    if "robustness" in how.measures and _one_input(chosen):
        found["robustness"] = _robust(forward, subject, chosen)
    if "sensitivity" in how.measures and _one_input(chosen):
        found["sensitivity"] = sensitivity(subject.model, evaluation(chosen).epoch(0), forward=forward)
    if "attribution" in how.measures and teacher is not None and _one_input(chosen):
        found["attribution"] = attribution(subject, teacher, how, test)
    return found


def _robust(forward: Any, subject: Subject, chosen: Source) -> dict[str, Any]:
    with undisturbed(subject.model):
        return robustness(forward, evaluation(chosen).epoch(0), normalize=chosen.normalize)


def attribution(subject: Subject, teacher: Subject, how: Evidence, test: Source) -> dict[str, Any]:
    """How far the model's attributions agree with the teacher's; empty where they cannot be made."""
    batches = list(evaluation(some(test, how.attributed)).epoch(0))
    return attribution_agreement(subject, teacher, batches, samples=how.attributed)


def by_chance(subject: Subject, teacher: Subject, how: Evidence, test: Source) -> dict[str, Any]:
    """The agreement of a network with random weights: what none at all would give."""
    drawn = Subject(randomised(subject.model, derive(0, "random")), subject.inputs, subject.outputs, subject.normalize)
    return attribution(drawn, teacher, how, test)


def _one_input(source: Source) -> bool:
    """Whether samples are one array of floats (or pixels), so that noise and gradients on it have a meaning."""
    batch = next(iter(evaluation(source).epoch(0)))
    return "x" in batch and batch["x"].is_floating_point()
