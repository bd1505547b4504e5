"""Peak memory: chains of layers worked out by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from limbeck.core.errors import DataError, ModelError
from limbeck.evaluation.memory import peak_memory


def chain(*widths, bias=True):
    return nn.Sequential(*(nn.Linear(a, b, bias=bias) for a, b in pairwise(widths)))


def by_hand(widths, batch, width=4):
    """Weights, and the two neighbouring activations that are alive together; the input is the caller's."""
    weights = sum(a * b + b for a, b in pairwise(widths))
    inner = widths[1:]
    pairs = [a + b for a, b in pairwise(inner)] or [inner[0]]
    return width * (weights + batch * max(pairs))


@pytest.mark.parametrize("widths", [(8, 24), (64, 256, 512, 16), (5, 700, 3, 900, 2)])
@pytest.mark.parametrize("batch", [1, 7])
def test_a_chain_of_linear_layers_by_hand(widths, batch):
    assert peak_memory(chain(*widths), torch.randn(batch, widths[0])) == by_hand(widths, batch)
    double = peak_memory(chain(*widths).double(), torch.randn(batch, widths[0]).double())
    assert double == by_hand(widths, batch, width=8)


class Branches(nn.Module):
    """Three activations alive together, of which the middle one is the largest."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.zeros(100))
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        a = x + x
        b = a.repeat(1, 10)
        c = self.drop(b) + b
        del b
        return a.sum() + c.sum()


def test_what_lives_together_is_added_and_buffers_are_held():
    n = 4 * 50  # bytes of x
    assert peak_memory(Branches(), torch.randn(1, 50)) == 400 + n + 10 * n + 10 * n
    inner = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    inner[1].weight = inner[0].weight
    assert peak_memory(inner, torch.randn(1, 3)) == 4 * (9 + 3 + 3)  # a tied weight is held once


def test_scratch_space_of_a_kernel_counts():
    class Products(nn.Module):
        def forward(self, x):
            return nn.functional.conv2d(x, x.new_ones(1, 1, 3, 3)).sum()

    x = torch.randn(1, 1, 40, 40)
    assert peak_memory(Products(), x) >= 4 * (38 * 38 + 9)


def test_the_model_is_as_it_was_and_mode_and_gradients_too():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    peak_memory(model, torch.randn(3, 4))
    assert model.training
    assert model[1].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.is_grad_enabled()


def test_nothing_is_said_while_another_profiler_records():
    with torch.autograd.profiler.profile():
        assert peak_memory(chain(3, 3), torch.randn(1, 3)) is None


def test_what_cannot_be_called_is_refused_and_the_recorder_is_off_again():
    class Second(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            if self.calls == 2:
                raise ValueError("enough")
            return x

    for model in (chain(3, 3), Second()):
        with pytest.raises(ModelError, match="cannot be called"):
            peak_memory(model, torch.randn(1, 4))
        assert not torch.autograd._profiler_enabled()
    with pytest.raises(DataError):
        peak_memory(chain(3, 3), torch.zeros(0, 3))
    assert peak_memory(chain(3, 3), torch.zeros(1, 3)) is not None
