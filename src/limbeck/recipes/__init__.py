"""Whole runs as functions. The table below is written by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from limbeck.core.errors import ConfigError, problem
from limbeck.core.setting import pick
from limbeck.recipes.base import Arm, Master, Recipe, override, read, show
from limbeck.recipes.cifar10 import cifar10_conv, cifar10_resnet, cifar10_steady
from limbeck.recipes.digits import digits, digits_auto
from limbeck.recipes.digits_collective import digits_defensive, digits_mutual, digits_noisy_student, digits_self
from limbeck.recipes.digits_teaching import (
    digits_assistant,
    digits_born_again,
    digits_early_teacher,
    digits_ensemble,
    digits_finetune,
    digits_stages,
)
from limbeck.recipes.remember import part, remember_recipe, told
from limbeck.recipes.run import Outcome, run_recipe
from limbeck.recipes.squeeze import Squeeze, squeeze_recipe
from limbeck.recipes.squeezes import cifar10_squeeze, digits_squeeze
from limbeck.recipes.study import study_recipe

__all__ = [
    "RECIPES",
    "SQUEEZES",
    "Arm",
    "Master",
    "Outcome",
    "Recipe",
    "Squeeze",
    "find",
    "find_squeeze",
    "override",
    "part",
    "read",
    "remember_recipe",
    "run_recipe",
    "show",
    "squeeze_recipe",
    "study_recipe",
    "told",
]

R = TypeVar("R")

RECIPES: dict[str, Callable[[], Recipe]] = {
    "digits": digits,
    "digits-mutual": digits_mutual,
    "digits-self": digits_self,
    "digits-noisy-student": digits_noisy_student,
    "digits-defensive": digits_defensive,
    "digits-stages": digits_stages,
    "digits-assistant": digits_assistant,
    "digits-born-again": digits_born_again,
    "digits-ensemble": digits_ensemble,
    "digits-early-teacher": digits_early_teacher,
    "digits-finetune": digits_finetune,
    "digits-auto": digits_auto,
    "cifar10-conv": cifar10_conv,
    "cifar10-resnet": cifar10_resnet,
    "cifar10-steady": cifar10_steady,
}


SQUEEZES: dict[str, Callable[[], Squeeze]] = {"digits-squeeze": digits_squeeze, "cifar10-squeeze": cifar10_squeeze}
"""Searches for a smaller model, for `limbeck squeeze`."""


def find(name: str, changes: Sequence[str] = ()) -> Recipe:
    """A recipe by its name or from a YAML file, with `a.b=c` changes applied.

    Raises:
        ConfigError: there is no such recipe or file, or it cannot be read.
    """
    return _found(name, changes, RECIPES, Recipe)


def find_squeeze(name: str, changes: Sequence[str] = ()) -> Squeeze:
    """A search by its name or from a YAML file, with `a.b=c` changes applied.

    Raises:
        ConfigError: there is no such search or file, or it cannot be read.
    """
    return _found(name, changes, SQUEEZES, Squeeze)


def _found(name: str, changes: Sequence[str], table: Mapping[str, Callable[[], R]], kind: type[R]) -> R:
    """A recipe of a kind.

    Raises:
        ConfigError: there is no such recipe or file, or it cannot be read.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            wrong = f"the file cannot be read ({getattr(error, 'strerror', None) or 'it is not UTF-8 text'})"
            raise ConfigError(
                problem(name, wrong, "check the path; `limbeck list` names the recipes that come along")
            ) from None
        recipe = read(text, name, kind)
    else:
        for command, others in (("run", RECIPES), ("squeeze", SQUEEZES)):
            if name in others and name not in table:
                wrong = f"{name!r} is for another command"
                raise ConfigError(problem("recipe", wrong, f"use `limbeck {command} {name}`"))
        recipe = pick(table, name, "recipe")()
    return override(recipe, changes, name) if changes else recipe
