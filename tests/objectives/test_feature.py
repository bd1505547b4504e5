"""Losses on inner layers, and the heads that bring two shapes together."""

import numpy as np
import pytest
import torch

from limbeck import functional as F
from limbeck.objectives import Hint
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
        assert torch.equal(loss(a.to(memory_format=torch.channels_last), b), loss(a, b))


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


@pytest.mark.parametrize(("form", "student"), [("auto", (2, 3)), ("none", (2, 3, 4, 4)), ("linear", (2, 5, 3))])
def test_where_no_road_leads_it_says_so(form, student):
    with pytest.raises(ValueError, match="no projection leads"):
        make_head(form, student, (2, 7, 4, 4), "hint")


def test_an_unknown_head_is_refused():
    with pytest.raises(ValueError, match="auto, linear, mlp, none"):
        Hint(student="a", teacher="b", head="conv")
