"""How far peers that were trained together ended apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from limbeck.core.types import Named

__all__ = ["accuracies"]


def accuracies(forward: Callable[[Named], Named], batches: Iterable[Named]) -> list[float]:
    """The accuracy of each peer on the labelled samples, in the order of the peers.

    Args:
        forward: from a batch to `peers` [B, P, C], in evaluation mode.
        batches: with class numbers `y`, -1 for none.
    """
    right, count = torch.zeros(()), 0
    with torch.no_grad():
        for batch in batches:
            known = batch["y"] >= 0
            answers = forward(batch)["peers"].argmax(-1)
            right = right + (answers == batch["y"].unsqueeze(-1))[known].sum(0).cpu()
            count += int(known.sum())
    return [value / max(1, count) for value in right.tolist()]
