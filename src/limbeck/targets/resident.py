"""A store, or what is read of it, kept on a device whole: a step then asks no file and no other device."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from limbeck.targets.codec import Dense
from limbeck.targets.store import Store

__all__ = ["Resident", "size_of"]


def size_of(store: Store, names: Iterable[str]) -> int | None:
    """Bytes that these names take on a device; None where rows are of unequal length (outputs by tokens)."""
    plan = store.plan
    by_tokens = {key for name, kept in plan.outputs.items() if kept.tokens for key in kept.decoded(name)}
    wanted = set(names)
    if wanted & by_tokens:
        return None
    example = store.gather(store.ids[:1], 0, sorted(wanted)) if len(store.ids) else {}
    rows = len(store.ids) * plan.views
    return sum(
        value.numel() * value.element_size() * (1 if name in store.constants else rows)
        for name, value in ((name, _narrow(store, name, value)) for name, value in example.items())
    )


class Resident:
    """Stored signals on a device, gathered there by sample and view.

    Args:
        store: it holds every view of every sample of these names.
        names: what is read.
        device: where.

    Raises:
        DataError: something is not stored.
    """

    def __init__(self, store: Store, names: Iterable[str], device: torch.device) -> None:
        ids, views = store.ids, range(store.plan.views)
        self._ids = ids.to(device)
        self._fixed = {name: value.to(device) for name, value in store.constants.items() if name in set(names)}
        self._tables: dict[str, Tensor] = {}
        for name in names:
            if name not in self._fixed:
                each = [_narrow(store, name, store.gather(ids, view, [name])[name]) for view in views]
                self._tables[name] = torch.stack(each).to(device)

    def __call__(self, ids: Tensor, views: Tensor | int) -> dict[str, Tensor]:
        """The signals of these samples, as `Store.gather` gives them, on the device; which are there is not checked."""
        rows = torch.searchsorted(self._ids, ids.to(self._ids.device))
        found = {name: table[views, rows] for name, table in self._tables.items()}
        return {**{name: x.float() if x.is_floating_point() else x for name, x in found.items()}, **self._fixed}


def _narrow(store: Store, name: str, value: Tensor) -> Tensor:
    """A decoded value in the type in which it was kept, where that loses nothing."""
    kept = store.plan.outputs.get(name)
    if kept is None or not isinstance(kept.codec, Dense) or kept.codec.dtype == "int8":
        return value
    narrow: Tensor = value.to(getattr(torch, kept.codec.dtype))
    return narrow
