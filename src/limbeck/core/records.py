"""Plain data about steps, scores and runs, and files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from limbeck.core.errors import CheckpointError, problem

__all__ = [
    "FaultRecord",
    "StepRecord",
    "append_line",
    "as_yaml",
    "read_json",
    "read_lines",
    "read_object",
    "write_json",
    "write_lines",
    "write_text",
]


class StepRecord(NamedTuple):
    """What one optimizer step did. Losses are means over the valid samples of the step."""

    step: int
    epoch: int
    epoch_end: bool
    loss: float
    terms: Mapping[str, float]
    rate: float
    grad_norm: float
    seconds: float
    skipped: int = 0


class FaultRecord(NamedTuple):
    """A step whose loss or gradient was not finite: which terms were not, and the samples it was made of."""

    step: int
    epoch: int
    what: str
    terms: tuple[str, ...]
    ids: tuple[int, ...]


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: to a neighbour, synced, then renamed over it.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as error:
        raise CheckpointError(
            problem(str(path), f"cannot be written ({error.strerror or error})", "choose a folder that can be written")
        ) from None


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all; NaN and infinity become null, so that any reader can read it."""
    write_text(path, json.dumps(_finite(value), indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON, or say what is wrong with the file.

    Raises:
        CheckpointError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            problem(str(path), f"cannot be read ({error.strerror})", "check the path, or make the run again")
        ) from None
    except ValueError as error:
        raise CheckpointError(
            problem(str(path), f"is damaged: it is not JSON ({error})", "restore it, or delete it and run again")
        ) from None


def read_object(path: Path, *needed: str) -> dict[str, Any]:
    """Read a JSON object that has the needed keys.

    Raises:
        CheckpointError: the file is missing, is not JSON, or holds something else.
    """
    found = read_json(path)
    lacks = [key for key in needed if key not in found] if isinstance(found, dict) else []
    if not isinstance(found, dict) or lacks:
        wrong = f"is damaged: it has no {lacks[0]!r}" if lacks else f"is damaged: it holds a {type(found).__name__}"
        raise CheckpointError(problem(str(path), wrong, "restore it, or delete it and run again"))
    return found


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Append one JSON line.

    Raises:
        CheckpointError: the file cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(value)) + "\n")
    except OSError as error:
        wrong = f"cannot be written ({error.strerror or error})"
        mend = "free space there, or make it writable; the same command then goes on"
        raise CheckpointError(problem(str(path), wrong, mend)) from None


def write_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Write a file of JSON lines whole or not at all."""
    write_text(path, "".join(json.dumps(_finite(value)) + "\n" for value in values))


def as_yaml(value: Any) -> str:
    """Plain data as YAML that reads back the same."""
    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)
    # U+0085 ends a line in YAML, and the writer does not escape it; without unicode it escapes all.
    return text if "\x85" not in text else yaml.safe_dump(value, sort_keys=False, width=100)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, one a line. A line cut short by a crash is passed over.

    Raises:
        CheckpointError: the file cannot be read as text.
    """
    if not path.exists():
        return
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        mend = "restore it, or delete it to do without the curves"
        raise CheckpointError(problem(str(path), f"is damaged: it cannot be read ({error})", mend)) from None
    for line in lines:
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict):
                yield found


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
