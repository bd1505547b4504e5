"""Functions of arrays, and what their answers hold."""

import functools
import math

import numpy as np
import pytest
import torch
from kinds import batch, module, shares

import limbeck as lb
from limbeck.core.errors import ConfigError, ModelError


def test_numpy_functions_get_arrays_whatever_the_tensor_is():
    seen = []
    teacher = lb.teacher(lambda x: (seen.append(x), np.asarray(x[:, :3], dtype=np.float32))[1], arrays="numpy")
    for value in (batch()["x"].bfloat16(), batch()["x"].t().contiguous().t(), batch()["x"].requires_grad_()):
        teacher({**batch(), "x": value})
        assert type(seen[-1]) is np.ndarray
        assert seen[-1].flags.c_contiguous


def test_read_only_arrays_as_other_frameworks_give_them():
    fixed = np.arange(24, dtype=np.float32).reshape(8, 3)
    fixed.flags.writeable = False
    answer = lb.teacher(lambda x: fixed, arrays="numpy")(batch())["logits"]
    np.testing.assert_array_equal(answer.numpy(), fixed)


@pytest.mark.parametrize("floor", [1e-7, 1e-3])
def test_probabilities_come_back_from_the_softmax_and_zeros_as_the_floor(floor):
    expected = shares(batch()["x"].numpy())
    logits = lb.teacher(shares, arrays="numpy", gives="probabilities", floor=floor)(batch())["logits"]
    assert logits.dtype == torch.float32
    assert (expected == 0).any()
    np.testing.assert_allclose(logits.exp().numpy(), np.maximum(expected, floor), rtol=1e-5)
    assert logits.min().item() == pytest.approx(math.log(floor), rel=1e-6)


def test_log_probabilities_may_be_minus_infinity():
    def logs(x):
        return torch.tensor([[0.0, -math.inf], [-math.log(2), -math.log(2)]] * 4)

    logits = lb.teacher(logs, gives="log_probabilities").open(["logits"], batch())["logits"]
    assert logits[0].tolist() == pytest.approx([0, math.log(1e-7)])


def test_what_looks_like_probabilities_is_not_taken_for_logits():
    soft = lambda x: x[:, :3].softmax(-1)  # noqa: E731
    with pytest.raises(ModelError, match=r'rows that sum to 1[^$]*gives="probabilities"'):
        lb.teacher(soft).open(["logits"], batch(2))
    lb.teacher(soft, gives="logits").open(["logits"], batch(2))
    with pytest.raises(ModelError, match="no probabilities"):
        lb.teacher(lambda x: x[:, :3], gives="probabilities").open(["logits"], batch(2))
    with pytest.raises(ConfigError, match=r"teacher.gives: it is 'odds'"):
        lb.teacher(soft, gives="odds")
    with pytest.raises(ConfigError, match=r"teacher.floor"):
        lb.teacher(soft, gives="probabilities", floor=0.0)


def test_the_fingerprint_knows_source_settings_and_version():
    def one(x):
        return x[:, :3]

    prints = [
        lb.teacher(shares, gives="probabilities").fingerprint(),
        lb.teacher(one).fingerprint(),
        lb.teacher(one, version="2").fingerprint(),
        lb.teacher(one, arrays="numpy").fingerprint(),
        lb.teacher(one, inputs=["x"]).fingerprint(),
        lb.teacher(functools.partial(one), outputs={"a": "logits"}).fingerprint(),
        lb.teacher(one, normalize=lb.Normalize(mean=(0.0,), std=(1.0,))).fingerprint(),
    ]
    assert len(set(prints)) == len(prints)
    assert lb.teacher(one, version="2").fingerprint() == prints[2]


@pytest.mark.parametrize(
    ("function", "settings", "said"),
    [
        (lambda x: x.sum(), {}, r"answers 2 samples with \(\)"),
        (lambda x: x[:1], {}, r"answers 2 samples with \(1, 6\)"),
        (lambda x: "cat", {}, "returns nothing called 'logits'"),
        (lambda x: x, {"inputs": ["z"]}, "`inputs` names 'z', which the batch has not"),
        (lambda x: {"a": x}, {"outputs": {"b": "c"}}, "`outputs` names 'c'"),
    ],
)
def test_answers_that_cannot_be_used_are_refused_before_any_work(function, settings, said):
    with pytest.raises(ModelError, match=said):
        lb.teacher(function, **settings).open(["logits"], batch(2))


def test_a_weight_that_is_returned_as_it_is_carries_no_gradient():
    weight = torch.randn(8, 3, requires_grad=True)
    assert not lb.teacher(lambda x: weight)(batch())["logits"].requires_grad
    assert weight.requires_grad


def test_inputs_by_number_are_in_order_of_the_number():
    columns = {"id": torch.arange(2)} | {f"x{i}": torch.full((2, 1), float(i)) for i in (10, 2, 0)}
    answer = lb.teacher(lambda *parts: torch.cat(parts, 1))(columns)["logits"]
    assert answer.tolist() == [[0, 2, 10]] * 2


def test_a_module_s_answers_by_a_function_are_the_module_s():
    model = module().eval()
    assert torch.equal(lb.teacher(lambda x: model(x))(batch())["logits"], lb.teacher(model)(batch())["logits"])
