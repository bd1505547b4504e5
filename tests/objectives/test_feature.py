"""Losses on inner layers, and the heads that bring two shapes together."""

import numpy as np
import pytest
import torch

from limbeck import functional as F
from limbeck.objectives import Hint
from limbeck.objectives.feature import ActivationBoundary, Factor, activation_boundary, factor
from limbeck.objectives.heads import make_head

RNG = np.random.default_rng(1)


def test_hint_is_the_mean_square_of_everything_but_the_batch():
    a, b = RNG.normal(size=(3, 4, 5, 6)), RNG.normal(size=(3, 4, 5, 6))
    value = F.hint(torch.from_numpy(a), torch.from_numpy(b), reduction="none")
    np.testing.assert_allclose(value.numpy(), ((a - b) ** 2).mean((1, 2, 3)))


def test_cosine_compares_maps_along_channels_and_tokens_along_width():
    a, b = RNG.normal(size=(3, 4, 5, 6)), RNG.normal(size=(3, 4, 5, 6))
    cos = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    value = F.cosine(torch.from_numpy(a), torch.from_numpy(b), reduction="none")
    np.testing.assert_allclose(value.numpy(), (1 - cos).mean((1, 2)))
    tokens = F.cosine(torch.from_numpy(a[:, :, :, 0]), torch.from_numpy(b[:, :, :, 0]), reduction="none")
    cos = (a * b)[..., 0].sum(2) / np.linalg.norm(a[..., 0], axis=2) / np.linalg.norm(b[..., 0], axis=2)
    np.testing.assert_allclose(tokens.numpy(), (1 - cos).mean(1))


def test_cosine_is_blind_to_length_and_finite_at_zero():
    a, b = torch.randn(4, 7, dtype=torch.float64), torch.randn(4, 7, dtype=torch.float64)
    assert torch.allclose(F.cosine(3 * a, b), F.cosine(a, 0.1 * b))
    zero = torch.zeros(4, 7, requires_grad=True)
    F.cosine(zero, b.float()).backward()
    assert torch.isfinite(zero.grad).all()


def test_channels_last_maps_give_the_same_values():
    a, b = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5)
    for loss in (F.hint, F.cosine):
        for reduction in ("mean", "none"):
            there, here = (loss(x, b, reduction=reduction) for x in (a.to(memory_format=torch.channels_last), a))
            assert torch.equal(there, here)


def test_the_boundary_costs_what_a_loop_over_units_says():
    s, t = RNG.normal(size=(3, 4, 2, 5)) * 2, RNG.normal(size=(3, 4, 2, 5))
    t[0, 0] = 0  # a unit at zero is off
    for margin in (1.0, 0.3):
        hand = np.zeros(3)
        for b, c, i, j in np.ndindex(*s.shape):
            if t[b, c, i, j] <= 0 and s[b, c, i, j] > -margin:
                hand[b] += (s[b, c, i, j] + margin) ** 2
            if t[b, c, i, j] > 0 and s[b, c, i, j] <= margin:
                hand[b] += (s[b, c, i, j] - margin) ** 2
        value = activation_boundary(torch.from_numpy(s), torch.from_numpy(t), margin=margin, reduction="none")
        np.testing.assert_allclose(value.numpy(), hand)


def test_the_boundary_asks_for_nothing_beyond_the_margin_on_the_teacher_s_side():
    t = torch.randn(4, 7)
    s = (torch.where(t > 0, 1.5, -1.5) * torch.rand(4, 7).add(1)).requires_grad_()
    value = activation_boundary(s, t)
    value.backward()
    assert value == 0
    assert (s.grad == 0).all()
    assert activation_boundary(t, t) > 0, "equality is not the minimum: units near zero are within the margin"


@pytest.mark.parametrize("p", [1, 2, 1.5])
def test_factors_are_compared_by_direction_in_the_power_that_is_asked(p):
    a, b = RNG.normal(size=(3, 4, 5, 6)), RNG.normal(size=(3, 4, 5, 6))
    hand = []
    for x, y in zip(a, b, strict=True):
        x, y = x / np.sqrt((x**2).sum()), y / np.sqrt((y**2).sum())
        hand.append((np.abs(x - y) ** p).mean())
    a, b = torch.from_numpy(a), torch.from_numpy(b)
    np.testing.assert_allclose(factor(a, b, p=p, reduction="none").numpy(), hand)
    assert torch.allclose(factor(3 * a, 0.2 * b, p=p), factor(a, b, p=p))
    assert factor(a, 7 * a, p=p) < 1e-12


