"""The divergence family against scipy, published numbers, and the identities that tie its members together."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr, softmax

from limbeck import functional as F
from limbeck.objectives import JSD, KL, AlphaBeta, SkewKL
from limbeck.objectives.logspace import complement, log_mix, standardize

RNG = np.random.default_rng(0)
S, T = RNG.normal(size=(7, 4)) * 3, RNG.normal(size=(7, 4)) * 3
s, t = torch.from_numpy(S), torch.from_numpy(T)
P, Q = softmax(T, -1), softmax(S, -1)

# Two tokens of a worked example; the values were made in double precision from the formulas alone.
GOLD_T = torch.tensor([[2, 1, 0.5, -1, -2], [0, 3, -1, 0.5, 1]], dtype=torch.float64)
GOLD_S = torch.tensor([[1, 1.5, 0, -0.5, -1], [0.5, 1, 0, -0.5, 2]], dtype=torch.float64)
GOLD = [
    ("kl", {}, 0.532621666),
    ("soft_cross_entropy", {}, 1.461851131),
    ("reverse_kl", {}, 0.576221183),
    ("jsd", {"beta": 0.1}, 0.047060772),
    ("jsd", {"beta": 0.5}, 0.128846814),
    ("jsd", {"beta": 0.9}, 0.049859448),
    ("skew_kl", {"alpha": 0.1}, 0.417296089),
    ("skew_reverse_kl", {"alpha": 0.1}, 0.433848951),
    ("total_variation", {}, 0.462430945),
    ("alpha_beta", {"alpha": 0.2, "beta": 0.7}, 0.630444739),
    ("alpha_beta", {"alpha": 0.5, "beta": 0.5}, 0.533897391),
    ("alpha_beta", {"alpha": 1, "beta": 1e-6}, 0.532621003),
    ("alpha_beta", {"alpha": 1e-6, "beta": 1}, 0.576220319),
    ("alpha_beta", {"alpha": 0.5, "beta": 0}, 1.080560716),
    ("kl", {"temperature": 2.0, "temperature_scaling": "none"}, 0.143825407),
    ("kl", {"temperature": 2.0}, 0.575301627),
]


@pytest.mark.parametrize(("name", "settings", "value"), GOLD)
def test_golden_numbers(name, settings, value):
    assert float(getattr(F, name)(GOLD_S, GOLD_T, **settings)) == pytest.approx(value, abs=1e-8 / 2)


def test_golden_entropy_is_the_difference_of_cross_entropy_and_kl():
    difference = F.soft_cross_entropy(GOLD_S, GOLD_T) - F.kl(GOLD_S, GOLD_T)
    assert float(difference) == pytest.approx(0.929229465, abs=1e-8)


def test_golden_labels():
    assert float(F.label_cross_entropy(GOLD_S, torch.tensor([0, 4]))) == pytest.approx(0.904436963, abs=1e-8)
    third = torch.tensor([[9.0, 0, 0, 0, 0]], dtype=torch.float64)
    value = F.label_cross_entropy(torch.cat([GOLD_S, third]), torch.tensor([0, 4, -100]), ignore=-100, reduction="sum")
    assert float(value) / 2 == pytest.approx(0.904436963, abs=1e-8)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kl_and_its_reverse_are_scipy_s_relative_entropy(temperature):
    p, q = softmax(T / temperature, -1), softmax(S / temperature, -1)
    for loss, expected in ((F.kl, rel_entr(p, q)), (F.reverse_kl, rel_entr(q, p))):
        bare = loss(s, t, temperature=temperature, temperature_scaling="none", reduction="none")
        np.testing.assert_allclose(bare.numpy(), expected.sum(-1), rtol=1e-10)
        np.testing.assert_allclose(
            loss(s, t, temperature=temperature, reduction="none"), temperature**2 * expected.sum(-1), rtol=1e-10
        )


def test_jsd_is_scipy_s_at_one_half_and_by_hand_elsewhere():
    np.testing.assert_allclose(F.jsd(s, t, reduction="none"), jensenshannon(P, Q, axis=-1) ** 2, rtol=1e-10)
    m = 0.3 * P + 0.7 * Q
    expected = 0.3 * rel_entr(P, m).sum(-1) + 0.7 * rel_entr(Q, m).sum(-1)
    np.testing.assert_allclose(F.jsd(s, t, beta=0.3, reduction="none"), expected, rtol=1e-10)


def test_skew_forms_and_total_variation_by_hand():
    mixed = rel_entr(P, 0.2 * P + 0.8 * Q).sum(-1)
    np.testing.assert_allclose(F.skew_kl(s, t, alpha=0.2, reduction="none"), mixed, rtol=1e-10)
    mixed = rel_entr(Q, 0.2 * Q + 0.8 * P).sum(-1)
    np.testing.assert_allclose(F.skew_reverse_kl(s, t, alpha=0.2, reduction="none"), mixed, rtol=1e-10)
    np.testing.assert_allclose(F.total_variation(s, t, reduction="none"), abs(P - Q).sum(-1) / 2, rtol=1e-10)


@pytest.mark.parametrize(("beta", "limit"), [(1e-6, "kl"), (1 - 1e-6, "reverse_kl")])
def test_jsd_over_its_share_tends_to_kl_and_over_the_rest_to_reverse_kl(beta, limit):
    share = beta if limit == "kl" else 1 - beta
    each = F.jsd(s, t, beta=beta, reduction="none") / share
    torch.testing.assert_close(each, getattr(F, limit)(s, t, reduction="none"), rtol=1e-3, atol=1e-3)


def test_jsd_is_bounded_and_symmetric_at_one_half():
    far, near = torch.tensor([[50.0, -50.0]]), torch.tensor([[-50.0, 50.0]])
    assert float(F.jsd(far, near)) == pytest.approx(math.log(2))
    torch.testing.assert_close(F.jsd(s, t), F.jsd(t, s))


def test_alpha_beta_s_named_points():
    """KL, its reverse, four squared Hellinger distances, and half a squared error."""
    close = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(F.alpha_beta(s, t, alpha=1, beta=0), F.kl(s, t), **close)
    torch.testing.assert_close(F.alpha_beta(s, t, alpha=0, beta=1), F.reverse_kl(s, t), **close)
    hellinger = ((np.sqrt(P) - np.sqrt(Q)) ** 2).sum(-1) / 2
    np.testing.assert_allclose(F.alpha_beta(s, t, alpha=0.5, beta=0.5, reduction="none"), 4 * hellinger, rtol=1e-9)
    half = F.mse_probabilities(s, t) / 2
    torch.testing.assert_close(F.alpha_beta(s, t, alpha=1, beta=1), half, **close)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_alpha_beta_is_continuous_at_its_ends(power):
    for small in (1e-3, 1e-5):
        near, end = F.alpha_beta(s, t, alpha=power, beta=small), F.alpha_beta(s, t, alpha=power, beta=0)
        assert float((near - end).abs()) < 20 * small * (1 + float(end))
        near, end = F.alpha_beta(s, t, alpha=small, beta=power), F.alpha_beta(s, t, alpha=0, beta=power)
        assert float((near - end).abs()) < 20 * small * (1 + float(end))


def test_alpha_beta_with_a_small_dial_is_exact_in_float32():
    exact = F.alpha_beta(s, t, alpha=1, beta=1e-4)
    assert float(F.alpha_beta(s.float(), t.float(), alpha=1, beta=1e-4)) == pytest.approx(float(exact), rel=1e-5)


@given(seed=st.integers(0, 500), shift=st.floats(-3, 3), factor=st.floats(0.2, 5))
def test_standardized_logits_are_blind_to_shift_and_scale(seed, shift, factor):
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(4, 6, generator=g, dtype=torch.float64) for _ in range(2))
    other = F.kl(a * factor + shift, b, temperature=2.0, standardize=True)
    torch.testing.assert_close(other, F.kl(a, b, temperature=2.0, standardize=True), rtol=1e-9, atol=1e-12)
    expected = (a - a.mean(-1, keepdim=True)) / a.std(-1, keepdim=True)
    torch.testing.assert_close(standardize(a), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_standardizing_constants_and_single_classes_gives_zeros_with_finite_gradient(dtype):
    for x in (torch.full((2, 5), 1234.0), torch.full((2, 1), 3.0), torch.zeros(2, 3)):
        logits = x.to(dtype).requires_grad_()
        value = standardize(logits)
        assert not value.any()
        value.sum().backward()
        assert torch.isfinite(logits.grad).all()


def test_the_size_of_the_gradient_is_level_over_temperature():
    """T²-scaled KL on random logits: largest over smallest gradient norm over T in 1, 2, 4, 8, 16 is below 1.25."""
    sizes = []
    g = torch.Generator().manual_seed(0)
    small = [torch.randn(512, 10, generator=g, dtype=torch.float64) * 0.5 for _ in range(2)]
    for temperature in (1.0, 2.0, 4.0, 8.0, 16.0):
        x = small[0].clone().requires_grad_()
        F.kl(x, small[1], temperature=temperature).backward()
        sizes.append(float(x.grad.norm()))
    assert max(sizes) / min(sizes) < 1.25


def test_a_temperature_for_each_example_is_that_example_s_temperature():
    each = torch.tensor([1.0, 2.0, 4.0, 0.5, 3.0, 1.0, 2.0], dtype=torch.float64)
    for name in ("kl", "reverse_kl", "jsd", "total_variation", "mse_probabilities", "soft_cross_entropy", "alpha_beta"):
        together = getattr(F, name)(s, t, temperature=each, reduction="none")
        alone = [getattr(F, name)(s[i], t[i], temperature=float(each[i]), reduction="none") for i in range(7)]
        torch.testing.assert_close(together, torch.stack(alone))


@pytest.mark.parametrize(
    "name", ["kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "total_variation", "alpha_beta"]
)
def test_classes_that_both_sides_rule_out_have_no_say(name):
    loss = getattr(F, name)
    a = torch.tensor([[1.0, 2.0, -torch.inf]], requires_grad=True)
    b = torch.tensor([[2.0, 1.0, -torch.inf]])
    value = loss(a, b)
    value.backward()
    torch.testing.assert_close(value, loss(a[:, :2], b[:, :2]))
    assert torch.isfinite(a.grad).all()


@given(share=st.floats(0.01, 0.99), seed=st.integers(0, 100))
def test_a_mixture_in_log_space_is_the_mixture(share, seed):
    g = torch.Generator().manual_seed(seed)
    p, q = (torch.randn(3, 5, generator=g, dtype=torch.float64).softmax(-1) for _ in range(2))
    torch.testing.assert_close(log_mix(p.log(), q.log(), share).exp(), share * p + (1 - share) * q)


def test_the_log_of_the_rest_is_exact_at_both_ends():
    p = torch.tensor([0.0, 1e-30, 1e-9, 0.3, 0.5, 0.7, 1 - 1e-9, 1.0], dtype=torch.float64)
    expected = [math.log1p(-float(v)) if v < 1 else -math.inf for v in p]
    np.testing.assert_allclose(complement(p.log()).numpy(), expected, rtol=1e-6)
    x = torch.tensor([-1e-3, -1.0, -50.0, 0.0], dtype=torch.float64, requires_grad=True)
    complement(x)[:3].sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: JSD(beta=0), "at 0 it is `reverse_kl`, at 1 `kl`"),
        (lambda: JSD(beta=1.0), "at 0 it is `reverse_kl`, at 1 `kl`"),
        (lambda: F.jsd(s, t, beta=1), "at 0 it is `reverse_kl`, at 1 `kl`"),
        (lambda: SkewKL(alpha=1.0), "skew_kl.alpha"),
        (lambda: AlphaBeta(alpha=0, beta=0), "both 0"),
        (lambda: AlphaBeta(alpha=-0.5), "negative"),
        (lambda: KL(temperature=0), "temperature"),
        (lambda: KL(temperature="4"), "temperature"),
        (lambda: KL(temperature=float("inf")), "temperature"),
    ],
)
def test_impossible_settings_are_refused_with_a_mend(make, said):
    with pytest.raises(ValueError, match=rf"{said}(.|\n)*To mend"):
        make()
