"""The proof that goes with an exported file: its answers beside the model's, on real samples, within a stated bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from limbeck.core.errors import ModelError, problem
from limbeck.core.parity import Measured, Parity, measure
from limbeck.core.records import read_object, write_json
from limbeck.core.types import Named

__all__ = ["FLOAT", "HALF", "INT8", "beside", "prove", "read_parity", "write_parity"]

FLOAT = Parity(agreement=0.99, difference=1e-3)
"""For files in the model's own precision: rounding alone."""

HALF = Parity(agreement=0.97, difference=0.3)
"""For bfloat16."""

INT8 = Parity(agreement=0.9, difference=math.inf)
"""For 8 bits: what single values lose says little, what is answered says all."""


def prove(
    where: str,
    original: Callable[[Named], Named],
    exported: Callable[[Named], Named],
    samples: Named,
    bound: Parity,
) -> dict[str, Any]:
    """Hold an export's answers against the model's, and return the record of it.

    Args:
        where: what errors call the export.
        original: the model's answers by name.
        exported: the export's, by the same names.
        samples: real samples [N, …] by name.
        bound: how far they may be apart: the share of equal top classes, and the largest difference of any value in
            standard deviations of the model's output.

    Raises:
        ModelError: the answers are further apart than the bound.
    """
    with torch.no_grad():
        names = tuple(original({k: v[:2] for k, v in samples.items()}))
        measured = measure(original, exported, samples, outputs=names, layers=())
    if not measured.within(bound):
        seen = f"on {measured.samples} samples {measured.agreement:.4f} of the top classes are alike"
        apart = f"the largest difference is {measured.difference:.3g} standard deviations"
        wrong = f"its answers are not the model's: {seen}, {apart}; the bound is {_said(bound)}"
        mend = "give real samples, look for layers that behave otherwise in training, or allow more with `bound`"
        raise ModelError(problem(where, wrong, mend))
    return _record(measured, bound)


def _record(measured: Measured, bound: Parity) -> dict[str, Any]:
    return {
        "samples": measured.samples,
        "largest_difference": measured.absolute,
        "in_deviations": measured.difference,
        "agreement": measured.agreement,
        "bound": {"in_deviations": bound.difference, "agreement": bound.agreement},
    }


def _said(bound: Parity) -> str:
    apart = f", at most {bound.difference:g} standard deviations apart" if math.isfinite(bound.difference) else ""
    return f"{bound.agreement:g} of the top classes alike{apart}"


def beside(path: Path) -> Path:
    """Where the record of an exported file is: `NAME.parity.json`."""
    return path.with_name(f"{path.stem}.parity.json")


def write_parity(path: Path, parity: Mapping[str, Any], **about: Any) -> dict[str, Any]:
    """Write the record beside an exported file, and return it."""
    files = path.parent.glob(f"{path.name}*")  # large files have their weights in another beside them
    record = {
        "format": 1,
        "file": path.name,
        "bytes": sum(file.stat().st_size for file in files),
        **about,
        "parity": parity,
    }
    write_json(beside(path), record)
    return record


def read_parity(path: str | Path) -> dict[str, Any]:
    """The record beside an exported file.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    return read_object(beside(Path(path)), "file", "parity")
