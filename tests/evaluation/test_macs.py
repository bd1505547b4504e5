"""Oracle: multiply-accumulates counted by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.core.errors import DataError, ModelError
from limbeck.evaluation.macs import count_macs


class Attend(nn.Module):
    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)


class SelfAttend(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x):
        return self.inner(x, x, x, need_weights=False)[0]


class Vector(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(7))

    def forward(self, x):
        return x @ self.weight


ENCODER = 10 * (4 * 16 * 16 + 2 * 16 * 32) + 2 * 10 * 10 * 16

HAND = {
    "linear": (nn.Linear(8, 5), (3, 8), 8 * 5),
    "linear over time": (nn.Linear(8, 5), (3, 6, 8), 6 * 8 * 5),
    "vector": (Vector(), (3, 7), 7),
    "conv": (nn.Conv2d(3, 8, 3, padding=1), (2, 3, 10, 10), 100 * 8 * 3 * 9),
    "strided": (nn.Conv2d(3, 8, 3, stride=2), (2, 3, 11, 11), 25 * 8 * 3 * 9),
    "grouped": (nn.Conv2d(4, 8, 3, groups=2), (2, 4, 6, 6), 16 * 8 * 2 * 9),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6, padding=1), (2, 6, 5, 5), 25 * 6 * 9),
    "dilated": (nn.Conv2d(2, 3, 3, dilation=2), (2, 2, 9, 9), 25 * 3 * 2 * 9),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 5, 5), 25 * 4 * 3 * 9),
    "conv1d": (nn.Conv1d(3, 4, 5), (2, 3, 20), 16 * 4 * 3 * 5),
    "lstm": (nn.LSTM(8, 5, batch_first=True), (3, 4, 8), 4 * 4 * 5 * (8 + 5)),
    "lstm deep, both ways": (
        nn.LSTM(8, 5, num_layers=2, bidirectional=True, batch_first=True),
        (3, 4, 8),
        4 * 2 * 4 * 5 * ((8 + 5) + (10 + 5)),
    ),
    "gru": (nn.GRU(8, 5, batch_first=True), (3, 4, 8), 4 * 3 * 5 * (8 + 5)),
    "attention": (SelfAttend(), (2, 10, 16), 10 * 4 * 16 * 16 + 2 * 10 * 10 * 16),
    "encoder layer": (nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), (2, 10, 16), ENCODER),
    "encoder": (
        nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2),
        (2, 10, 16),
        2 * ENCODER,
    ),
    "norm and activation": (nn.Sequential(nn.BatchNorm1d(8), nn.ReLU()), (3, 8), 0),
}


@pytest.mark.parametrize("name", HAND)
@pytest.mark.parametrize("training", [True, False])
def test_equals_the_hand_count_in_either_mode(name, training):
    model, shape, expected = HAND[name]
    model.train(training)
    assert count_macs(model, torch.randn(shape)) == expected
    assert model.training is training


def test_fused_attention_equals_the_hand_count():
    q = torch.randn(2, 4, 16, 8)
    k, v = torch.randn(2, 2, 4, 12, 8)
    assert count_macs(Attend(), (q, k, v)) == 2 * 4 * 16 * 12 * 8
    assert count_macs(Attend(), {"q": q, "k": k, "v": v, "id": torch.arange(2), "y": torch.zeros(2)}) == 12_288


def test_the_batch_size_does_not_matter():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(36, 2))
    assert {count_macs(model, torch.randn(n, 3, 5, 5)) for n in (1, 2, 7)} == {9 * 4 * 3 * 9 + 36 * 2}


@pytest.mark.filterwarnings("ignore")  # torch.ao says that it will go
@pytest.mark.parametrize("name", ["linear", "lstm", "lstm deep, both ways", "gru"])
def test_dynamically_quantised_layers_count_as_before(name):
    model, shape, expected = HAND[name]
    small = torch.ao.quantization.quantize_dynamic(nn.Sequential(model).eval(), {nn.Linear, nn.LSTM, nn.GRU})
    assert count_macs(small, torch.randn(shape)) == expected


def switches():
    return (
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.mkldnn.enabled,
        torch.backends.cudnn.enabled,
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.is_grad_enabled(),
    )


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("width", [8, 9])
def test_every_global_switch_is_as_it_was_even_after_an_error(fast, width):
    torch.backends.mha.set_fastpath_enabled(fast)
    torch.backends.mkldnn.enabled = fast
    try:
        before = switches()
        if width == 8:
            count_macs(nn.Linear(8, 2), torch.randn(3, width))
        else:
            with pytest.raises(ModelError, match="Linear cannot be called on the example"):
                count_macs(nn.Linear(8, 2), torch.randn(3, width))
        assert switches() == before
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
        torch.backends.mkldnn.enabled = True


@pytest.mark.parametrize("example", [(), {}, torch.zeros(0, 8), torch.tensor(1.0), {"y": torch.zeros(3)}])
def test_an_example_without_samples_is_refused(example):
    with pytest.raises(DataError, match="no sample"):
        count_macs(nn.Linear(8, 2), example)
