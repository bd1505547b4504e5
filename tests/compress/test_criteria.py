"""Each measure against its formula, written out by hand for single units."""

import functools
import math

import pytest
import torch
from nets import made
from torch import nn
from torch.nn import functional as F

from limbeck.compress import Evidence
from limbeck.compress.criteria import CRITERIA, NEEDS, geometric_median, lamp, rows_of
from limbeck.compress.units import coupled
from limbeck.core.coupling import Group, Place

W1 = torch.tensor([[1.0, -2.0], [3.0, 0.5], [0.0, 1.0]])
B1 = torch.tensor([0.1, -0.2, 0.3])
W2 = torch.tensor([[2.0, -1.0, 0.5], [0.0, 4.0, -3.0]])


def small():
    """Two inputs, three hidden units, two classes."""
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    with torch.no_grad():
        model[0].weight.copy_(W1)
        model[0].bias.copy_(B1)
        model[2].weight.copy_(W2)
        model[2].bias.zero_()
    return model


def batches():
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1, 1, -1])  # the last one is unknown
    return [{"x": torch.randn(n, 2, generator=generator), "y": labels[:n]} for n in (4, 3)]


def score(kind, model=None):
    model = small() if model is None else model
    evidence = Evidence(batch=batches()[0], batches=batches)
    return CRITERIA[kind](model, coupled(model, evidence).groups, evidence)["0"]


def test_weights_alone():
    into, out = W1, W2.T
    l1 = [(sum(map(abs, a)) + sum(map(abs, b))) / 2 for a, b in zip(into.tolist(), out.tolist(), strict=True)]
    l2 = [(math.hypot(*a) + math.hypot(*b)) / 2 for a, b in zip(into.tolist(), out.tolist(), strict=True)]
    assert score("l1").tolist() == pytest.approx(l1)
    assert score("l2").tolist() == pytest.approx(l2)
    median = [
        sum(sum(math.dist(rows[u], rows[v]) for v in range(3)) for rows in (into.tolist(), out.tolist())) / 2
        for u in range(3)
    ]
    assert score("geometric_median").tolist() == pytest.approx(median)


def test_lamp_divides_by_what_is_not_smaller():
    # squares 5, 1, 25, 4: ranked 25 (25/25), 5 (5/30), 4 (4/34), 1 (1/35)
    rows = torch.tensor([[1.0, 2.0], [1.0, 0.0], [3.0, 4.0], [0.0, 2.0]])
    assert lamp(rows).tolist() == pytest.approx([5 / 30, 1 / 35, 1.0, 4 / 34])
    into, out = (lamp(rows) for rows in (W1, W2.T))
    assert score("lamp").tolist() == pytest.approx(((into + out) / 2).tolist())


def test_the_unit_nearest_to_all_others_has_the_least_geometric_median():
    assert geometric_median(torch.tensor([[0.0], [1.0], [5.0]])).tolist() == [6.0, 5.0, 9.0]


def by_differences(model, batch, parameter):
    """The gradient of the mean cross entropy, by central differences in float64."""
    model = model.double()
    known = batch["y"] >= 0
    gradient = torch.zeros_like(parameter)
    with torch.no_grad():
        for at in range(parameter.numel()):
            flat, before = parameter.view(-1), parameter.view(-1)[at].item()
            losses = []
            for step in (1e-6, -1e-6):
                flat[at] = before + step
                log_p = model(batch["x"].double()).log_softmax(1)
                losses.append(-log_p[known, batch["y"][known]].mean().item())
            flat[at] = before
            gradient.view(-1)[at] = (losses[0] - losses[1]) / 2e-6
    return gradient


@pytest.mark.parametrize("kind", ["taylor", "fisher"])
def test_gradients_are_those_of_the_loss_and_the_mean_is_over_batches(kind):
    expected = torch.zeros(3, dtype=torch.float64)
    for batch in batches():
        model = small().double()
        g1, g2 = (by_differences(model, batch, model[k].weight.data) for k in (0, 2))
        for u in range(3):
            members = [(W1[u].double(), g1[u]), (W2[:, u].double(), g2[:, u])]
            for w, g in members:
                value = (w * g).sum() ** 2 if kind == "taylor" else ((w * g) ** 2).sum() / 2
                expected[u] += value / 2 / 2
    assert score(kind).double().tolist() == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-9)


def test_frozen_weights_have_gradients_too_and_stay_frozen():
    model = small()
    model[0].weight.requires_grad_(False)
    assert score("taylor", model).tolist() == pytest.approx(score("taylor").tolist())
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]
    assert all(p.grad is None for p in model.parameters())


def test_activations_are_read_where_they_are_used():
    heard = torch.cat([F.relu(batch["x"] @ W1.T + B1) for batch in batches()])
    assert score("activation").tolist() == pytest.approx(heard.abs().mean(0).tolist(), rel=1e-5)


def test_the_scale_of_a_batch_norm_is_its_score_and_units_without_one_are_not_judged():
    model, batch = made("residual")
    evidence = Evidence(batch=batch)
    scores = CRITERIA["norm_scale"](model, coupled(model, evidence).groups, evidence)
    assert set(scores) == {"conv1", "conv2"}
    assert torch.equal(scores["conv1"], model.bn1.weight.detach().abs())


def test_random_is_a_function_of_the_seed_and_the_layer():
    model, batch = made("mlp")
    groups = coupled(model, Evidence(batch=batch)).groups
    a, b, c = (CRITERIA["random"](model, groups, Evidence(batch=batch, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(a["0"], b["0"])
    assert not torch.equal(a["0"], c["0"])
    assert not torch.equal(a["0"][:6], a["2"])


def test_a_head_is_one_unit_with_all_its_rows():
    group = Group("a", ("a",), (0, 1), {Place("a.weight", 0): ((0, 2), (1, 3)), Place("b.weight", 1): ((1,), (0,))})
    tensor = torch.arange(8.0).view(4, 2)
    assert rows_of(group, Place("a.weight", 0), tensor).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert rows_of(group, Place("b.weight", 1), tensor).tolist() == [[1, 3, 5, 7], [0, 2, 4, 6]]
    uneven = Group("a", ("a",), (0, 1), {Place("a.weight", 0): ((0, 2), (1,))})
    assert rows_of(uneven, Place("a.weight", 0), tensor).tolist() == [[0, 1, 4, 5], [2, 3, 0, 0]]


@functools.cache
def groups_of(name):
    model, batch = made(name)
    return coupled(model, Evidence(batch=batch)).groups


@pytest.mark.parametrize("kind", CRITERIA)
@pytest.mark.parametrize("name", ["conv", "lstm", "encoder", "llama", "u-net", "grouped"])
def test_every_measure_judges_every_kind_of_unit_or_passes_it_over(kind, name):
    model, batch = made(name)
    if name in ("llama", "u-net", "encoder"):  # these answer for every word or pixel
        if "labels" in NEEDS.get(kind, ()):
            return
        del batch["y"]
    evidence = Evidence(batch=batch, batches=lambda: [batch])
    groups = groups_of(name)
    scores = CRITERIA[kind](model, groups, evidence)
    for group in groups:
        if group.name in scores:
            assert scores[group.name].shape == (len(group.units),)
            assert scores[group.name].isfinite().all()
            assert (scores[group.name] >= 0).all()
    assert scores or kind == "norm_scale"
