"""A run folder: what was asked, where it ran, what happened, what came out. One folder, one recipe.

`recipe.yaml` and `environment.json` are written when the run starts, `metrics.jsonl` grows, `scores.json`,
`student/` and `report.html` come at the end; `checkpoints/` holds what a killed run goes on from. Of several processes
the first one writes; one run at a time has the folder.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from limbeck.core.errors import CheckpointError, problem
from limbeck.core.lock import Lock
from limbeck.core.processes import first, wait
from limbeck.core.records import append_line, as_yaml, read_lines, write_json, write_lines, write_text

__all__ = ["RunFolder", "environment", "first_difference", "value_at"]


def environment(device: str = "cpu") -> dict[str, Any]:
    """Versions and machine, as a record."""
    found = {}
    for package in ("limbeck", "torch", "numpy", "accelerate", "safetensors"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return {
        **found,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "device": device,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def first_difference(a: Any, b: Any, path: str = "", *, but: Collection[str] = ()) -> str | None:
    """The dotted path at which two pieces of plain data first differ, or None; keys in `but` are passed over."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in [*(k for k in a if k not in but), *(k for k in b if k not in a and k not in but)]:
            inner = f"{path}.{key}" if path else str(key)
            if key not in a or key not in b:
                return inner
            found = first_difference(a[key], b[key], inner, but=but)
            if found:
                return found
        return None
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return next((found for i, (x, y) in pairs if (found := first_difference(x, y, f"{path}.{i}", but=but))), None)
    return None if a == b else path or "top"


def value_at(data: Any, path: str) -> Any:
    """The value at a dotted path, as `first_difference` gives it; keys may hold dots themselves."""
    if not path:
        return data
    if isinstance(data, Mapping):
        for key, value in data.items():
            if path == key or path.startswith(f"{key}."):
                return value_at(value, path[len(key) + 1 :])
        return "not there"
    head, _, rest = path.partition(".")
    return value_at(data[int(head)], rest) if isinstance(data, list) else data


_HOW = frozenset(
    {"device", "parallel", "workers", "checkpoint_seconds", "checkpoints", "trackers", "evidence", "seeds"}
)
"""Settings that say how a run is carried out, or how much of it, and not what comes out of a training."""


def _locked(path: Path) -> Lock:
    """The folder, made if need be, and held.

    Raises:
        CheckpointError: it cannot be made, or another run has it.
    """
    if path.exists() and not path.is_dir():
        raise CheckpointError(problem(str(path), "is a file", "name a folder for the run"))
    try:
        path.mkdir(parents=True, exist_ok=True)
        return Lock(path)
    except BlockingIOError:
        mend = "wait for it to end, or choose another folder with `out`"
        raise CheckpointError(problem(str(path), "another run is writing here", mend)) from None
    except OSError as error:
        wrong = f"cannot be written ({error.strerror or error})"
        raise CheckpointError(problem(str(path), wrong, "choose a folder that can be written")) from None


class RunFolder:
    """The files of a run; with no path, everything stays in memory and nothing can be resumed.

    It is a context manager: the folder is this run's alone until it is closed.
    """

    def __init__(self, path: Path | None, recipe: Mapping[str, Any], *, device: str = "cpu") -> None:
        self.path = path
        self.recipe = dict(recipe)
        self.environment = environment(device)
        self.lines: list[dict[str, Any]] = []
        self._lock: Lock | None = None
        if path is not None and first():
            self._lock = _locked(path)
            try:
                self._open(path)
            except BaseException:
                self.close()
                raise
        wait()
        if path is not None and not first():
            self.lines = list(read_lines(path / "metrics.jsonl"))

    def close(self) -> None:
        """Let others have the folder."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, path: Path) -> None:
        said = path / "recipe.yaml"
        if said.exists():
            try:
                before = yaml.safe_load(said.read_text(encoding="utf-8"))
            except (OSError, ValueError, yaml.YAMLError) as error:
                mend = "restore it, or choose another folder"
                raise CheckpointError(
                    problem(str(said), f"is damaged ({' '.join(str(error).split())})", mend)
                ) from None
            differs = first_difference(before, yaml.safe_load(yaml.safe_dump(self.recipe)), but=_HOW)
            if differs:
                wrong = f"this folder holds another run: `{differs}` is not the same"
                mend = "choose another folder with `out`, or delete this one"
                raise CheckpointError(problem(str(path), wrong, mend))
            if before != self.recipe:
                write_text(said, as_yaml(self.recipe))
        elif path.exists() and any(path.iterdir()):
            wrong = "the folder holds other files and no run"
            raise CheckpointError(problem(str(path), wrong, "choose a new or empty folder with `out`"))
        else:
            write_text(said, as_yaml(self.recipe))
        write_json(path / "environment.json", self.environment)
        metrics = path / "metrics.jsonl"
        self.lines = list(read_lines(metrics))
        if metrics.exists() and not metrics.read_bytes().endswith(b"\n"):
            write_lines(metrics, self.lines)  # a line that a crash cut short would swallow the next

    def checkpoints(self, arm: str = "", seed: int | None = None, stage: str = "") -> Path | None:
        """Where the checkpoints of one member, or of one of its stages, go."""
        if self.path is None:
            return None
        folder = self.path / "checkpoints"
        folder = folder / f"{arm}-{seed}" if arm else folder
        return folder / f"stage-{stage}" if stage else folder

    def log(self, **line: Any) -> None:
        """Add a line to the metrics."""
        self.lines.append(line)
        if self.path is not None and first():
            append_line(self.path / "metrics.jsonl", line)

    def rewind(self, arm: str, seed: int, step: int, stage: str = "") -> None:
        """Forget what a member wrote in this stage after this step: the resumed run will write it again."""

        def stays(line: Mapping[str, Any]) -> bool:
            own = (line.get("arm"), line.get("seed"), line.get("stage", "")) == (arm, seed, stage)
            return not own or line.get("step", 0) <= step

        kept = [line for line in self.lines if stays(line)]
        if len(kept) != len(self.lines) and self.path is not None and first():
            write_lines(self.path / "metrics.jsonl", kept)
        self.lines = kept

    def finish(self, scores: Mapping[str, Any], seconds: float, *, evidence: Mapping[str, Any] | None = None) -> None:
        """Write the scores, what was measured besides, and the time the run took into the environment."""
        if self.path is not None and first():
            write_json(self.path / "scores.json", scores)
            if evidence:
                write_json(self.path / "evidence.json", evidence)
            write_json(self.path / "environment.json", {**self.environment, "seconds": round(seconds, 2)})
