"""Where a search's models are made: changed, trained, weighed and scored, each of it once and on record.

What is on record is read back when the same search is begun again: costs and scores by what was done to a model,
trainings by their checkpoints. So a search that was killed goes the same way, without doing again what it had done.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.compress import Evidence, Plan, Prune, apply, plan, reestimate, stored_bytes
from limbeck.compress.units import coupled
from limbeck.core.coupling import Coupling
from limbeck.core.errors import ConfigError, LimbeckError
from limbeck.core.folder import RunFolder
from limbeck.core.seeds import derive
from limbeck.core.taps import Reader
from limbeck.core.types import Named
from limbeck.data import Batches, Source
from limbeck.evaluation import compare_latency, score
from limbeck.evaluation.macs import count_macs
from limbeck.export.integers import quantize
from limbeck.export.onnx import OnnxModel, to_onnx
from limbeck.job import Job, evaluation
from limbeck.levers import Step
from limbeck.member import train_member
from limbeck.search import Lever

__all__ = ["Candidate", "Workshop", "first_of"]

_STRUCTURAL = ("prune", "depth", "merge_units")
_OF_UNITS = ("prune", "merge_units")
_READ = 512
"""Samples that an operation reads for activations and gradients, and that batch statistics are taken from."""
_SENSITIVE = (0.25, 0.5, 0.75)
_JUDGED = 1000
"""Validation samples that the sensitivity of a group is measured on."""
_TIMED = 1.5
"""Seconds that a latency is measured for, while a search compares."""


@dataclass(frozen=True)
class Candidate:
    """A model that a search has met: how it was made, in floats, and as the file that comes of it at the end."""

    key: str
    model: nn.Module
    plans: tuple[Plan, ...] = ()
    step: Step | None = None
    strength: float | None = None
    parent: Candidate | None = None
    file: OnnxModel | None = None
    settled: list[bool] = field(default_factory=list)
    """Holds something once batch statistics are those of the changed model."""


class Workshop:
    """Makes, weighs, scores and repairs.

    Args:
        job: the training that repairs a model: data, teacher (the original), objective, settings.
        chain: the operations.
        folder: where it is on record.
        scratch: a folder for files that nobody keeps.
        batch: samples a call of which latency is measured.
        threads: that it is measured on; None leaves them as they are.
        timed: whether latency counts.
    """

    def __init__(
        self, job: Job, chain: Iterable[Step], folder: RunFolder, *, scratch: Path, batch: int, threads: int | None,
        timed: bool,
    ) -> None:  # fmt: skip
        self.job, self.folder, self.scratch = job, folder, scratch
        self.batch, self.threads, self.timed = batch, threads, timed
        self.steps = {step.lever.name: step for step in chain}
        self.files = "quantize" in self.steps
        self.known = {(line["what"], line["key"]): line["value"] for line in folder.lines if line["kind"] == "found"}
        self.example = first_of(job.val, batch)
        self.evidence = Evidence(batch=first_of(job.train, 4), batches=lambda: _batches(job.train, _READ),
                                 inputs=job.inputs, outputs=job.outputs, seed=derive(job.seed, "compress"))  # fmt: skip
        self.original = Candidate("original", copy.deepcopy(job.student).cpu())
        self._files: dict[str, OnnxModel] = {}
        self._coupled: tuple[str, Coupling] | None = None

    def change(self, candidate: Candidate, lever: Lever, strength: float | None) -> Candidate | None:
        """A changed copy; None where the operation finds nothing to do, or cannot do it."""
        step = self.steps[lever.name]
        key = f"{candidate.key} > {lever.name}" + ("" if strength is None else f" {strength:.6g}")
        if step.op.kind == "quantize":
            return self._quantized(candidate, step, key)
        op = step.at(strength)
        if isinstance(op, Prune) and lever.first is None:
            op = replace(op, ratios=self._shares(candidate, op, strength or 0.0))
        try:
            made = plan(candidate.model, op, self._evidence_of(candidate, op))
        except ConfigError as error:
            self._note("refused", key, str(error))
            return None
        if not made.changes:
            return None
        return Candidate(key, apply(candidate.model, made), (*candidate.plans, made), step, strength, candidate)

    def _quantized(self, candidate: Candidate, step: Step, key: str) -> Candidate | None:
        path = self.scratch / f"{derive(0, key):x}.int8.onnx"
        if key not in self._files:  # it is asked for before a step is taken, and again when it is its turn
            try:
                self._files[key] = quantize(candidate.model, _batches(self.job.train, step.op.samples), path,
                                            settings=step.op, inputs=self.job.inputs)  # fmt: skip
            except LimbeckError as error:
                self._note("refused", key, str(error))
                return None
        return replace(candidate, key=key, step=step, strength=None, parent=candidate, file=self._files[key])

    def _evidence_of(self, candidate: Candidate, op: Any) -> Evidence:
        """What an operation reads. Units are looked for, and proved, once in a model that many cuts begin with."""
        if op.kind not in _OF_UNITS:
            return self.evidence
        if self._coupled is None or self._coupled[0] != candidate.key:
            self._coupled = candidate.key, coupled(candidate.model, self.evidence)
        return replace(self.evidence, coupling=self._coupled[1])

    def weigh(self, candidate: Candidate) -> Mapping[str, float]:
        """Parameters, bytes as stored (of the file, where a chain ends in one), operations and seconds a call."""
        found: Mapping[str, float] = self._once("weighed", candidate.key, lambda: self._weighed(candidate))
        return found

    def _weighed(self, candidate: Candidate) -> dict[str, float]:
        model = candidate.model
        found = {
            "parameters": float(sum(parameter.numel() for parameter in model.parameters())),
            "macs": float(count_macs(model, self._arguments(model))),
        }
        exports = self.files and (self.timed or candidate.key == self.original.key)
        runs = candidate.file or (self._exported(candidate) if exports else model)
        if isinstance(runs, OnnxModel):
            found["bytes"] = float(runs.bytes)
        elif self.files:
            # What a file holds beside the weights stays the same, near enough for a step that others will follow.
            beside = self.weigh(self.original)["bytes"] - stored_bytes(self.original.model)
            found["bytes"] = beside + stored_bytes(model)
        else:
            found["bytes"] = float(stored_bytes(model))
        if self.timed:
            found["latency"] = self._latency(candidate, runs)
        return found

    def _latency(self, candidate: Candidate, runs: nn.Module) -> float:
        """Seconds a call, in turns with the original, and on the scale of its first measurement."""
        if candidate is self.original or candidate.key == self.original.key:
            alone = {"original": (runs, self._arguments(runs))}
            return compare_latency(alone, seconds=_TIMED, threads=self.threads)["original"].p50
        first = self.weigh(self.original)["latency"]
        base = self._exported(self.original) if self.files else self.original.model
        pair = {"original": (base, self._arguments(base)), "candidate": (runs, self._arguments(runs))}
        found = compare_latency(pair, seconds=_TIMED, threads=self.threads)
        return first * found["candidate"].p50 / found["original"].p50

    def _exported(self, candidate: Candidate) -> OnnxModel:
        """The model as a float file. Only the original's is kept at hand."""
        if candidate.key in self._files:
            return self._files[candidate.key]
        path = self.scratch / f"{derive(0, candidate.key):x}.onnx"
        made = to_onnx(candidate.model, self._arguments(candidate.model), path)
        if candidate.key == self.original.key:
            self._files[candidate.key] = made
        return made

    def _arguments(self, model: nn.Module) -> Any:
        """The example as a model's arguments."""
        if isinstance(model, OnnxModel):
            return tuple(model.arguments(self.example, self.job.inputs))
        reader = Reader(model, inputs=self.job.inputs, outputs=self.job.outputs)
        positional, keyword = reader.arguments(self.example)
        return keyword or positional

    def score(self, candidate: Candidate) -> Mapping[str, Any]:
        """Its scores on the validation samples."""
        found: Mapping[str, Any] = self._once("scored", candidate.key, lambda: self.scored(candidate, self.job.val))
        return found

    def scored(self, candidate: Candidate, source: Source) -> dict[str, Any]:
        """Its scores on any samples."""
        self._settle(candidate)
        batches = evaluation(source, self.job.workers).epoch(0)
        if candidate.file is not None:
            file = candidate.file
            return dict(score(file.answer, batches))
        reader = Reader(candidate.model, inputs=self.job.inputs, outputs=self.job.outputs)
        try:
            return dict(score(reader, batches))
        finally:
            reader.close()

    def _settle(self, candidate: Candidate) -> None:
        """Take batch statistics anew, where units or layers went."""
        if candidate.settled or candidate.file is not None or candidate.step is None:
            return
        candidate.settled.append(True)
        if candidate.step.op.kind in _STRUCTURAL:
            fresh = reestimate(candidate.model, _batches(self.job.train, _READ), forward=self._forward)
            candidate.model.load_state_dict(fresh.state_dict())

    def _forward(self, model: nn.Module, batch: Named) -> Any:
        positional, keyword = Reader(model, inputs=self.job.inputs, outputs=self.job.outputs).arguments(batch)
        return model(*positional, **keyword)

    def repair(self, candidate: Candidate, lever: Lever, strength: float | None) -> Candidate:
        """The model, trained to match the original; after each of its rounds, where the operation has several."""
        step = self.steps[lever.name]
        model, plans = candidate.model, candidate.plans
        assert candidate.parent is not None
        if step.rounds > 1 and isinstance(step.op, Prune):
            model, plans = candidate.parent.model, candidate.parent.plans
            for number, part in enumerate(replace(step.at(strength), rounds=step.rounds).parts()):
                made = plan(model, part, self.evidence)
                model, plans = apply(model, made), (*plans, made)
                model = self._trained(f"{candidate.key} round {number}", model)
        else:
            model = self._trained(candidate.key, copy.deepcopy(model))
        return replace(candidate, key=f"{candidate.key} > repaired", model=model, plans=plans, settled=[True])

    def _trained(self, key: str, model: nn.Module) -> nn.Module:
        name = f"repair-{derive(0, key) & 0xFFFFFFFFFFFF:012x}"
        job = replace(self.job, student=model, arm=name, folder_name=name)
        return train_member(job, self.folder).student.cpu()

    def _shares(self, candidate: Candidate, op: Prune, strength: float) -> dict[str, float]:
        """The share that each group of units loses: those whose loss hurts least go first and furthest.

        The hurt of a quarter, half and three quarters of each group by itself is measured once for a model, without
        repair. At strength s, of all these measurements in the order of their hurt the share s is made use of.
        """
        table = self._once("sensitivity", candidate.key, lambda: self._sensitivity(candidate, op))
        hurts = [
            (hurt, name, ratio) for name, row in table.items() for ratio, hurt in zip(_SENSITIVE, row, strict=True)
        ]
        shares = dict.fromkeys(table, 0.0)
        taken = strength * len(hurts)
        for index, (_, name, ratio) in enumerate(sorted(hurts)):
            # The last one counts by as much as it is reached, so that the strength moves without steps.
            part = min(1.0, max(0.0, taken - index))
            shares[name] = max(shares[name], shares[name] + part * (ratio - shares[name]))
        return shares

    def _sensitivity(self, candidate: Candidate, op: Prune) -> dict[str, list[float]]:
        some = self.job.val.subset(torch.arange(min(_JUDGED, len(self.job.val))))
        start = self.scored(candidate, some)
        measure = "accuracy" if "accuracy" in start else "r2"
        found = {}
        evidence = self._evidence_of(candidate, op)
        for group in op.groups(candidate.model, evidence):
            row: list[float] = []
            for ratio in _SENSITIVE:
                made = plan(candidate.model, replace(op, ratios={group: ratio}), evidence)
                less = Candidate("", apply(candidate.model, made), step=self.steps["prune"])
                row.append(max(start[measure] - self.scored(less, some)[measure], row[-1] if row else -1.0))
            found[group] = row
        return found

    def _once(self, what: str, key: str, make: Any) -> Any:
        """What is on record, or what is made and put there."""
        if (what, key) not in self.known:
            self._note(what, key, make())
        return self.known[what, key]

    def _note(self, what: str, key: str, value: Any) -> None:
        if (what, key) not in self.known:
            self.known[what, key] = value
            self.folder.log(kind="found", what=what, key=key, value=value, arm="", seed=self.job.seed, step=0)


def first_of(source: Source, count: int) -> Named:
    """The first samples of a source, as one batch."""
    return next(iter(Batches(source, batch_size=min(count, len(source)), shuffle=False).epoch(0)))


def _batches(source: Source, samples: int) -> Iterator[Named]:
    """The first samples of a source, in batches."""
    size = min(128, samples, len(source))
    return islice(Batches(source, batch_size=size, shuffle=False).epoch(0), -(-samples // size))
