"""What comes along, by table and by name, in words read off the settings themselves."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from limbeck.compress import OPS
from limbeck.core.errors import ConfigError, nearest, problem
from limbeck.core.schedules import SCHEDULES
from limbeck.core.setting import as_plain
from limbeck.data import SOURCES
from limbeck.export.integers import Quantize
from limbeck.models import MODELS
from limbeck.objectives import TERMS
from limbeck.recipes import RECIPES, SQUEEZES, find, find_squeeze, show
from limbeck.targets import CODECS

__all__ = ["TABLES", "describe", "first_lines"]


def TABLES() -> dict[str, Mapping[str, Callable[..., Any]]]:  # noqa: N802 - a table of tables
    """Every table by its name."""
    return {
        "recipes": RECIPES,
        "squeezes": SQUEEZES,
        "operations": {**OPS, "quantize": Quantize},
        "objectives": TERMS,
        "models": MODELS,
        "data": SOURCES,
        "codecs": CODECS,
        "schedules": SCHEDULES,
    }


def first_lines(table: Mapping[str, Callable[..., Any]]) -> Iterator[tuple[str, str]]:
    """Each name with the first line of what it promises."""
    for name, thing in table.items():
        yield name, (inspect.getdoc(thing) or "").partition("\n")[0]


def describe(name: str, changes: Sequence[str] = ()) -> str:
    """A recipe as YAML, or the promise and the settings of anything else that has a name.

    Raises:
        ConfigError: nothing has that name.
    """
    # A recipe comes first: `show NAME > mine.yaml` is how one's own begins, and data may have the same name.
    if name in SQUEEZES:
        return show(find_squeeze(name, changes))
    if name in RECIPES or name.endswith((".yaml", ".yml")):
        return show(find(name, changes))
    for table in TABLES().values():
        if name in table:
            thing = table[name]
            fields = {f.name: _default(f) for f in dataclasses.fields(thing)}  # type: ignore[arg-type]
            settings = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
            return f"{inspect.getdoc(thing)}\n\n{settings}"
    known = {key for table in TABLES().values() for key in table}
    raise ConfigError(
        problem("show", f"nothing is called {name!r}, and it is no folder of a run or of targets", nearest(name, known))
    )


def _default(field: dataclasses.Field[Any]) -> Any:
    return "(required)" if field.default is dataclasses.MISSING else as_plain(field.default)
