"""Faults that published distillation libraries have, each with the test that would have caught it.

The names follow the list of bugs that this project keeps: those about losses are here (b07 runs over the whole
table in `tests/contracts/test_terms.py`, b09 in `test_temperature.py`, b10 in `test_feature.py`, b11 in
`test_reconstruct.py`, b12 and b14 in `test_contrast.py`); those about teachers and loops are in `tests/contracts/`.
"""

import importlib
import pkgutil
import warnings

import pytest
import torch
from scipy.special import rel_entr, softmax

import limbeck
import limbeck as lb
from limbeck import functional as F
from limbeck.objectives import TERMS

G = torch.Generator().manual_seed(0)
S, T = (torch.randn(8, 6, generator=G, dtype=torch.float64) * 2 for _ in range(2))
Y = torch.arange(8) % 6
SOFT = ["kl", "reverse_kl", "jsd", "skew_kl", "total_variation", "alpha_beta", "mse_probabilities"]
BATCH = {"valid": torch.ones(8, dtype=torch.bool), "y": Y}


def test_b01_the_factor_t_squared_and_the_weight_do_not_depend_on_labels_beside():
    """The soft loss lost T² and its weight where there was no label term, and could not be built with its defaults."""
    bare = rel_entr(softmax(T / 3, -1), softmax(S / 3, -1)).sum(-1)
    value = lb.KL(temperature=3.0)({"logits": S}, {"logits": T}, BATCH)
    torch.testing.assert_close(value, torch.from_numpy(9 * bare))
    small = [0.7 * value.mean() + share * F.label_cross_entropy(S, Y) for share in (1e-9, 0.0)]
    torch.testing.assert_close(*small)
    assert all(term() for name, term in TERMS.items() if name in ("kl", "dkd", "nkd", "dist", "mlkd"))


@pytest.mark.parametrize("name", SOFT)
def test_b02_raw_logits_are_never_taken_for_probabilities(name):
    """KL of raw clipped logits: not zero at equality, and without gradient where a logit was below zero."""
    loss = getattr(F, name)
    assert float(loss(T, T).abs()) < 1e-12
    assert float(loss(S, T)) > 1e-3
    torch.testing.assert_close(loss(S - 100, T - 100), loss(S, T))
    x = (S - 100).requires_grad_()
    loss(x, T).backward()
    assert (x.grad.abs() > 0).all()


@pytest.mark.parametrize("name", [name for name in SOFT if name != "total_variation"])
def test_b03_gradients_stay_level_over_temperature(name):
    """Without T² soft gradients shrink to 1/16 at T = 4. (Total variation is of first order: there T² is too much.)"""
    sizes = []
    for temperature in (1.0, 2.0, 4.0, 8.0, 16.0):
        x = (S / 8).requires_grad_()
        getattr(F, name)(x, T / 8, temperature=temperature).backward()
        sizes.append(float(x.grad.norm()))
    assert max(sizes) / min(sizes) < 1.25


def test_b04_the_direction_is_teacher_first():
    sharp = torch.tensor([[8.0, 0.0, 0.0]], dtype=torch.float64)
    flat = torch.zeros(1, 3, dtype=torch.float64)
    p, q = softmax(sharp.numpy(), -1), softmax(flat.numpy(), -1)
    assert float(F.kl(flat, sharp)) == pytest.approx(rel_entr(p, q).sum())
    assert float(F.reverse_kl(flat, sharp)) == pytest.approx(rel_entr(q, p).sum())
    assert abs(rel_entr(p, q).sum() - rel_entr(q, p).sum()) > 0.1


@pytest.mark.parametrize("name", [*SOFT, "soft_cross_entropy"])
def test_b05_the_mean_is_over_samples_and_never_over_classes(name):
    """Duplicated samples and classes that are ruled out change nothing."""
    loss = getattr(F, name)
    torch.testing.assert_close(loss(torch.cat([S, S]), torch.cat([T, T])), loss(S, T))
    pad = torch.full((8, 50), -torch.inf, dtype=torch.float64)
    torch.testing.assert_close(loss(torch.cat([S, pad], -1), torch.cat([T, pad], -1)), loss(S, T))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_b06_dkd_is_finite_where_the_other_classes_underflow(dtype):
    """log(softmax) was −inf from a gap of 17 on in half precision."""
    for gap in (20.0, 200.0, 1e4):
        x = torch.tensor([[gap, 0.0, -gap], [-gap, gap, 0.0]], dtype=dtype, requires_grad=True)
        t = torch.tensor([[gap, -gap, 0.0], [gap, 0.0, -gap]], dtype=dtype)
        value = F.dkd(x, t, torch.tensor([0, 0]), temperature=1.0)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(x.grad).all()


