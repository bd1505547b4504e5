"""One file of tensors that knows what it is, and in which no byte can change unseen.

It is plain safetensors with one key of metadata, `limbeck`: JSON (several keys would be written in random order) that
says what the file holds, and a SHA-256 of the whole file, taken with 64 zeros in the place of itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialized
from torch import Tensor

from limbeck.core.errors import CheckpointError, problem

__all__ = ["REMAKE", "Look", "look", "mapped", "packed", "place", "replace", "sweep"]

REMAKE = "run the same `limbeck remember` again: it remakes this file alone"
_KEY, _BLANK = "limbeck", b"0" * 64
_MARK = b'\\"sha256\\":\\"'  # as it stands in the header: JSON within JSON
_LONGEST = 100_000_000  # bytes of a header, as safetensors itself allows
_PIECE = 1 << 20

Identity = Mapping[str, Any]


class Look(NamedTuple):
    """What a look at a file found: its fault in words, or None; the SHA-256 of its bytes as they are; its size."""

    fault: str | None
    sha256: str = ""
    bytes: int = 0


def packed(tensors: Mapping[str, Tensor], identity: Identity) -> bytearray:
    """The bytes of a file that holds these tensors and says that it is `identity`: a function of the two alone."""
    about = json.dumps({**identity, "sha256": _BLANK.decode()}, sort_keys=True, separators=(",", ":"))
    data = bytearray(serialized({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, {_KEY: about}))
    at = data.index(_MARK) + len(_MARK)
    data[at : at + 64] = hashlib.sha256(data).hexdigest().encode()
    return data


def look(path: Path, identity: Identity) -> Look:
    """Read a file through, in pieces, and say whether it is whole and what it should be. Never raises."""
    own, plain = hashlib.sha256(), hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(8)
            length = int.from_bytes(head, "little")
            if len(head) < 8 or length > min(size - 8, _LONGEST):
                return Look("it is cut short" if size else "it is empty", bytes=size)
            head += file.read(length)
            at = head.find(_MARK) + len(_MARK)
            own.update(head[:at] + _BLANK + head[at + 64 :])
            plain.update(head)
            piece = memoryview(bytearray(_PIECE))
            while count := file.readinto(piece):
                own.update(piece[:count])
                plain.update(piece[:count])
    except OSError as error:
        return Look(
            "it is missing" if isinstance(error, FileNotFoundError) else f"it cannot be read ({error.strerror})"
        )
    fault = _fault(head, own.hexdigest(), identity)
    return Look(fault, plain.hexdigest(), size)


def _fault(head: bytes, digest: str, identity: Identity) -> str | None:
    try:
        about = json.loads(json.loads(head[8:])["__metadata__"][_KEY])
        said = about.pop("sha256")
    except (ValueError, KeyError, TypeError, AttributeError):
        return "its header is damaged"
    return "its digest differs from its content" if said != digest else _other(about, identity)


def _other(about: Mapping[str, Any], identity: Identity) -> str | None:
    if about == dict(identity):
        return None
    if {**about, "plan": 0} == {**identity, "plan": 0}:
        return "it belongs to another plan"
    names = [key for key in ("format", "holds", "output", "view", "block") if about.get(key) != identity.get(key)]
    return f"it holds something else: its {names[0] if names else 'identity'} differs"


def mapped(path: Path, identity: Identity) -> dict[str, Tensor]:
    """The tensors of a file, mapped: bytes are read when they are used. The file's claim is checked, its bytes not.

    Raises:
        CheckpointError: it is missing, no such file, or says that it is something else.
    """
    try:
        with safe_open(str(path), "pt") as file:
            about = json.loads((file.metadata() or {})[_KEY])
            about.pop("sha256")
            fault = _other(about, identity)
            found = {} if fault else {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except FileNotFoundError:
        fault = "it is missing"
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        fault = f"its header is damaged ({' '.join(str(error).split())})"
    if fault:
        raise CheckpointError(problem(str(path), f"this file of the store is no good: {fault}", REMAKE))
    return found


def replace(path: Path, data: bytes | bytearray) -> None:
    """Write a file whole or not at all, in the place of what may be there.

    Raises:
        CheckpointError: it cannot be written.
    """
    with _written(path, data) as work:
        try:
            work.replace(path)
        except FileNotFoundError:  # swept away by a process that sealed: it has seen the same bytes in place
            if not path.exists():
                raise


def place(path: Path, data: bytes | bytearray) -> None:
    """Write a file whole, unless one is there: of several processes, the first wins.

    Raises:
        CheckpointError: it cannot be written.
    """
    with _written(path, data) as work, contextlib.suppress(FileExistsError):
        try:
            os.link(work, path)
        except PermissionError:  # file systems without links: the last wins, and all are compared later
            if not path.exists():
                work.replace(path)


def sweep(folder: Path) -> None:
    """Delete what processes that died left half written in this folder."""
    for half in [*folder.glob(".*.safetensors.*"), *folder.glob(".manifest.json.*")]:
        with contextlib.suppress(OSError):
            half.unlink()


@contextlib.contextmanager
def _written(path: Path, data: bytes | bytearray) -> Any:
    """A synced neighbour of `path` with these bytes, gone afterwards unless renamed; the folder is synced too."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        work = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileNotFoundError):
                work.chmod(0o644)
            yield work
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        finally:
            work.unlink(missing_ok=True)
    except OSError as error:
        wrong = f"cannot be written ({error.strerror or error})"
        mend = "free space there, or make it writable; the same command then goes on"
        raise CheckpointError(problem(str(path), wrong, mend)) from None
