"""Sizes by hand; the model is left as it was."""

import pickle

import pytest
import torch
from torch import nn

from limbeck.core.errors import ConfigError, ModelError
from limbeck.evaluation.footprint import footprint


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x))


class Counter(nn.Module):
    """Changes its buffers whatever the mode, once in place and once by replacement."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("last", torch.zeros(4))
        self.register_buffer("table", torch.zeros(1000), persistent=False)

    def forward(self, x):
        self.calls += 1
        self.last = x[0].clone()
        return self.drop(self.norm(x))


def test_sizes_by_hand():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 2))
    net[3].bias.requires_grad_(False)
    size = footprint(net, torch.randn(2, 3, 5, 5), latency=False)
    parameters = 4 * 27 + 4 + 8 + 72 + 2
    assert (size.parameters, size.trainable) == (parameters, parameters - 2)
    assert size.bytes == 4 * (parameters + 8) + 8  # running mean and variance, and one int64 counter
    assert size.macs == 9 * 4 * 27 + 72
    assert size.latency is None


def test_tied_weights_count_once_and_half_precision_takes_half():
    size = footprint(Tied(), torch.randint(0, 10, (2, 3)), latency=False)
    assert (size.parameters, size.trainable, size.bytes, size.macs) == (40, 40, 160, 3 * 40)
    assert footprint(Tied().bfloat16(), torch.randint(0, 10, (2, 3)), latency=False).bytes == 80


def test_buffers_that_are_not_stored_weigh_nothing():
    assert footprint(Counter(), torch.randn(2, 4), latency=False).bytes == 4 * (8 + 8 + 1 + 4) + 8


@pytest.mark.filterwarnings("ignore")  # torch.ao says that it will go
@pytest.mark.parametrize("kind", [nn.Linear, nn.LSTM])
def test_quantised_weights_count_at_their_stored_width(kind):
    plain = nn.Sequential(kind(64, 64)).eval()
    x = torch.randn(2, 3, 64)
    small = torch.ao.quantization.quantize_dynamic(plain, {kind})
    before, after = footprint(plain, x, latency=False), footprint(small, x, latency=False)
    assert after.parameters == before.parameters
    assert 0.25 < after.bytes / before.bytes < 0.3  # weights take a quarter, biases stay
    assert after.macs == before.macs


def test_the_model_is_as_it_was():
    net = Counter().train()
    net.drop.eval()
    before, last = {k: v.clone() for k, v in net.state_dict().items()}, net.last
    size = footprint(net, torch.randn(3, 4), seconds=0.05)
    assert size.latency is not None
    assert net.training
    assert net.norm.training
    assert not net.drop.training
    assert net.last is last
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.is_grad_enabled()


def test_the_model_is_as_it_was_after_an_error():
    net = nn.Sequential(Counter(), nn.Linear(5, 1)).train()
    with pytest.raises(ModelError, match="cannot be called on the example"):
        footprint(net, torch.randn(3, 4))
    assert net[0].training
    assert net[0].calls == 0


def test_latency_says_how_it_was_measured_and_pickles():
    size = footprint(nn.Linear(4, 2), torch.randn(3, 4), seconds=0.05)
    timed = size.latency
    assert (timed.batch, timed.threads) == (3, torch.get_num_threads())
    assert 0 < timed.p10 <= timed.p50 <= timed.p90
    assert timed.low <= timed.p50 <= timed.high
    assert size.peak_memory == 4 * (10 + 3 * 2)
    assert pickle.loads(pickle.dumps(size)) == size


def test_what_cannot_be_measured_is_refused():
    for wrong in (0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="seconds"):
            footprint(nn.Linear(1, 1), torch.zeros(1, 1), seconds=wrong)
    with pytest.raises(ModelError, match=r"weight has no size yet"):
        footprint(nn.LazyLinear(3), torch.zeros(1, 1))
