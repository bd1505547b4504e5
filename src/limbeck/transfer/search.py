"""A short search for the blocks that matter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from limbeck.compress.base import Evidence, edited
from limbeck.transfer.blocks import Match
from limbeck.transfer.stacks import ways

__all__ = ["least_change"]


def least_change(teacher: nn.Module, match: Match, count: int, evidence: Evidence) -> list[int]:
    """The blocks that stay when they leave one by one, always the one without which the answers change least.

    Costs at most n² / 2 passes over the evidence for n blocks. The change is the mean square of the difference of all
    outputs called logits to those of the whole teacher.
    """
    whole = _answers(teacher, evidence)
    stays = list(range(len(match.origins)))
    while len(stays) > count:
        change = {}
        for at in stays:
            gone = [other for other in range(len(match.origins)) if other not in stays or other == at]
            change[at] = _missed(teacher, match, gone, evidence, whole)
        stays.remove(min(stays, key=lambda at: (change[at], -at)))
    return stays


def _missed(teacher: nn.Module, match: Match, gone: list[int], evidence: Evidence, whole: list[Tensor]) -> float:
    names = list(teacher.get_submodule(match.origin)._modules)
    for changes in ways(teacher, match.origin, [names.index(match.origins[at]) for at in gone]):
        try:
            found = _answers(edited(teacher, changes), evidence)
        except Exception:  # whatever it is, the network cannot do without them in this way
            continue
        if all(a.shape == b.shape for a, b in zip(found, whole, strict=True)):
            return sum(float((a - b).square().mean()) for a, b in zip(found, whole, strict=True))
    return float("inf")


@torch.no_grad()
def _answers(model: nn.Module, evidence: Evidence) -> list[Tensor]:
    reader = evidence.reader(model)
    batches = evidence.batches() if evidence.batches else (evidence.batch,)
    return [reader(batch)["logits"].double() for batch in batches]
