"""The true class and the others, apart: against numpy on renormalised probabilities, and against plain KL."""

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from limbeck import functional as F

RNG = np.random.default_rng(0)
S, T = RNG.normal(size=(7, 4)) * 3, RNG.normal(size=(7, 4)) * 3
Y = np.array([0, 1, 2, 3, 0, 1, 2])
s, t, y = torch.from_numpy(S), torch.from_numpy(T), torch.from_numpy(Y)


def parts(p, q, c):
    """TCKD and NCKD of one example by hand."""
    target = rel_entr([p[c], 1 - p[c]], [q[c], 1 - q[c]]).sum()
    rest = [i for i in range(len(p)) if i != c]
    return target, rel_entr(p[rest] / p[rest].sum(), q[rest] / q[rest].sum()).sum()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dkd_by_hand(temperature):
    p, q = softmax(T / temperature, -1), softmax(S / temperature, -1)
    both = np.array([parts(p[i], q[i], Y[i]) for i in range(7)])
    value = F.dkd(s, t, y, alpha=0.5, beta=3.0, temperature=temperature, reduction="none")
    np.testing.assert_allclose(value, temperature**2 * (0.5 * both[:, 0] + 3 * both[:, 1]))


def test_kl_is_tckd_plus_the_teacher_s_rest_times_nckd():
    tckd = F.dkd(s, t, y, alpha=1, beta=0, temperature=2.0, reduction="none")
    nckd = F.dkd(s, t, y, alpha=0, beta=1, temperature=2.0, reduction="none")
    rest = 1 - (t / 2).softmax(-1).gather(-1, y[:, None]).squeeze(-1)
    torch.testing.assert_close(tckd + rest * nckd, F.kl(s, t, temperature=2.0, reduction="none"))


def test_nkd_by_hand():
    p, q = softmax(T, -1), softmax(S, -1)
    ph, qh = softmax(T / 2, -1), softmax(S / 2, -1)
    expected = []
    for i, c in enumerate(Y):
        rest = [j for j in range(4) if j != c]
        a, b = ph[i, rest] / ph[i, rest].sum(), qh[i, rest] / qh[i, rest].sum()
        expected.append(-p[i, c] * np.log(q[i, c]) - 1.5 * 4 * (a * np.log(b)).sum())
    np.testing.assert_allclose(F.nkd(s, t, y, temperature=2.0, reduction="none"), expected)


def test_nkd_at_equality_is_two_entropies_and_no_minimum():
    """As stated: its value where the student is the teacher, and a gradient that still pulls the true class up."""
    x = t.clone().requires_grad_()
    value = F.nkd(x, t, y, reduction="none")
    p = softmax(T, -1)
    for i, c in enumerate(Y):
        rest = np.delete(p[i], c) / (1 - p[i, c])
        assert float(value[i].detach()) == pytest.approx(-p[i, c] * np.log(p[i, c]) - 1.5 * (rest * np.log(rest)).sum())
    value.sum().backward()
    assert (x.grad.gather(-1, y[:, None]) < 0).all()


@pytest.mark.parametrize("name", ["dkd", "nkd"])
def test_a_mixed_label_is_the_expectation_over_its_classes(name):
    loss = getattr(F, name)
    other = (y + 1) % 4
    one_hot = torch.nn.functional.one_hot
    mixed = 0.7 * one_hot(y, 4).double() + 0.3 * one_hot(other, 4).double()
    expected = 0.7 * loss(s, t, y, reduction="none") + 0.3 * loss(s, t, other, reduction="none")
    torch.testing.assert_close(loss(s, t, mixed, reduction="none"), expected)
    torch.testing.assert_close(loss(s, t, one_hot(y, 4).double()), loss(s, t, y))


@pytest.mark.parametrize("name", ["dkd", "nkd"])
def test_samples_without_a_label_cost_nothing(name):
    loss = getattr(F, name)
    gaps = torch.tensor([0, -1, 2, -7, 0, 1, 2])
    value = loss(s, t, gaps, ignore=-7, reduction="none")
    assert value[1] == value[3] == 0
    torch.testing.assert_close(value[[0, 2]], loss(s, t, y, reduction="none")[[0, 2]])
    assert not loss(s, t, torch.zeros(7, 4), reduction="none").any()


def test_labels_that_are_no_class_are_refused():
    with pytest.raises(ValueError, match="labels go from 0 to 9, the student has 4 classes"):
        F.dkd(s, t, torch.tensor([0, 9, 1, 1, 1, 1, 1]))
    with pytest.raises(ValueError, match=r"dkd: logits are \(7, 4\), labels are \(3,\)"):
        F.dkd(s, t, torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match="fewer than 2 classes"):
        F.nkd(s[:, :1], t[:, :1], torch.zeros(7, dtype=torch.int64))