def test_b06_dkd_with_two_classes_says_that_beta_has_no_say():
    with pytest.warns(UserWarning, match="two classes"):
        value = F.dkd(S[:, :2], T[:, :2], Y % 2, beta=100.0, temperature=1.0)
    torch.testing.assert_close(value, F.kl(S[:, :2], T[:, :2]))


def test_b06_a_warm_up_does_not_lose_the_first_epoch_to_an_off_by_one():
    """A weight that rises from 0 is above 0 from the second step on."""
    warm = lb.schedules.Linear(start=0.0, end=1.0, until=0.1)
    assert warm(0.0) == 0.0
    assert warm(1 / 1000) > 0
    assert warm(0.1) == 1.0


def test_b08_a_mask_really_takes_samples_out():
    """A scalar loss times a mask only scales; here each sample has its own value."""
    valid = torch.tensor([True] * 4 + [False] * 4)
    wild = torch.cat([S[:4], S[4:] * 100])
    for kind in ("mlkd", "dist", "kl"):
        one = TERMS[kind]()({"logits": S}, {"logits": T}, {**BATCH, "valid": valid})
        two = TERMS[kind]()({"logits": wild}, {"logits": T}, {**BATCH, "valid": valid})
        torch.testing.assert_close(one[:4], two[:4])


def test_b08_mlkd_softens_each_temperature_on_its_own():
    alone = [F.mlkd(S, T, temperatures=(heat,)) for heat in (2.0, 5.0)]
    torch.testing.assert_close(F.mlkd(S, T, temperatures=(2.0, 5.0)), sum(alone))
    assert float(F.mlkd(S, T, classes=0.0)) < float(F.mlkd(S, T))


def test_b15_every_module_can_be_imported():
    for module in pkgutil.walk_packages(limbeck.__path__, "limbeck."):
        importlib.import_module(module.name)


def test_b17_squared_error_of_probabilities_softens_both_sides():
    """Log-softmax of one side against softmax of the other: not zero at equality."""
    assert float(F.mse_probabilities(T, T)) == 0
    expected = ((softmax(S.numpy() / 2, -1) - softmax(T.numpy() / 2, -1)) ** 2).sum(-1).mean() * 4
    assert float(F.mse_probabilities(S, T, temperature=2.0)) == pytest.approx(expected)


def test_b20_every_term_runs_with_every_word_it_offers():
    layers = {"s": torch.randn(4, 3, 5, 5, generator=G), "t": torch.randn(4, 3, 5, 5, generator=G)}
    batch = {"valid": torch.ones(4, dtype=torch.bool), "y": torch.arange(4) % 3}
    for head in ("auto", "linear", "mlp", "attention", "none"):
        term = lb.Hint(student="s", teacher="t", head=head)
        signal = {"s": layers["s"]}
        for request in term.heads():
            signal.update(request(signal, {"t": layers["t"]})(signal, {}, batch))
        assert torch.isfinite(term(signal, {"t": layers["t"]}, batch)).all()
    for by in ("certainty", "uncertainty", "correct"):
        sides = {"logits": S}, {"logits": T}, BATCH
        assert torch.isfinite(lb.Weighed(term=lb.KL(), by=by)(*sides)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_lskd_the_deviation_is_safe_in_half_precision(dtype):
    """An added 1e-7 is lost there: constant logits gave NaN."""
    for classes in (1, 2, 3):
        x = torch.full((2, classes), 5.0, dtype=dtype, requires_grad=True)
        value = F.kl(x, torch.randn(2, classes, generator=G).to(dtype), standardize=True)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(x.grad).all()
    two = F.standardize(torch.tensor([[3.0, -1.0]], dtype=dtype))
    torch.testing.assert_close(two, torch.tensor([[0.5**0.5, -(0.5**0.5)]]))


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "alpha_beta"])
def test_a_finite_loss_never_has_a_nan_gradient(name):
    """0 · inf in the backward pass of reverse KL and JS, where probabilities underflow."""
    for gap in (50.0, 500.0, 1e4):
        x = torch.tensor([[gap, -gap, 0.0], [-gap, -gap, gap]], requires_grad=True)
        t = torch.tensor([[-gap, gap, 0.0], [gap, -gap, -gap]])
        value = getattr(F, name)(x, t)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(x.grad).all()


def test_dist_has_t_squared_as_in_its_code_and_none_as_in_its_paper():
    code, paper = F.dist(S, T, temperature=4.0), F.dist(S, T, temperature=4.0, temperature_scaling="none")
    torch.testing.assert_close(code, 16 * paper)


def test_dkd_takes_mixed_labels():
    mixed = torch.zeros(8, 6, dtype=torch.float64)
    mixed[torch.arange(8), Y] = 0.6
    mixed[torch.arange(8), (Y + 1) % 6] = 0.4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.isfinite(F.dkd(S, T, mixed))


def test_different_numbers_of_classes_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match="classes="):
        F.kl(S, T[:, :4])
