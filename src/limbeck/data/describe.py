"""What augmentation was, as plain data for a manifest."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeAlias

from limbeck.data.augment import Augment
from limbeck.data.transform import Transform

__all__ = ["Augmentation", "describe"]

Augmentation: TypeAlias = Augment | Transform
"""Whatever may be done to samples, and done again."""

RULES = 1
"""Goes up when the same settings no longer give the same pixels."""


def describe(augment: Augmentation | None) -> dict[str, Any]:
    """Augmentation as plain data: equal for two that make the same pixels, with one key for each thing that is on.

    What is off is left out, so that a later version with more settings still describes this one as it is. The seed
    and the number of views are not in it: they belong to the batches.

    >>> describe(Augment(crop=4, flip=True))
    {'kind': 'augment', 'rules': 1, 'crop': 4, 'flip': True}
    """
    if augment is None or (isinstance(augment, Augment) and not (augment.moves or augment.mixes)):
        return {"kind": "none"}
    if isinstance(augment, Augment):
        on = {f.name: getattr(augment, f.name) for f in fields(augment) if getattr(augment, f.name)}
        return {"kind": "augment", "rules": RULES, **on}
    fingerprint = augment.fingerprint()
    return {"kind": "transform", "rules": RULES, "name": augment.name, "on": augment.on, "fingerprint": fingerprint}
