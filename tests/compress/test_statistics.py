"""Statistics of batch norms equal means and variances taken by hand."""

import pytest
import torch
from torch import nn

from limbeck.compress import reestimate
from limbeck.core.errors import DataError


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 2, 1)).eval()


def batches():
    generator = torch.Generator().manual_seed(0)
    return [{"x": 3 * torch.randn(5, 3, 2, 2, generator=generator) + 1} for _ in range(3)]


def run(model, batch):
    return model(batch["x"])


def test_they_are_the_averages_over_batches():
    model = net()
    fresh = reestimate(model, batches(), forward=run)
    with torch.no_grad():
        heard = [model[0](batch["x"]).movedim(1, 0).flatten(1) for batch in batches()]
    mean = torch.stack([x.mean(1) for x in heard]).mean(0)
    variance = torch.stack([x.var(1) for x in heard]).mean(0)
    torch.testing.assert_close(fresh[1].running_mean, mean)
    torch.testing.assert_close(fresh[1].running_var, variance)


def test_the_model_stays_and_weights_modes_and_momentum_are_as_before():
    model = net()
    model[2].train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fresh = reestimate(model, batches(), forward=run)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [m.training for m in fresh.modules()] == [m.training for m in model.modules()]
    assert fresh[1].momentum == model[1].momentum
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), model.parameters(), strict=True))
    assert torch.equal(reestimate(model, batches(), forward=run)[1].running_mean, fresh[1].running_mean)


def test_what_was_scaled_by_mistake_is_mended():
    model = net()
    right = reestimate(model, batches(), forward=run)
    model[1].running_mean.mul_(7)
    model[1].running_var.add_(5)
    again = reestimate(model, batches(), forward=run)
    x = batches()[0]["x"]
    torch.testing.assert_close(again(x), right(x))


def test_without_norms_there_is_nothing_to_do_and_without_batches_it_is_told():
    plain = nn.Sequential(nn.Linear(2, 2))
    assert torch.equal(reestimate(plain, [], forward=run)[0].weight, plain[0].weight)
    with pytest.raises(DataError, match="there are no batches"):
        reestimate(net(), [], forward=run)
