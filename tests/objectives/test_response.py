"""What is special about each loss on outputs, against computations by hand and scipy."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax

from limbeck import functional as F
from limbeck.objectives import KL, Label

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


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kl_is_scipy_s_relative_entropy_teacher_first(temperature):
    expected = rel_entr(softmax(T / temperature, -1), softmax(S / temperature, -1)).sum(-1)
    bare = F.kl(s, t, temperature=temperature, temperature_scaling="none", reduction="none")
    np.testing.assert_allclose(bare.numpy(), expected, rtol=1e-10)
    np.testing.assert_allclose(
        F.kl(s, t, temperature=temperature, reduction="none").numpy(), temperature**2 * expected, rtol=1e-10
    )


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


def test_kl_of_classes_that_both_rule_out_is_finite_with_finite_gradient():
    a = torch.tensor([[1.0, 2.0, -torch.inf]], requires_grad=True)
    b = torch.tensor([[2.0, 1.0, -torch.inf]])
    value = F.kl(a, b)
    value.backward()
    assert torch.allclose(value, F.kl(a[:, :2], b[:, :2]))
    assert torch.isfinite(a.grad).all()


def test_labels_are_numpy_s_cross_entropy_and_unlabelled_samples_cost_nothing():
    y = torch.tensor([0, 1, 2, 3, -1, 1, -1])
    value = F.label_cross_entropy(s, y, reduction="none").numpy()
    expected = -log_softmax(S, -1)[np.arange(7), y.clamp_min(0).numpy()] * (y.numpy() >= 0)
    np.testing.assert_allclose(value, expected)


def test_soft_labels_mix_and_may_be_narrower_than_the_logits():
    soft = torch.tensor([[0.25, 0.75, 0.0]]).double().repeat(7, 1)
    soft[3] = 0.0  # a sample without label, mixed
    expected = -(log_softmax(S, -1)[:, :3] * soft.numpy()).sum(-1)
    np.testing.assert_allclose(F.label_cross_entropy(s, soft, reduction="none").numpy(), expected)


def test_smoothing_is_a_mixture_with_the_even_answer_for_hard_and_soft_labels():
    y = torch.tensor([0, 1, 2, 3, -1, 1, 2])
    one_hot = torch.nn.functional.one_hot(y.clamp_min(0), 4).double() * (y >= 0)[:, None]
    hard = F.label_cross_entropy(s, y, smoothing=0.2, reduction="none")
    mixed = 0.8 * one_hot.numpy() + 0.2 / 4
    expected = -(mixed * log_softmax(S, -1)).sum(-1) * (y.numpy() >= 0)
    np.testing.assert_allclose(hard.numpy(), expected)
    np.testing.assert_allclose(F.label_cross_entropy(s, one_hot, smoothing=0.2, reduction="none").numpy(), expected)


def test_the_size_of_the_gradient_is_level_over_temperature():
    sizes = []
    g = torch.Generator().manual_seed(0)
    small = [torch.randn(512, 10, generator=g, dtype=torch.float64) * 0.5 for _ in range(2)]
    for temperature in (1.0, 2.0, 4.0, 8.0, 16.0):
        x = small[0].clone().requires_grad_()
        F.kl(x, small[1], temperature=temperature).backward()
        sizes.append(float(x.grad.norm()))
    assert max(sizes) / min(sizes) < 1.25


@pytest.mark.parametrize("bad", [0, -1.0, float("inf"), "4"])
def test_an_impossible_temperature_is_refused(bad):
    with pytest.raises(ValueError, match="To mend"):
        KL(temperature=bad)


def test_impossible_smoothing_and_labels_that_do_not_line_up_are_refused():
    with pytest.raises(ValueError, match="smoothing"):
        Label(smoothing=1.0)
    with pytest.raises(ValueError, match=r"logits are \(7, 4\), labels are \(3,\)"):
        F.label_cross_entropy(s, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="labels go from 0 to 9, the student has 4 classes"):
        F.label_cross_entropy(s, torch.tensor([0, 9, 1, 1, 1, 1, 1]))
    with pytest.raises(ValueError, match="labels are"):
        F.label_cross_entropy(s, torch.zeros(7, 5))
