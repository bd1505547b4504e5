"""The records of a run as one piece of JSON that a page can hold: whatever is in a name, no browser executes it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from limbeck.report.reading import Run, text

__all__ = ["embedded"]

MOST = 1_000_000
"""Characters that training records may take; the page must stay one that can be mailed."""

_TRIAL = re.compile(r"@\d+-")
"""In the name of an arm: a round of trials. What follows @ at another rate is its factor."""


def embedded(run: Run) -> str:
    """Scores, evidence, environment, recipe and training records as JSON for a script element of another type.

    Of the training records those at other learning rates and of trials are left out, then single steps, then epochs,
    until they are short enough; `left_out` says what. Pictures are on the page itself. No character that could end the
    element or begin a comment is written as it is.
    """
    beside = {arm for line in run.metrics if "@" in (arm := text(line.get("arm")))}
    kept = [line for line in run.metrics if text(line.get("arm")) not in beside]
    trials = {arm for arm in beside if _TRIAL.search(arm)}
    left_out = ["other learning rates"] * (beside > trials) + ["trials"] * bool(trials)
    for kind in ("step", "epoch"):
        if len(_json(kept)) > MOST:
            kept = [line for line in kept if line.get("kind") != kind]
            left_out.append(f"{kind}s")
    if len(_json(kept)) > MOST:
        kept = []
        left_out.append("everything else")
    whole = {
        "scores": run.scores,
        "evidence": _without_pictures(run.evidence),
        "environment": run.environment,
        "recipe": run.recipe,
        "metrics": kept,
        "left_out_of_metrics": left_out,
    }
    return _json(whole)


def _json(value: Any) -> str:
    said = json.dumps(_finite(value), separators=(",", ":"))
    for character in "<>&":
        said = said.replace(character, f"\\u{ord(character):04x}")
    return said


def _finite(value: Any) -> Any:
    """The same with None for what is no finite number: JSON has no word for it."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _without_pictures(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_pictures(item) for key, item in value.items() if key != "image"}
    return [_without_pictures(item) for item in value] if isinstance(value, list) else value
