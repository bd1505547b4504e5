"""A finished run's student in another form, proved against the student on the run's own data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.core.setting import pick
from limbeck.core.taps import Reader
from limbeck.data import Batches, Source
from limbeck.evaluation import score
from limbeck.evaluation.macs import Example
from limbeck.export import Quantize, quantize, read_lineage, save_model, to_onnx, to_program
from limbeck.export.parity import FLOAT, HALF, prove, write_parity
from limbeck.job import evaluation
from limbeck.recipes.saved import Saved, load, opened

__all__ = ["FORMS", "Exported", "export_run", "told"]

_SAMPLES = 256
_SCORES = ("accuracy", "macro_f1", "nll", "ece")


class Exported(NamedTuple):
    """Where an export is, and the record of its parity that lies beside it."""

    path: Path
    record: Mapping[str, Any]


def export_run(folder: str | Path, to: str, out: str | Path | None = None, changes: Sequence[str] = ()) -> Exported:
    """Export the saved student of a finished run.

    Args:
        folder: the run folder.
        to: a name in `FORMS`.
        out: the folder to write into; `export/NAME` in the run folder when None.
        changes: `a.b=c` for the run's recipe, where its data is elsewhere now.

    Raises:
        ConfigError: there is no such form, or a change cannot be made.
        CheckpointError: the folder holds no finished run, or the export cannot be written.
        ModelError: the student cannot be exported so, or the export's answers are not the student's.
        ExtraError: a package is missing.
    """
    form = pick(FORMS, to, "export")
    saved = opened(folder, changes)
    home = Path(out) if out is not None else Path(folder) / "export" / to
    return form(saved, home)


def told(exported: Exported) -> Iterator[tuple[str, str]]:
    """What a user should know of an export: a name and a line each."""
    record = exported.record
    yield "file", str(exported.path)
    before = record.get("float_bytes")
    yield "bytes", f"{record['bytes']}" + (f" ({record['bytes'] / before:.2f} of the float file)" if before else "")
    parity = record["parity"]
    alike = f"on {parity['samples']} samples {parity['agreement']:.4f} of the top classes are alike"
    apart = f"{parity['largest_difference']:.3g} ({parity['in_deviations']:.2g} standard deviations)"
    yield "parity", f"{alike}, the largest difference is {apart}"
    if "integer" in record:
        yield "method", f"{record['method']}: {record['why']}"
        yield "whole numbers", ", ".join(f"{name} {count}" for name, count in record["integer"].items())
        yield "floats", ", ".join(f"{name} {count}" for name, count in record["float"].items()) or "no layer"
        for each in record["left"]:
            yield "", f"{each['op']} ({each['count']}): {each['why']}"
    for name, (old, new) in _paired(record.get("scores")).items():
        yield name, f"{old:.4f} -> {new:.4f}"


def _paired(scores: Mapping[str, Mapping[str, float]] | None) -> dict[str, tuple[float, float]]:
    if not scores:
        return {}
    old, new = scores.values()
    return {name: (old[name], new[name]) for name in old if name in new}


def _onnx(saved: Saved, home: Path) -> Exported:
    made = to_onnx(saved.model, _example(saved), home / "model.onnx")
    return Exported(made.path, made.record)


def _int8(saved: Saved, home: Path) -> Exported:
    settings = Quantize()
    few = _samples(saved.splits.train, settings.samples)
    scorer = partial(_score, saved.splits.test)
    made = quantize(saved.model, [few], home / "model.onnx", settings=settings, score=scorer)
    return Exported(made.path, made.record)


def _program(saved: Saved, home: Path) -> Exported:
    made = to_program(saved.model, _example(saved), home / "model.pt2")
    return Exported(made.path, made.record)


def _folder(saved: Saved, home: Path, *, dtype: torch.dtype | None = None) -> Exported:
    """Weights, lineage and card, which `limbeck.load` reads; in half the bytes with a half type."""
    kept = {} if dtype is None else {"dtype": str(dtype).removeprefix("torch.")}
    card = (saved.home / "README.md").read_text(encoding="utf-8") if (saved.home / "README.md").is_file() else ""
    save_model(home, saved.model, lineage={**read_lineage(saved.home), **kept}, card=card, dtype=dtype)
    samples = _samples(saved.splits.test, _SAMPLES)
    before, after = Reader(saved.model).eval(), Reader(load(home)).eval()
    parity = prove("folder", before, after, samples, FLOAT if dtype is None else HALF)
    return Exported(home, write_parity(home / "model.safetensors", parity, kind="folder", **kept))


def _samples(source: Source, count: int) -> dict[str, Tensor]:
    return next(iter(Batches(source, batch_size=min(count, len(source)), shuffle=False).epoch(0)))


def _example(saved: Saved) -> Example:
    positional, keyword = Reader(saved.model).arguments(_samples(saved.splits.test, _SAMPLES))
    return keyword or positional


def _score(source: Source, model: nn.Module) -> dict[str, float]:
    found = dict(score(Reader(model), evaluation(source).epoch(0)))
    return {name: float(value) for name in _SCORES if isinstance(value := found.get(name), float)}


FORMS: dict[str, Callable[[Saved, Path], Exported]] = {
    "onnx": _onnx,
    "int8": _int8,
    "program": _program,
    "folder": _folder,
    "bfloat16": partial(_folder, dtype=torch.bfloat16),
}
"""What a student can become, by name."""
