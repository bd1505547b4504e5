"""One error tree. Each message says where, what, and how to mend it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ExtraError",
    "LimbeckError",
    "ModelError",
    "NonFiniteError",
    "ProcessError",
    "ShapeError",
    "nearest",
    "problem",
]


class LimbeckError(Exception):
    """Everything this library raises on purpose. The command line turns it into exit code 2."""


class ConfigError(LimbeckError, ValueError):
    """A setting is unknown, missing or impossible."""


class DataError(LimbeckError, ValueError):
    """Data is missing, unreadable or contradicts itself."""


class ShapeError(LimbeckError, ValueError):
    """Tensors that must line up do not."""


class ModelError(LimbeckError, ValueError):
    """A model cannot be read, called or trained as asked."""


class CheckpointError(LimbeckError, ValueError):
    """A checkpoint or run folder is damaged, or belongs to something else."""


class NonFiniteError(ModelError, ArithmeticError):
    """A loss, or a model's answers, became NaN or infinite."""


class ProcessError(LimbeckError, RuntimeError):
    """Another process of the run, or one that reads data for it, is gone."""


class ExtraError(LimbeckError, ImportError):
    """An optional package is missing."""


def problem(where: str, wrong: str, mend: str) -> str:
    """Compose the one form that all messages have.

    >>> print(problem("kl", "student is (8, 10), teacher is (8, 100)", "give both the same classes"))
    kl: student is (8, 10), teacher is (8, 100).
      To mend: give both the same classes.
    """
    return f"{where}: {wrong}.\n  To mend: {mend}."


def nearest(name: str, known: Iterable[str]) -> str:
    """A phrase that offers the nearest known name and lists the rest: 'did you mean ...? known: ...'."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    shown = ", ".join(names[:30]) + (f" and {len(names) - 30} more" if len(names) > 30 else "")
    return (f"did you mean {near[0]!r}? " if near else "") + f"known: {shown or 'none'}"
