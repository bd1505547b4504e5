"""A model as a folder: `model.safetensors`, `lineage.json` (how it came about), and `README.md`, its card."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, load_model, save_file
from safetensors.torch import save_model as write_model
from torch import nn

from limbeck.compress.base import Plan, frame, lean
from limbeck.compress.stored import pack, stored_places, unpack
from limbeck.core.errors import CheckpointError, LimbeckError, problem
from limbeck.core.records import read_object, write_json, write_text

__all__ = ["load_weights", "read_lineage", "rebuild", "save_model"]


def save_model(
    folder: Path, model: nn.Module, *, lineage: Mapping[str, Any], card: str, operations: Iterable[Plan] = ()
) -> Path:
    """Write weights, lineage and card, and return the folder.

    Tied weights are stored once, sparse and shared ones in short: kept values and a bit a weight, or a codebook and
    the least bits that tell its entries apart.

    Args:
        folder: where to.
        model: what to save.
        lineage: what it is and how it came about, as plain data.
        card: the text of its README.
        operations: the plans that made it of its base, in their order; what the weights hold is left out of them.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        work = folder / ".model.safetensors"
        if any(stored_places(model)):
            save_file(pack(model), str(work))
        else:
            write_model(model, str(work))  # makes contiguous copies itself, and leaves the model's layout alone
        work.chmod(0o644)
        work.replace(folder / "model.safetensors")
    except OSError as error:
        mend = "choose a folder that can be written, with enough space"
        raise CheckpointError(problem(str(folder), f"cannot be written ({error.strerror or error})", mend)) from None
    plans = [lean(plan) for plan in operations]
    write_json(folder / "lineage.json", {"format": 1, **lineage, **({"operations": plans} if plans else {})})
    write_text(folder / "README.md", card)
    return folder


def read_lineage(folder: Path) -> dict[str, Any]:
    """What a saved model is and how it came about.

    Raises:
        CheckpointError: the folder holds no saved model.
    """
    if not (folder / "model.safetensors").exists():
        mend = "name the folder of a finished run, or the folder `student` in it"
        wrong = "there is no model.safetensors here" if folder.is_dir() else "there is no such folder"
        raise CheckpointError(problem(str(folder), wrong, mend))
    lineage = read_object(folder / "lineage.json", "base")
    if not isinstance(lineage["base"], dict):
        wrong = "is damaged: its `base` is no mapping"
        raise CheckpointError(problem(str(folder / "lineage.json"), wrong, "restore it, or make the run again"))
    return lineage


def rebuild(folder: Path, base: nn.Module, operations: Any) -> nn.Module:
    """A copy of the base model, changed as a lineage's operations say, with the saved weights.

    Raises:
        CheckpointError: the operations are damaged or were made for another model, or the weights do not fit.
    """
    where = str(folder / "lineage.json")
    if not isinstance(operations, list):
        wrong = "is damaged: its `operations` are no list"
        raise CheckpointError(problem(where, wrong, "restore it, or compress the model again"))
    try:
        model = frame(base, operations)
    except Exception as error:  # a damaged plan may fail in any way
        said = str(error).splitlines()[0].rstrip(".") if isinstance(error, LimbeckError) else repr(error)
        wrong = f"its operations cannot be replayed on this {type(base).__name__} ({said})"
        mend = "give the base model that was compressed, as its own constructor makes it, or restore the file"
        raise CheckpointError(problem(where, wrong, mend)) from None
    return load_weights(folder, model)


def load_weights(folder: Path, model: nn.Module) -> nn.Module:
    """Load saved weights into a model of the same architecture.

    Raises:
        CheckpointError: the file is damaged or belongs to another architecture.
    """
    try:
        if any(stored_places(model)):
            unpack(model, load_file(folder / "model.safetensors"))
        else:
            load_model(model, str(folder / "model.safetensors"))
    except Exception as error:
        wrong = f"the weights cannot be loaded ({str(error).splitlines()[-1].strip()})"
        raise CheckpointError(problem(str(folder), wrong, "restore the file, or make the run again")) from None
    return model