@pytest.mark.parametrize("loss", [activation_boundary, factor])
def test_layers_of_two_shapes_are_refused_and_odd_input_is_finite(loss):
    with pytest.raises(ValueError, match=r"student is .*, teacher is(.|\n)*To mend"):
        loss(torch.ones(2, 3), torch.ones(2, 4))
    for fill in (0.0, 1e4, -1e4):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            s = torch.full((2, 3, 2, 1), fill, dtype=dtype, requires_grad=True)
            value = loss(s, torch.full((2, 3, 2, 1), 1e4, dtype=dtype))
            value.backward()
            assert value.dtype == torch.float32
            assert torch.isfinite(value)
            assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize("loss", [activation_boundary, factor])
def test_the_gradient_is_exact_and_a_step_along_it_reduces_the_loss(loss):
    s, t = torch.randn(2, 3, 4, 2, dtype=torch.float64, requires_grad=True), torch.randn(2, 3, 4, 2).double()
    assert torch.autograd.gradcheck(lambda x: loss(x, t), s)
    value = loss(s, t)
    (grad,) = torch.autograd.grad(value, s)
    assert loss(s - 1e-3 * grad, t) < value
    assert torch.equal(loss(s.to(memory_format=torch.channels_last), t), value)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (lambda: Factor(student="a", teacher="b", p=0.5), "below 1"),
        (lambda: Factor(student="a", teacher="b", weight=-1), "negative"),
        (lambda: factor(torch.ones(1, 2), torch.ones(1, 2), p=0), "not above zero"),
        (lambda: ActivationBoundary(student="a", teacher="b", margin=0.0), "not above zero"),
        (lambda: activation_boundary(torch.ones(1, 2), torch.ones(1, 2), margin=-1), "not above zero"),
    ],
)
def test_impossible_settings_are_refused(bad, said):
    with pytest.raises(ValueError, match=said):
        bad()


def test_terms_hand_their_settings_on():
    s, t = torch.randn(2, 5), torch.randn(2, 5)
    term = Factor(student="s", teacher="t", head="none", p=2.0)
    assert torch.equal(term({"s": s}, {"t": t}, {}), factor(s, t, p=2, reduction="none"))
    term = ActivationBoundary(student="s", teacher="t", head="none", margin=0.5)
    assert torch.equal(term({"s": s}, {"t": t}, {}), activation_boundary(s, t, margin=0.5, reduction="none"))


@pytest.mark.parametrize(
    ("student", "teacher"), [((2, 3, 8, 6), (2, 7, 4, 3)), ((2, 9, 3), (2, 5, 7)), ((2, 7, 8, 6), (2, 7, 4, 3))]
)
def test_a_head_for_channels_leaves_positions_alone(student, teacher):
    head = make_head("channels", student, teacher, "fsp")
    width = teacher[1] if len(teacher) == 4 else teacher[-1]
    wanted = (5, width, *student[2:]) if len(student) == 4 else (5, student[1], width)
    assert head(torch.randn(5, *student[1:])).shape == wanted
    with pytest.raises(ValueError, match="no projection leads"):
        make_head("channels", student, (2, 7), "fsp")


@pytest.mark.parametrize("form", ["auto", "linear", "mlp"])
@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((2, 3), (2, 7)),
        ((2, 5, 3), (2, 5, 7)),
        ((2, 9, 3), (2, 5, 7)),
        ((2, 3, 8, 6), (2, 7, 8, 6)),
        ((2, 3, 8, 6), (2, 7, 4, 3)),
        ((2, 3, 4, 3), (2, 7, 8, 6)),
        ((2, 3, 4, 3), (2, 7)),
    ],
)
def test_a_head_leads_from_any_shape_to_the_teacher_s(form, student, teacher):
    head = make_head(form, student, teacher, "hint")
    assert head(torch.randn(5, *student[1:])).shape == (5, *teacher[1:])
    assert any(p.requires_grad for p in head.parameters())


def test_equal_shapes_need_no_head():
    assert not list(make_head("auto", (2, 3, 4, 4), (9, 3, 4, 4), "hint").parameters())


@pytest.mark.parametrize(("form", "student"), [("auto", (2, 3)), ("none", (2, 3, 4, 4)), ("linear", (2, 3))])
def test_where_no_road_leads_it_says_so(form, student):
    with pytest.raises(ValueError, match="no projection leads"):
        make_head(form, student, (2, 7, 4, 4), "hint")


def test_an_unknown_head_is_refused():
    with pytest.raises(ValueError, match="auto, linear, mlp, attention, none"):
        Hint(student="a", teacher="b", head="conv")
