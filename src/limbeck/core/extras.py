"""Import an optional package, or say which extra to install."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from limbeck.core.errors import ExtraError, problem

__all__ = ["need"]


def need(module: str, *, extra: str, why: str) -> Any:
    """Import `module`, which the extra `extra` installs.

    Raises:
        ExtraError: it is not installed; the message holds the command that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ExtraError(
            problem(why, f"the package {package!r} cannot be imported ({error})", f'pip install "limbeck[{extra}]"')
        ) from None
