"""Recipes and data small enough that a whole run takes a second, and the real command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import warm

COMMAND = Path(sys.executable).parent / "limbeck"
ENVIRONMENT = {**os.environ, **warm.ENVIRONMENT}
FEATURES, CLASSES = 4, 3


def limbeck(*args: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command itself, in a process of its own."""
    line = [str(COMMAND), *map(str, args)]
    return subprocess.run(line, capture_output=True, text=True, cwd=cwd, env=ENVIRONMENT, check=False, timeout=60)


def table(path: Path, rows: int = 60, *, classes: int = CLASSES, features: int = FEATURES) -> Path:
    """A CSV of separable clusters, one a class."""
    random = np.random.default_rng(0)
    lines = [",".join([*(f"f{i}" for i in range(features)), "kind"])]
    for row in range(rows):
        values = random.normal(row % classes, 0.3, features)
        lines.append(",".join([*(f"{value:.4f}" for value in values), str(row % classes)]))
    path.write_text("\n".join(lines) + "\n")
    return path


def arrays(path: Path, **changes: Any) -> Path:
    """An npz of the same kind; `changes` replace arrays, None leaves one out."""
    random = np.random.default_rng(0)
    held: dict[str, Any] = {}
    for part, rows in (("train", 60), ("test", 12)):
        y = np.arange(rows) % CLASSES
        held[f"{part}_images"] = random.normal(y[:, None], 0.3, (rows, FEATURES)).astype(np.float32)
        held[f"{part}_labels"] = y
    np.savez(path, **{key: value for key, value in {**held, **changes}.items() if value is not None})
    return path


def plain(data: dict[str, Any]) -> dict[str, Any]:
    """A recipe as plain data: a teacher, a plain and a distilled student, one seed, one epoch."""
    label = {"kind": "label"}
    return {
        "title": "tiny",
        "story": "A small dense network teaches a smaller one.",
        "data": data,
        "teacher": {"model": {"kind": "mlp", "hidden": [8]}, "training": {"epochs": 1, "batch_size": 10}},
        "student": {"kind": "mlp", "hidden": [4]},
        "arms": {
            "plain": {"label": "Plain", "objective": [label]},
            "distilled": {"label": "Distilled", "objective": [{"kind": "kl"}, label]},
        },
        "training": {"epochs": 1, "batch_size": 10},
        "seeds": 1,
    }


def written(folder: Path, recipe: dict[str, Any] | None = None) -> Path:
    """The recipe as a YAML file in `folder`, on a CSV there unless it names other data."""
    if recipe is None:
        recipe = plain({"kind": "table", "path": str(table(folder / "data.csv")), "label": "kind"})
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path
