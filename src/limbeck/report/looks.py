"""How each arm looks, the same all over the page: its CSS class, which both themes colour, and its label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limbeck.report.reading import arms, baseline, subjects

__all__ = ["labels", "legend", "styles"]

Legend = list[tuple[str, str]]
"""Who is in a drawing: style and label."""


def styles(scores: Mapping[str, Any]) -> dict[str, str]:
    """The CSS class of each arm: the first student has the accent."""
    plain, found, students = baseline(scores), {}, [arm.name for arm in subjects(scores)]
    for arm in arms(scores):
        if arm.role == "teacher":
            found[arm.name] = "teacher"
        elif arm.name in students:
            found[arm.name] = f"s{students.index(arm.name) % 5 + 1}"
        elif plain is not None and arm.name == plain.name:
            found[arm.name] = "plain"
    return found


def labels(scores: Mapping[str, Any]) -> dict[str, str]:
    """What each arm is called."""
    return {arm.name: arm.label for arm in arms(scores)}


def legend(scores: Mapping[str, Any], names: list[str] | None = None) -> Legend:
    """Style and label of these arms, or of all."""
    coloured = styles(scores)
    return [(coloured.get(arm.name, ""), arm.label) for arm in arms(scores) if names is None or arm.name in names]
