"""`@setting`: the one way to declare a configuration object, and the one door from plain data to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, Union, dataclass_transform

from limbeck.core.errors import ConfigError, nearest, problem

__all__ = ["as_plain", "build", "pick", "setting", "tagged"]

T = TypeVar("T")
_SCALARS = ("float", "int", "str", "bool")
_MEND = "  To mend: correct the keys named above; `limbeck show NAME` prints a whole recipe"


@dataclass_transform(kw_only_default=True, frozen_default=True)
def setting(cls: type[T]) -> type[T]:
    """Make a frozen, slotted, keyword-only dataclass that refuses unknown keys when it is read from YAML.

    pydantic drops unknown keys of plain dataclasses silently unless the class says otherwise; this says so.
    """
    cls.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
    return dataclass(frozen=True, slots=True, kw_only=True)(cls)


def pick(table: Mapping[str, T], name: str, family: str) -> T:
    """Look a name up in a table, or say which name was probably meant.

    Raises:
        ConfigError: nothing in the table has that name.
    """
    if name in table:
        return table[name]
    raise ConfigError(problem(family, f"nothing is called {name!r}", nearest(name, table)))


def build(kind: Any, data: Any, where: str) -> Any:
    """Turn plain data into the type `kind`, through pydantic; every fault is named by its dotted path.

    Raises:
        ConfigError: unknown key, missing key, wrong type, or a value that the setting itself refuses.
    """
    import pydantic  # noqa: PLC0415 - slow to import, and only needed where files are read

    try:
        return pydantic.TypeAdapter(kind).validate_python(data)
    except pydantic.ValidationError as error:
        faults = dict.fromkeys(f"    {_line(dict(fault))}" for fault in _told_once(error.errors()))
        raise ConfigError("\n".join([f"{where}: this cannot be read.", *faults, _MEND])) from None


def tagged(table: Mapping[str, type]) -> Any:
    """The type of "one of this table's settings, told apart by its key `kind`", for the fields of other settings."""
    import pydantic  # noqa: PLC0415

    return Annotated[Union[tuple(table.values())], pydantic.Discriminator("kind")]  # noqa: UP007


def as_plain(value: Any) -> Any:
    """A setting as plain data (dicts, lists, numbers, strings), ready for YAML or JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: as_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): as_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def _told_once(faults: list[Any]) -> list[Any]:
    """Where a value fits none of a union's members, pydantic names each member; the first says enough."""
    kept: dict[tuple[int | str, ...], Any] = {}
    for fault in faults:
        loc = fault["loc"]
        member = bool(loc) and isinstance(loc[-1], str) and (loc[-1] in _SCALARS or loc[-1][:1].isupper())
        kept.setdefault(loc[:-1] if member else loc, {**fault, "loc": loc[:-1] if member else loc})
    return list(kept.values())


def _line(fault: dict[str, Any]) -> str:
    """A fault in one line: where, and what."""
    path = _path(fault["loc"])
    if fault["type"] != "value_error":
        return f"{path}: {_say(fault)}"
    # Our own message, which names its setting and its mend.
    said = " ".join(str(fault["msg"]).removeprefix("Value error, ").removesuffix(".").split())
    return ("" if path == "top" else f"{path}: ") + said.replace(". To mend: ", "; ")


def _path(loc: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in loc) or "top"


def _say(fault: dict[str, Any]) -> str:
    said = str(fault["msg"])
    if fault["type"] == "union_tag_invalid":
        tag, expected = fault["ctx"]["tag"], fault["ctx"]["expected_tags"].replace("'", "").split(", ")
        said = f"nothing is called {tag!r}; {nearest(tag, expected)}"
    elif fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        said = "no such key"
    elif fault["type"] in ("missing", "missing_argument"):
        said = "is missing"
    elif "input" in fault and not isinstance(fault["input"], dict | list):
        said = f"{said}, got {fault['input']!r}"
    return said
