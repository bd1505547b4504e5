"""Peers that say nothing to each other train as each would alone, however gradients are clipped."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import limbeck as lb
from limbeck.models import Peers


def student(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("clip", [None, 1.0, 0.05])
def test_peers_without_a_word_between_them_train_as_each_does_alone(clip):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 6, generator=generator)
    data = (x, x[:, :3].argmax(1))
    how = {"train": data, "val": data, "epochs": 3, "batch_size": 20, "clip": clip, "seed": 5, "progress": False}
    # The second one's gradients are a hundred times the first's.
    alone = [student(0), student(1)]
    alone[1][2].weight.data.mul_(100)
    together = Peers(copy.deepcopy(alone))
    lb.distill(together, None, objective=(lb.Each(term=lb.Label()),), **how)
    for one, other in zip(alone, together.peer, strict=True):
        lb.distill(one, None, objective=(lb.Label(),), **how)
        for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(theirs, mine, rtol=1e-5, atol=1e-6)
