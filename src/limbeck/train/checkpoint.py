"""Checkpoints: a folder each, written whole or not at all, and exact resume.

`step-00000120/` holds `tensors.safetensors` (student, heads, what follows them, optimizer, random states) and
`state.json` (everything that is no tensor, and the digest of the tensors). It is made under another name and renamed,
so a folder with this name is complete. Tensors are whole whatever number of processes trained them, and any number can
go on: the first process writes, all read; each has random states of its own.
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
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from limbeck.core.errors import CheckpointError, problem
from limbeck.core.processes import collect, first, number
from limbeck.core.records import read_object, write_json
from limbeck.core.seeds import derive, seed_everything
from limbeck.core.sharding import parted, whole
from limbeck.train.followers import Follower

__all__ = ["latest", "load", "prune", "save", "save_best"]

_NAME = "step-{:08d}"


def save(
    folder: Path,
    step: int,
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    plain: Mapping[str, Any],
    *,
    followers: Mapping[str, Follower] | None = None,
) -> Path:
    """Write a checkpoint and return its folder. Every process must call; the first one writes.

    Raises:
        CheckpointError: the folder cannot be written; earlier checkpoints are untouched.
    """
    tensors = {f"student/{name}": whole(value) for name, value in student.state_dict().items()}
    for who, follower in (followers or {}).items():
        tensors |= {f"{who}/{name}": value for name, value in follower.plain().items()}
    state = optimizer.state_dict()
    numbers: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{name}"] = whole(value)
            else:
                numbers.setdefault(str(index), {})[name] = value
    random_tensors, random_plain = _random_states()
    target = folder / _NAME.format(step)
    meta = {
        "format": 2,
        "step": step,
        "optimizer": {"numbers": numbers, "groups": state["param_groups"]},
        "random": random_plain,
    }
    failed = _written(target, tensors | random_tensors, {**meta, **plain}) if first() else None
    _all_or_none(failed, folder, "a checkpoint", tensors)
    return target


def save_best(folder: Path, tensors: Mapping[str, Tensor], name: str = "best") -> None:
    """Write `best.safetensors` (or others beside it) whole or not at all. Every process must call; one writes.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    failed, work = None, folder / f".{name}.safetensors"
    if first():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_tensors(work, tensors)
            work.replace(folder / f"{name}.safetensors")
        except (OSError, SafetensorError) as error:
            work.unlink(missing_ok=True)
            failed = _said(error)
    _all_or_none(failed, folder, f"the {name} weights", tensors)


def _all_or_none(failed: str | None, folder: Path, what: str, tensors: Mapping[str, Tensor]) -> None:
    """Nobody goes on alone: what the first process could not write is every one's error."""
    told = next((said for said in collect(failed) if said), None)
    if told:
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        wrong = f"{what} of {size / 1e6:.1f} MB cannot be written ({told})"
        raise CheckpointError(problem(str(folder), wrong, "free space there, or choose another folder"))


def _said(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or str(error).splitlines()[0])


def _written(target: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str | None:
    """Make the folder under another name and rename it; return what went wrong, if anything did."""
    work = target.parent / f".{target.name}.{os.getpid()}"
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        digest = save_tensors(work / "tensors.safetensors", tensors)
        write_json(work / "state.json", {"digest": digest, **meta})
        shutil.rmtree(target, ignore_errors=True)
        work.replace(target)
    except (OSError, SafetensorError, CheckpointError) as error:
        shutil.rmtree(work, ignore_errors=True)
        return _said(error)
    return None


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


def load(
    checkpoint: Path,
    student: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    followers: Mapping[str, Follower] | None = None,
) -> dict[str, Any]:
    """Restore student, followers, optimizer and random states; return what else was saved.

    Raises:
        CheckpointError: a file is missing, damaged, or does not fit.
    """
    tensors, plain = _read(checkpoint)
    own = {k.removeprefix("student/"): v for k, v in tensors.items() if k.startswith("student/")}
    layout = student.state_dict()
    try:
        student.load_state_dict({k: parted(v, layout[k]) if k in layout else v for k, v in own.items()})
    except RuntimeError as error:
        wrong = f"it belongs to another student ({str(error).splitlines()[-1].strip()})"
        raise CheckpointError(problem(str(checkpoint), wrong, "choose another output folder")) from None
    for who, follower in (followers or {}).items():
        follower.restore({k.removeprefix(f"{who}/"): v for k, v in tensors.items() if k.startswith(f"{who}/")})
    if optimizer is not None:
        _restore_optimizer(optimizer, tensors, plain["optimizer"])
        _restore_random(tensors, plain["random"], plain["step"])
    return plain


def _read(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the rest, after a look at the digest."""
    path = checkpoint / "state.json"
    try:
        plain = read_object(path, "digest", "optimizer", "random", "step")
        path = checkpoint / "tensors.safetensors"
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != plain["digest"]:
            raise ValueError("its digest differs from the one on record")
        return load_file(path), plain
    except Exception as error:
        said = str(error).splitlines()[0].removeprefix(f"{path}: is damaged: ").rstrip(".")
        wrong = f"the checkpoint is damaged ({said})"
        mend = f"delete {checkpoint} to go on from the one before it, or from the start"
        raise CheckpointError(problem(str(path), wrong, mend)) from None


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], held: Mapping[str, Any]
) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for index, values in held["numbers"].items():
        state.setdefault(int(index), {}).update(values)
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, index, name = key.split("/")
            state.setdefault(int(index), {})[name] = parted(value, parameters[int(index)])
    groups = [{**g, "betas": tuple(g["betas"])} if "betas" in g else g for g in held["groups"]]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _random_states() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of every generator of every process: what is a tensor, and what is not."""
    own: dict[str, Any] = {"cpu": torch.get_rng_state(), "python": random.getstate(), "numpy": _numpy_random()}
    if torch.cuda.is_available():
        own["cuda"] = torch.cuda.get_rng_state()
    every = dict(enumerate(collect(own)))
    tensors = {f"random/{i}/{n}": s[n] for i, s in every.items() for n in ("cpu", "cuda") if n in s}
    return tensors, {str(i): {name: state[name] for name in ("python", "numpy")} for i, state in every.items()}


def _numpy_random() -> list[Any]:
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - what users' datasets draw from
    return [name, np.asarray(keys).tolist(), *rest]


def _restore_random(tensors: Mapping[str, Tensor], held: Mapping[str, Any], step: int) -> None:
    """This process's own states. One that was not there before draws afresh, from a seed that only it has."""
    own = number()
    if str(own) not in held:
        seed_everything(derive(step, "process", own))
        return
    torch.set_rng_state(tensors[f"random/{own}/cpu"])
    if torch.cuda.is_available() and f"random/{own}/cuda" in tensors:
        torch.cuda.set_rng_state(tensors[f"random/{own}/cuda"])
    version, keys, gauss = held[str(own)]["python"]
    random.setstate((version, tuple(keys), gauss))
    name, numbers, *rest = held[str(own)]["numpy"]
    np.random.set_state((name, np.array(numbers, dtype=np.uint32), *rest))  # noqa: NPY002
