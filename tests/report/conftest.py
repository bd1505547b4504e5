"""The fixtures of this part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_run import metrics, scores, write


@pytest.fixture
def found() -> dict[str, Any]:
    """The content of scores.json."""
    return scores()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a whole run."""
    folder = write(tmp_path / "run", scores(), metrics())
    facts = {"limbeck": "0.1.0", "python": "3.11.9", "torch": "2.13.0", "platform": "Linux", "processor": "x86_64",
             "threads": 2, "device": "cpu", "started": "2026-01-02T03:04:05+00:00", "seconds": 723.4}  # fmt: skip
    (folder / "environment.json").write_text(json.dumps(facts), encoding="utf-8")
    (folder / "recipe.yaml").write_text(
        "student: conv\nobjective:\n  - {kind: kl, temperature: 4.0}\n", encoding="utf-8"
    )
    return folder
