"""Losses on real-valued labels, against numpy and loops."""

import numpy as np
import pytest
import torch

from limbeck.core.errors import ConfigError, ShapeError
from limbeck.objectives.regression import BoundedError, SquaredError, bounded_error, squared_error

RNG = np.random.default_rng(3)


def drawn(*shape):
    return torch.from_numpy(RNG.normal(size=shape))


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 4), (6, 4, 3)])
def test_it_is_the_mean_square_over_everything_but_the_batch(shape):
    student, target = drawn(*shape), drawn(*shape)
    expected = ((student.numpy() - target.numpy()) ** 2).reshape(6, -1).mean(1)
    np.testing.assert_allclose(squared_error(student, target, reduction="none").numpy(), expected)


def test_a_single_number_a_sample_is_lined_up_and_never_spread():
    student, target = drawn(6, 1), drawn(6)
    expected = (student.squeeze(1) - target).square()
    assert torch.equal(squared_error(student, target, reduction="none"), expected)
    assert torch.equal(squared_error(student.squeeze(1), target.unsqueeze(1), reduction="none"), expected)
    assert bounded_error(student, drawn(6), target.unsqueeze(1), reduction="none").shape == (6,)
    for wrong in (drawn(5), drawn(6, 2), drawn(1, 6), drawn(1)):
        with pytest.raises(ShapeError, match=r"squared_error: student is \(6, 1\)(.|\n)*To mend"):
            squared_error(student, wrong)


def test_a_missing_label_costs_nothing_and_pulls_at_nothing():
    student, target = drawn(3, 2), drawn(3, 2)
    target[0, 1], target[2] = np.nan, np.nan
    student[2, 0] = np.inf
    student.requires_grad_()
    for value in (
        squared_error(student, target, reduction="none"),
        bounded_error(student, target + 0.1 * target.sign(), target, margin=100.0, reduction="none"),
    ):
        value.sum().backward()
        assert torch.equal(value[2], torch.tensor(0.0, dtype=torch.float64))
        assert value[0].item() == pytest.approx((student[0, 0] - target[0, 0]).square().item() / 2)
        assert student.grad[0, 1] == student.grad[2, 0] == student.grad[2, 1] == 0
        assert student.grad[0, 0] == pytest.approx((student[0, 0] - target[0, 0]).item())
        student.grad = None


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_the_bound_lets_go_of_what_is_better_than_the_teacher(margin):
    student, teacher, target = drawn(6, 4), drawn(6, 4), drawn(6, 4)
    expected = np.zeros((6, 4))
    for i in range(6):
        for j in range(4):
            mine, theirs = ((x[i, j] - target[i, j]).item() ** 2 for x in (student, teacher))
            expected[i, j] = mine if mine + margin > theirs else 0.0
    assert 0 < (expected == 0).sum() < 24
    value = bounded_error(student, teacher, target, margin=margin, reduction="none")
    np.testing.assert_allclose(value.numpy(), expected.mean(1))


def test_at_the_teacher_s_own_answer_the_bound_is_met_unless_a_margin_asks_for_more():
    student, target = drawn(6, 4), drawn(6, 4)
    assert bounded_error(student, student.clone(), target) == 0
    assert torch.equal(bounded_error(student, student, target, margin=1e-9), squared_error(student, target))


def test_gradients_are_exact_and_reach_the_student_alone():
    student, teacher, target = drawn(3, 4).requires_grad_(), drawn(3, 4).requires_grad_(), drawn(3, 4)
    assert torch.autograd.gradcheck(lambda s: squared_error(s, target), student)
    assert torch.autograd.gradcheck(lambda s: bounded_error(s, teacher.detach(), target), student)
    bounded_error(student, teacher, target, margin=100.0).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised_and_labels_may_be_of_any_type(dtype):
    student = torch.tensor([1e4, -1e4]).to(dtype).requires_grad_()
    value = squared_error(student, torch.tensor([-10_000, 10_000]))
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()


def test_the_terms_read_their_own_column():
    student, teacher, target = drawn(6, 4), drawn(6, 4), drawn(6, 4)
    batch, signals = {"price": target}, ({"logits": student}, {"logits": teacher})
    term = SquaredError(target="price")
    assert torch.equal(term({"logits": student}, {}, batch), squared_error(student, target, reduction="none"))
    assert (term.needs().teacher, term.needs().batch) == (frozenset(), {"price"})
    bound = BoundedError(target="price", margin=0.2)
    expected = bounded_error(student, teacher, target, margin=0.2, reduction="none")
    assert torch.equal(bound(*signals, batch), expected)
    assert (bound.needs().teacher, bound.needs().batch) == ({"logits"}, {"price"})
    with pytest.raises(ConfigError, match="margin"):
        BoundedError(margin=-1.0)
    with pytest.raises(ConfigError, match="margin"):
        bounded_error(student, teacher, target, margin=-1.0)
