"""Rounding in training: the forward pass is the rounded one, gradients pass, settled weights are on the grid."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import limbeck as lb
from limbeck.compress.simulate import settle, simulate
from limbeck.core.errors import ConfigError, ModelError
from limbeck.export import quantize

G = torch.Generator().manual_seed(0)
X = torch.randn(256, 1, 8, 8, generator=G)


def net():
    torch.manual_seed(3)
    body = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(body, nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4))


def rounded(weight, levels):
    """By hand, in float64: each channel on its own grid."""
    flat = weight.double().flatten(1)
    scale = flat.abs().amax(1, keepdim=True) / levels
    return (torch.round(flat / scale) * scale).view_as(weight).float()


@pytest.mark.parametrize(("reduce_range", "levels"), [(True, 64), (False, 127)])
def test_weights_are_rounded_by_channel(reduce_range, levels):
    plain = net()
    model = simulate(plain, reduce_range=reduce_range)
    for i in (1, 4):
        layer = plain[i]
        torch.testing.assert_close(model[i].weight, rounded(layer.weight.detach(), levels), rtol=1e-5, atol=1e-7)
        assert float(model[i].weight.detach().abs().amax()) == pytest.approx(
            float(layer.weight.detach().abs().amax()), rel=1e-6
        )


def test_gradients_pass_as_if_nothing_were_rounded():
    layer = nn.Linear(6, 3, bias=False)
    model = simulate(nn.Sequential(layer))
    x = torch.randn(5, 6, generator=G)
    model.train()(x).sum().backward()
    model[0].parametrizations.weight.original.grad.zero_()
    model(x).sum().backward()
    inputs = model[0].rounded_input(x)
    torch.testing.assert_close(model[0].parametrizations.weight.original.grad, inputs.sum(0).expand(3, 6))


def test_inputs_follow_the_ends_of_training_batches_and_stay_in_evaluation():
    model = simulate(nn.Sequential(nn.Linear(2, 2)), momentum=0.25)
    x = torch.tensor([[-1.0, 3.0], [0.5, 2.0]])
    assert torch.equal(model.eval()[0].rounded_input(x), x), "before training nothing is known of inputs"
    model.train()(x)
    model(x * 2)
    inputs = model[0].rounded_input
    assert (float(inputs.low), float(inputs.high)) == (-1.25, 3.75)
    model.eval()
    seen = inputs(torch.tensor([[-9.0, 9.0], [0.0, 1.0]]))
    assert (float(inputs.low), float(inputs.high)) == (-1.25, 3.75)
    step = 5 / 255
    assert seen[0].tolist() == pytest.approx([-1.25, 3.75], abs=step)
    assert float(seen[1, 0]) == 0.0, "zero is exact"
    assert float(seen[1, 1]) == pytest.approx(1, abs=step / 2 * 1.001)


def test_the_model_stays_as_it_is_and_a_copy_has_its_own_ranges():
    plain = net()
    before = copy.deepcopy(plain.state_dict())
    model = simulate(plain).train()
    twin = copy.deepcopy(model)
    model(X)
    assert all(torch.equal(v, before[k]) for k, v in plain.state_dict().items())
    assert not twin[1].rounded_input.seen
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(twin.eval()(X), model.eval()(X))


def labels(x):
    return (x.mean((1, 2, 3)) > 0).long() + 2 * (x[:, 0, 4, 4] > 0).long()


@pytest.fixture(scope="module")
def trained():
    teacher = net()
    lb.distill(teacher, None, train=(X, labels(X)), epochs=8, batch_size=32, progress=False)
    student = simulate(copy.deepcopy(teacher), reduce_range=True)
    run = lb.distill(student, teacher, train=(X, labels(X)), epochs=2, batch_size=32, progress=False)
    return teacher, run.student


def test_the_one_loop_trains_it_and_settled_weights_are_on_the_grid(trained):
    teacher, student = trained
    plain = settle(student)
    assert [type(m) for m in plain.modules()] == [type(m) for m in teacher.modules()]
    assert plain.state_dict().keys() == teacher.state_dict().keys()
    assert not torch.equal(plain[1].weight, teacher[1].weight), "it was trained"
    for layer in (plain[0][0], plain[1], plain[4]):
        torch.testing.assert_close(layer.weight, rounded(layer.weight.detach(), 64), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(student[1].weight, plain[1].weight)
    assert torch.equal(settle(student)[4].weight, plain[4].weight), "the simulation stays one"


def test_8_bit_export_finds_the_very_numbers_that_training_rounded_to(trained, tmp_path):
    import onnx
    from onnx import numpy_helper

    _, student = trained
    plain = settle(student)
    from limbeck.export import Quantize

    model = quantize(plain, [X], tmp_path / "a.onnx", settings=Quantize(reduce_range=True))
    values = [numpy_helper.to_array(t) for t in onnx.load(str(model.path)).graph.initializer]
    found = {v.size: v for v in values if v.dtype == np.int8 and v.size > 8}
    for layer in (plain[0][0], plain[1], plain[4]):
        flat = layer.weight.detach().double().flatten(1)
        numbers = torch.round(flat / flat.abs().amax(1, keepdim=True) * 64)
        # The norm is folded into the first layer with channels of both signs, which turns no size.
        stored = torch.from_numpy(found[flat.numel()].astype(np.float64)).reshape(flat.shape)
        assert torch.equal(stored.abs(), numbers.abs())


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: simulate(nn.GRU(2, 2)), ModelError, "no layer that can be rounded"),
        (lambda: simulate(simulate(nn.Sequential(nn.Linear(2, 2)))), ModelError, "simulation already"),
        (lambda: settle(nn.Linear(2, 2)), ModelError, "no simulation"),
        (lambda: simulate(nn.Linear(2, 2), momentum=0.0), ConfigError, "simulate.momentum"),
    ],
)
def test_what_cannot_be_simulated_is_told(call, error, said):
    with pytest.raises(error, match=said):
        call()
