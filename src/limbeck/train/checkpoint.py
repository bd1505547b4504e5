"""Checkpoints: a folder each, written whole or not at all, and exact resume.

`step-00000120/` holds `tensors.safetensors` (student, heads, optimizer, random states) and `state.json` (everything
that is no tensor, and the digest of the tensors). It is made under another name and renamed, so a folder with this name
is complete.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from limbeck.core.errors import CheckpointError, problem
from limbeck.core.records import read_object, write_json

__all__ = ["latest", "load", "prune", "save", "save_tensors"]

_NAME = "step-{:08d}"


def save(
    folder: Path, step: int, student: nn.Module, optimizer: torch.optim.Optimizer, plain: Mapping[str, Any]
) -> Path:
    """Write a checkpoint and return its folder.

    Raises:
        CheckpointError: the folder cannot be written; earlier checkpoints are untouched.
    """
    tensors = {f"student/{name}": value for name, value in student.state_dict().items()}
    state = optimizer.state_dict()
    numbers: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{name}"] = value
            else:
                numbers.setdefault(str(index), {})[name] = value
    tensors |= _random_tensors()
    target = folder / _NAME.format(step)
    work = folder / f".{target.name}.{os.getpid()}"
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        digest = save_tensors(work / "tensors.safetensors", tensors)
        meta = {"format": 1, "digest": digest, "optimizer": {"numbers": numbers, "groups": state["param_groups"]}}
        write_json(
            work / "state.json", {**meta, "python_random": random.getstate(), "numpy_random": _numpy_random(), **plain}
        )
        shutil.rmtree(target, ignore_errors=True)
        work.replace(target)
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        wrong = f"a checkpoint of {size / 1e6:.1f} MB cannot be written ({error.strerror or error})"
        raise CheckpointError(problem(str(folder), wrong, "free space there, or choose another folder")) from None
    return target


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write safetensors, synced, and return their SHA-256. Tensors that share memory are written apart."""
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, path)
    with path.open("rb+") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return digest


def latest(folder: Path) -> Path | None:
    """The checkpoint with the highest step, or None."""
    return max(folder.glob("step-*"), default=None)


def prune(folder: Path, *, keep: int) -> None:
    """Delete all but the last `keep` checkpoints, and what a process that died left half written."""
    for half in folder.glob(".step-*"):
        shutil.rmtree(half, ignore_errors=True)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def load(checkpoint: Path, student: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Restore student, optimizer and random states; return what else was saved.

    Raises:
        CheckpointError: a file is missing, damaged, or does not fit.
    """
    path = checkpoint / "state.json"
    try:
        plain = read_object(path, "digest", "optimizer", "python_random", "numpy_random")
        path = checkpoint / "tensors.safetensors"
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != plain["digest"]:
            raise ValueError("its digest differs from the one on record")
        tensors = load_file(path)
    except Exception as error:
        said = str(error).splitlines()[0].removeprefix(f"{path}: is damaged: ").rstrip(".")
        wrong = f"the checkpoint is damaged ({said})"
        mend = f"delete {checkpoint} to go on from the one before it, or from the start"
        raise CheckpointError(problem(str(path), wrong, mend)) from None
    try:
        student.load_state_dict({k.removeprefix("student/"): v for k, v in tensors.items() if k.startswith("student/")})
    except RuntimeError as error:
        wrong = f"it belongs to another student ({str(error).splitlines()[-1].strip()})"
        raise CheckpointError(problem(str(checkpoint), wrong, "choose another output folder")) from None
    if optimizer is not None:
        state: dict[int, dict[str, Any]] = {}
        for index, values in plain["optimizer"]["numbers"].items():
            state.setdefault(int(index), {}).update(values)
        for key, value in tensors.items():
            if key.startswith("optimizer/"):
                _, index, name = key.split("/")
                state.setdefault(int(index), {})[name] = value
        groups = [{**g, "betas": tuple(g["betas"])} if "betas" in g else g for g in plain["optimizer"]["groups"]]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        _restore_random(tensors, plain)
    return plain


def _random_tensors() -> dict[str, Tensor]:
    states = {"random/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"random/cuda/{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def _numpy_random() -> list[Any]:
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - what users' datasets draw from
    return [name, np.asarray(keys).tolist(), *rest]


def _restore_random(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    torch.set_rng_state(tensors["random/cpu"])
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            if f"random/cuda/{i}" in tensors:
                torch.cuda.set_rng_state(tensors[f"random/cuda/{i}"], i)
    version, keys, gauss = plain["python_random"]
    random.setstate((version, tuple(keys), gauss))
    name, numbers, *rest = plain["numpy_random"]
    np.random.set_state((name, np.array(numbers, dtype=np.uint32), *rest))  # noqa: NPY002
