"""What is special about each loss on outputs, against computations by hand and scipy."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax

from limbeck import functional as F

RNG = np.random.default_rng(0)
S, T = RNG.normal(size=(7, 4)) * 3, RNG.normal(size=(7, 4)) * 3
s, t = torch.from_numpy(S), torch.from_numpy(T)


def test_the_worked_example_of_squared_probabilities():
    """By hand: student softmax of two outputs a, b is 1 / (1 + e^(b - a)); squares over classes, mean over samples."""
    teacher = [(0.6, 0.4), (0.7, 0.3), (0.5, 0.5), (0.8, 0.2), (0.4, 0.6)]
    student = [(0.55, 0.45), (0.68, 0.32), (0.52, 0.48), (0.82, 0.18), (0.43, 0.57)]
    squares = []
    for (a, b), (p, q) in zip(student, teacher, strict=True):
        first = 1 / (1 + np.exp(b - a))
        squares.append((first - p) ** 2 + (1 - first - q) ** 2)
    by_hand = sum(squares) / 5
    assert by_hand == pytest.approx(0.0173476394, abs=1e-9)
    logits = torch.tensor(student, dtype=torch.float64)
    value = F.mse_probabilities(logits, torch.tensor(teacher, dtype=torch.float64).log())
    assert float(value) == pytest.approx(by_hand, abs=1e-12)


def test_soft_cross_entropy_is_kl_plus_the_teacher_s_entropy_with_one_gradient():
    entropy = -(softmax(T / 2, -1) * log_softmax(T / 2, -1)).sum(-1) * 4
    value = F.soft_cross_entropy(s, t, temperature=2.0, reduction="none")
    np.testing.assert_allclose(value.numpy(), F.kl(s, t, temperature=2.0, reduction="none").numpy() + entropy)
    grads = []
    for loss in (F.soft_cross_entropy, F.kl):
        x = s.clone().requires_grad_()
        loss(x, t, temperature=2.0).backward()
        grads.append(x.grad)
    assert torch.allclose(*grads)


def test_mse_logits_is_the_mean_over_classes():
    np.testing.assert_allclose(F.mse_logits(s, t, reduction="none").numpy(), ((S - T) ** 2).mean(-1))


@pytest.mark.parametrize("loss", [F.kl, F.soft_cross_entropy, F.mse_logits, F.mse_probabilities])
def test_reductions_agree(loss):
    each = loss(s, t, reduction="none")
    assert torch.allclose(loss(s, t), each.mean())
    assert torch.allclose(loss(s, t, reduction="sum"), each.sum())
    with pytest.raises(ValueError, match="mean, sum, none"):
        loss(s, t, reduction="batchmean")


def pearson(a, b):
    return np.corrcoef(a, b)[0, 1]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dist_is_one_minus_numpy_s_correlations(temperature):
    p, q = softmax(T / temperature, -1), softmax(S / temperature, -1)
    between = np.array([1 - pearson(p[i], q[i]) for i in range(7)])
    within = np.mean([1 - pearson(p[:, c], q[:, c]) for c in range(4)])
    value = F.dist(s, t, beta=2.0, gamma=3.0, temperature=temperature, reduction="none")
    np.testing.assert_allclose(value, temperature**2 * (2 * between + 3 * within))
    paper = F.dist(s, t, beta=2.0, gamma=3.0, temperature=temperature, temperature_scaling="none", reduction="none")
    np.testing.assert_allclose(paper, 2 * between + 3 * within)


def test_mlkd_is_kl_and_two_kinds_of_relations_over_temperatures():
    expected = np.zeros(7)
    for heat in (2.0, 5.0):
        p, q = softmax(T / heat, -1), softmax(S / heat, -1)
        by_sample = ((p @ p.T - q @ q.T) ** 2).sum(-1)
        by_class = ((p.T @ p - q.T @ q) ** 2).sum() / 4
        expected += heat**2 * rel_entr(p, q).sum(-1) + 0.5 * by_sample + 2 * by_class
    value = F.mlkd(s, t, temperatures=(2.0, 5.0), samples=0.5, classes=2.0, reduction="none")
    np.testing.assert_allclose(value, expected)


def test_mlkd_without_a_temperature_is_refused():
    with pytest.raises(ValueError, match=r"there is none(.|\n)*To mend"):
        F.mlkd(s, t, temperatures=())
