"""limbeck pours a large PyTorch model into a small one and proves what was kept.

Public names are loaded when they are first used, so that `import limbeck` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "limbeck.workflow": ("Run", "distill", "evaluate", "footprint"),
    "limbeck.auto": ("Auto",),
    "limbeck.comparing": ("compare",),
    "limbeck.core.errors": ("LimbeckError",),
    "limbeck.core.normalize": ("Normalize",),
    "limbeck.data": ("Augment", "Transform"),
    "limbeck.evaluation.latency": ("Timing",),
    "limbeck.examining": ("Evidence",),
    "limbeck.models.peers": ("Peers",),
    "limbeck.models.reused": ("reuse_head",),
    "limbeck.recipes.saved": ("load",),
    "limbeck.remembering": ("remember",),
    "limbeck.search": ("Budget",),
    "limbeck.squeezing": ("squeeze",),
    "limbeck.studying": ("study",),
    "limbeck.targets": ("Dense", "Sampled", "TopK"),
    "limbeck.teachers": ("teacher",),
    "limbeck.teachers.own": ("SelfTeacher",),
    "limbeck.teachers.stored": ("Targets",),
    "limbeck.train": ("Optimizer", "Stage", "Training", "Tuning"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_MODULES = {
    "compress": "limbeck.compress",
    "export": "limbeck.export",
    "functional": "limbeck.functional",
    "recipes": "limbeck.recipes",
    "schedules": "limbeck.core.schedules",
    "transfer": "limbeck.transfer",
}

__all__ = ["__version__", *sorted({*_HOME_OF, *_MODULES})]  # noqa: PLE0604 - strings, by construction


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(_MODULES[name])
    if name in _HOME_OF:
        return getattr(import_module(_HOME_OF[name]), name)
    if name[:1].isupper():  # a term: the table in `objectives` is the one list of them
        term = getattr(import_module("limbeck.objectives"), name, None)
        if term is not None:
            return term
    raise AttributeError(f"module 'limbeck' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
