"""A model as a folder: `model.safetensors`, `lineage.json` (how it came about), and `README.md`, its card."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model
from safetensors.torch import save_model as write_model
from torch import nn

from limbeck.core.errors import CheckpointError, problem
from limbeck.core.records import read_object, write_json, write_text

__all__ = ["load_weights", "read_lineage", "save_model"]


def save_model(
    folder: Path, model: nn.Module, *, lineage: Mapping[str, Any], card: str, dtype: torch.dtype | None = None
) -> Path:
    """Write weights, lineage and card, and return the folder. Tied weights are stored once.

    With `dtype` the floats are stored in that type (bfloat16: half the bytes), and loaded into a model of any other.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    model = model if dtype is None else copy.deepcopy(model).to(dtype)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        work = folder / ".model.safetensors"
        write_model(model, str(work))  # makes contiguous copies itself, and leaves the model's layout alone
        work.chmod(0o644)
        work.replace(folder / "model.safetensors")
    except OSError as error:
        mend = "choose a folder that can be written, with enough space"
        raise CheckpointError(problem(str(folder), f"cannot be written ({error.strerror or error})", mend)) from None
    write_json(folder / "lineage.json", {"format": 1, **lineage})
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


def load_weights(folder: Path, model: nn.Module) -> nn.Module:
    """Load saved weights into a model of the same architecture.

    Raises:
        CheckpointError: the file is damaged or belongs to another architecture.
    """
    try:
        load_model(model, str(folder / "model.safetensors"))
    except Exception as error:
        wrong = f"the weights cannot be loaded ({str(error).splitlines()[-1].strip()})"
        raise CheckpointError(problem(str(folder), wrong, "restore the file, or make the run again")) from None
    return model
