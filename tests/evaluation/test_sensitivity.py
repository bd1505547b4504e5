"""Noise on inputs and weights costs accuracy, and leaves nothing behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.evaluation.sensitivity import sensitivity


def task():
    torch.manual_seed(0)
    x = torch.randn(300, 4)
    return x, (x[:, 0] > 0).long()


class Cut(nn.Module):
    """Right on clean inputs: the sign of the first feature, `size` times."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[-size, 0, 0, 0], [size, 0, 0, 0]]))

    def forward(self, x):
        return x @ self.weight.T


@pytest.mark.parametrize("size", [0.01, 1.0, 100.0])
def test_weight_noise_is_relative_so_that_scale_does_not_matter(size):
    x, y = task()
    model = Cut(size)
    batches = [{"x": x[:100], "y": y[:100]}, {"x": x[100:], "y": y[100:]}]
    found = sensitivity(model, batches, forward=lambda batch: {"logits": model(batch["x"])})
    reference = Cut(1.0)
    again = sensitivity(reference, batches, forward=lambda batch: {"logits": reference(batch["x"])})
    assert found == again
    for side in ("inputs", "weights"):
        scores = found[side]["accuracy"]
        assert scores[0] > 0.95
        assert scores[-1] < scores[0]


def test_input_noise_has_the_stated_size():
    x, y = task()
    x = 10 * x
    seen = []

    def forward(batch):
        seen.append(batch["x"])
        return {"logits": torch.zeros(len(batch["x"]), 2)}

    found = sensitivity(nn.Linear(1, 1), [{"x": x, "y": y}], forward=forward)
    scales = [scale for scale in found["inputs"]["scale"] for _ in range(3)]
    for scale, noisy in zip(scales, seen, strict=False):
        assert float((noisy - x).std()) == pytest.approx(scale * float(x.std()), rel=0.1)


def test_weights_are_bit_identical_even_after_an_error():
    x, y = task()
    model = Cut(1.0)
    before = model.weight.detach().clone()
    calls = 0

    def fails(batch):
        nonlocal calls
        calls += 1
        if calls > 20:
            raise RuntimeError("no")
        return {"logits": model(batch["x"])}

    with pytest.raises(RuntimeError):
        sensitivity(model, [{"x": x, "y": y}], forward=fails)
    assert torch.equal(model.weight, before)
    assert model.weight.requires_grad
