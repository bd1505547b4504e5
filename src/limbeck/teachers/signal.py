"""What every teacher does to its input and its answer: renormalise, pick classes, detach."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from limbeck.core.errors import ModelError, problem
from limbeck.core.normalize import Normalize
from limbeck.core.types import RESERVED, Named

__all__ = ["check_classes", "pick_classes", "renormalized"]


def renormalized(batch: Named, step: Normalize | None) -> Named:
    """The batch with its floating inputs carried over to the teacher's own normalisation."""
    if step is None:
        return batch
    return {k: step(v) if k not in RESERVED and v.is_floating_point() and v.dim() > 1 else v for k, v in batch.items()}


def pick_classes(signal: Mapping[str, Tensor], index: Tensor | None) -> dict[str, Tensor]:
    """The signal with the logits of the chosen classes only, in the chosen order."""
    if index is None:
        return dict(signal)
    return {**signal, "logits": signal["logits"].index_select(-1, index.to(signal["logits"].device))}


def check_classes(classes: tuple[int, ...] | None) -> Tensor | None:
    """The chosen classes as an index, or None.

    Raises:
        ModelError: a class number is negative or named twice.
    """
    if classes is None:
        return None
    if not classes or min(classes) < 0 or len(set(classes)) != len(classes):
        wrong = f"{classes} are not distinct class numbers"
        raise ModelError(problem("teacher.classes", wrong, "name each of the teacher's classes once, from 0"))
    return torch.tensor(classes, dtype=torch.int64)
