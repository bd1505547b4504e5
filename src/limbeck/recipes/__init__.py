"""Whole runs as functions. The table below is written by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from limbeck.core.errors import ConfigError, problem
from limbeck.core.setting import pick
from limbeck.recipes.base import Arm, Master, Recipe, override, read, show
from limbeck.recipes.cifar10 import cifar10_conv, cifar10_resnet
from limbeck.recipes.digits import digits
from limbeck.recipes.remember import part, remember_recipe, told
from limbeck.recipes.run import Outcome, run_recipe
from limbeck.recipes.study import study_recipe

__all__ = [
    "RECIPES",
    "Arm",
    "Master",
    "Outcome",
    "Recipe",
    "find",
    "override",
    "part",
    "read",
    "remember_recipe",
    "run_recipe",
    "show",
    "study_recipe",
    "told",
]

RECIPES: dict[str, Callable[[], Recipe]] = {
    "digits": digits,
    "cifar10-conv": cifar10_conv,
    "cifar10-resnet": cifar10_resnet,
}


def find(name: str, changes: Sequence[str] = ()) -> Recipe:
    """A recipe by its name or from a YAML file, with `a.b=c` changes applied.

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
        recipe = read(text, name)
    else:
        recipe = pick(RECIPES, name, "recipe")()
    return override(recipe, changes, name) if changes else recipe
