"""The files of a store as a whole: beginning it, keeping what is shared, and looking every file over."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch import Tensor

from limbeck.core.errors import CheckpointError, problem
from limbeck.core.lock import Lock
from limbeck.targets.plan import FORMAT, Manifest, digest
from limbeck.targets.shard import REMAKE, Look, look, mapped, packed, place, replace

__all__ = ["CONSTANTS", "IDS", "alone", "begin", "check_shared", "keep_shared", "look_over", "sealed_faults"]

IDS = {"format": FORMAT, "holds": "ids"}
CONSTANTS = {"format": FORMAT, "holds": "constants"}


def begin(folder: Path, wanted: Manifest) -> None:
    """Write the manifest of a new store, unless another process did so first.

    Raises:
        CheckpointError: the folder is a file, holds other things, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(problem(str(folder), "is a file", "name a folder for the store"))
    if folder.exists():
        strange = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".manifest.json.")]
        if strange and "manifest.json" not in strange:
            wrong = f"the folder holds other files ({min(strange)}) and no store"
            raise CheckpointError(problem(str(folder), wrong, "choose a new or empty folder with `out`"))
    place(folder / "manifest.json", (json.dumps(wanted.plain(), indent=2) + "\n").encode())


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Alone among this machine's processes in changing the manifest, where the file system can lock.

    Where it cannot, all still write the same bytes for the same plan; only extending a store while another process
    seals it needs the lock.
    """
    lock = Lock(folder, block=True)
    try:
        yield
    finally:
        lock.release()


def keep_shared(folder: Path, manifest: Manifest, rising: Tensor, given: Mapping[str, Tensor]) -> None:
    """See that ids and constants are there and are those of the manifest; write them where they are not.

    Raises:
        CheckpointError: constants that this caller was not given are lost, or a file cannot be written.
    """
    data = packed({"ids": rising}, IDS)
    path = folder / "ids.safetensors"
    if look(path, IDS).fault or path.read_bytes() != data:
        replace(path, data)
    path = folder / "constants.safetensors"
    if not manifest.constants:
        return
    there = {} if look(path, CONSTANTS).fault else mapped(path, CONSTANTS)
    if set(there) == set(manifest.constants) and all(_is(manifest, name, x) for name, x in there.items()):
        return
    merged = {name: x for name, x in {**there, **given}.items() if name in manifest.constants}
    lost = [name for name in manifest.constants if name not in merged or not _is(manifest, name, merged[name])]
    if lost:
        wrong = f"the constant {lost[0]!r} is missing or damaged"
        raise CheckpointError(problem(str(path), wrong, "run the `limbeck remember` that stored it again"))
    replace(path, packed(merged, CONSTANTS))


def check_shared(folder: Path, manifest: Manifest, *, verify: bool) -> None:
    """Refuse a store whose ids or constants are damaged, or are those of another; `verify=False` reads names only.

    Raises:
        CheckpointError: they are; the file is named.
    """
    recorded = {"ids": manifest.samples.get("sha256")}
    _check_file(folder / "ids.safetensors", IDS, recorded, verify=True)
    if manifest.constants:
        recorded = {name: about["sha256"] for name, about in manifest.constants.items()}
        _check_file(folder / "constants.safetensors", CONSTANTS, recorded, verify=verify)


def _check_file(path: Path, identity: Mapping[str, object], recorded: Mapping[str, object], *, verify: bool) -> None:
    fault = look(path, identity).fault if verify else None
    if not fault:
        there = mapped(path, identity)
        same = set(there) == set(recorded)
        if not same or (verify and any(digest(x) != recorded[name] for name, x in there.items())):
            fault = "it holds other values than those on record"
    if fault:
        raise CheckpointError(problem(str(path), f"this file of the store is no good: {fault}", REMAKE))


def look_over(
    folder: Path, manifest: Manifest, places: Sequence[tuple[str, int, int]] | None = None
) -> dict[str, Look]:
    """A look at every file of the plan, or of some places of it, in a few threads: hashing lets others run."""
    places = manifest.places if places is None else places
    files = [manifest.plan.file(*at) for at in places]

    def see(at: tuple[str, int, int]) -> Look:
        return look(folder / manifest.plan.file(*at), manifest.identity(*at))

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(files, pool.map(see, places), strict=True))


def sealed_faults(folder: Path, manifest: Manifest, seen: Mapping[str, Look] | None) -> dict[str, str]:
    """What is wrong with the files of a sealed store; their presence and size alone if none was looked at."""
    faults = {}
    for file in (manifest.plan.file(*at) for at in manifest.places):
        about = manifest.shards.get(file)
        path = folder / file
        if about is None:
            faults[file] = "it is not on record"
        elif not path.exists():
            faults[file] = "it is missing"
        elif path.stat().st_size != about["bytes"]:
            faults[file] = f"it has {path.stat().st_size} bytes, {about['bytes']} are on record"
        elif seen is not None and (seen[file].fault or seen[file].sha256 != about["sha256"]):
            faults[file] = seen[file].fault or "it is not the file on record"
    return faults


def _is(manifest: Manifest, name: str, x: Tensor) -> bool:
    about = manifest.constants[name]
    return bool(digest(x) == about["sha256"] and list(x.shape) == about["shape"])
