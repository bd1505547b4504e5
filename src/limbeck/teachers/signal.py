"""What every teacher does to its input and its answer: renormalise, pick classes, detach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from limbeck.core.errors import ModelError, problem
from limbeck.core.normalize import Normalize
from limbeck.core.types import RESERVED, Named

__all__ = ["Classes", "check_classes", "named_classes", "pick_classes", "renormalized"]

Classes = tuple[int | tuple[int, ...], ...]
"""Class numbers, and groups of them that are one class."""


def renormalized(batch: Named, step: Normalize | None) -> Named:
    """The batch with its floating inputs carried over to the teacher's own normalisation."""
    if step is None:
        return batch
    return {k: step(v) if k not in RESERVED and v.is_floating_point() and v.dim() > 1 else v for k, v in batch.items()}


def pick_classes(signal: Mapping[str, Tensor], index: Tensor | None) -> dict[str, Tensor]:
    """The signal with the logits of the chosen classes only, in the chosen order; those of a group are one class.

    A group has the sum of its classes' probabilities, which is the log of the sum of the exponentials of its logits.
    """
    if index is None:
        return dict(signal)
    logits, index = signal["logits"], index.to(signal["logits"].device)
    picked = logits.index_select(-1, index.clamp_min(0).flatten())
    if index.dim() > 1:
        picked = picked.view(*logits.shape[:-1], *index.shape).masked_fill(index < 0, -torch.inf).logsumexp(-1)
    return {**signal, "logits": picked}


def check_classes(classes: Classes | None) -> Tensor | None:
    """The chosen classes as an index [K], or, where there are groups, [K, G] with -1 where a group is smaller; or None.

    Raises:
        ModelError: a class number is negative or named twice, or a group is empty.
    """
    if classes is None:
        return None
    groups = [tuple(each) if isinstance(each, Sequence) else (each,) for each in classes]
    flat = [number for group in groups for number in group]
    if not groups or not all(groups) or min(flat) < 0 or len(set(flat)) != len(flat):
        wrong = f"{classes} are not distinct class numbers"
        raise ModelError(problem("teacher.classes", wrong, "name each of the teacher's classes once, from 0"))
    size = max(len(group) for group in groups)
    index = torch.tensor([group + (-1,) * (size - len(group)) for group in groups], dtype=torch.int64)
    return index.squeeze(-1) if size == 1 else index


def named_classes(index: Tensor | None) -> str:
    """The choice in words for a fingerprint; all of it, where a tensor's own words would leave out the middle."""
    return "all" if index is None else str(index.tolist())
