"""What models cost to keep and to call, measured side by side: `costs` of `evidence.json`."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from limbeck.core.records import read_json, write_json
from limbeck.core.setting import as_plain
from limbeck.core.still import device_of
from limbeck.core.taps import Reader
from limbeck.data import Batches, Source
from limbeck.evaluation import Timing, compare_latency, footprint
from limbeck.evaluation.macs import Example
from limbeck.examining import Subject
from limbeck.export import save_model

__all__ = ["Costs", "disk", "example_of", "measure_costs"]


@dataclass(frozen=True)
class Costs:
    """What was measured, by arm, and what is to be said of the arms that could not be."""

    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def measure_costs(subjects: Mapping[str, Subject], how: Timing, source: Source, *, home: Path | None = None) -> Costs:
    """Parameters, bytes on disk, multiply-accumulates, peak memory and latency of each, as plain data.

    Counts, and memory (see `limbeck.evaluation.memory`), are for one sample; bytes are those of `model.safetensors` as
    a run saves it. Latency (see `limbeck.evaluation.compare_latency`) is measured for all together, at each batch size
    and number of threads; on a GPU at the first number alone. Models that cannot be called or saved are left out.

    Args:
        subjects: by arm: the model and how it is called.
        how: batch sizes, threads, seconds.
        source: what samples are taken from.
        home: a folder to keep it in; what is there and was measured in the same way of the same arms is only read.
    """
    file = home / "costs.json" if home is not None else None
    asked = {"how": as_plain(how), "arms": {name: _shape(subject.model) for name, subject in subjects.items()}}
    known = read_json(file) if file is not None and file.exists() else None
    if isinstance(known, dict) and known.get("asked") == asked:
        return Costs(dict(known["arms"]), tuple(known["notes"]))
    found: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    for name, subject in subjects.items():
        try:
            found[name] = _still(subject, source)
        except Exception as error:  # a user's module may refuse to be called or saved in ways of its own
            wrong = " ".join(str(error).split("To mend")[0].split())
            notes.append(f"What {name} costs was not measured. {wrong}")
    timed = {name: subjects[name] for name in found}
    counts = how.counts()
    if any(device_of(subject.model).type != "cpu" for subject in timed.values()):
        counts = counts[:1]
    sizes = sorted({min(size, len(source)) for size in how.batches})
    for size in sizes:
        examples = {name: (subject.model, example_of(subject, source, size)) for name, subject in timed.items()}
        for threads in counts:
            each = how.seconds / (len(sizes) * len(counts))
            for name, latency in compare_latency(examples, seconds=each, threads=threads).items():
                found[name]["latency"].append({k: v for k, v in as_plain(latency).items() if k != "repeats"})
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"asked": asked, "arms": found, "notes": notes})
    return Costs(found, tuple(notes))


def example_of(subject: Subject, source: Source, size: int) -> Example:
    """What the model is called with: the first samples of the source, as it takes them."""
    batch = subject.fit(next(iter(Batches(source, batch_size=size, shuffle=False).epoch(0))))
    reader = Reader(subject.model, inputs=subject.inputs, outputs=subject.outputs)
    try:
        positional, keyword = reader.arguments(batch)
    finally:
        reader.close()
    return keyword or positional


def disk(model: nn.Module) -> int:
    """Bytes of the model's `model.safetensors`, as `limbeck.export.save_model` writes it.

    Raises:
        CheckpointError: it cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        saved = save_model(Path(folder) / "model", model, lineage={}, card="")
        return (saved / "model.safetensors").stat().st_size


def _still(subject: Subject, source: Source) -> dict[str, Any]:
    """What needs no clock."""
    size = footprint(subject.model, example_of(subject, source, 1), latency=False)
    return {
        "parameters": size.parameters,
        "disk": disk(subject.model),
        "macs": size.macs,
        "peak_memory": size.peak_memory,
        "latency": [],
    }


def _shape(model: nn.Module) -> str:
    """What the time of a call depends on: layers, and where they are; not their weights."""
    described = [
        repr(model),
        *(f"{name} {tuple(p.shape)} {p.dtype} {p.device}" for name, p in model.named_parameters()),
    ]
    return hashlib.sha256("\n".join(described).encode()).hexdigest()[:16]
