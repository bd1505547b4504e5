"""Oracle: scipy's entropy, and laws."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import entropy, spearmanr

from limbeck.core.errors import DataError, ModelError, ShapeError
from limbeck.metrics.agreement import (
    disagreements,
    teacher_kl,
    teacher_kl_per_sample,
    teacher_rank,
    teacher_rank_per_sample,
    top1_agreement,
)


@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(2, 6))
def test_kl_equals_scipy_is_zero_at_equality_and_blind_to_shift(seed, n, c):
    rng = np.random.default_rng(seed)
    s, t = rng.normal(size=(2, n, c)) * 4
    ours = teacher_kl(torch.tensor(s), torch.tensor(t))
    assert ours == pytest.approx(np.mean(entropy(softmax(t, 1), softmax(s, 1), axis=1)), abs=1e-10)
    assert teacher_kl(torch.tensor(t), torch.tensor(t)) == 0.0
    assert teacher_kl(torch.tensor(s + 7), torch.tensor(t - 3)) == pytest.approx(ours, abs=1e-10)


def test_kl_direction_is_teacher_first():
    s, t = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(9.0), 0.0]])
    assert teacher_kl(s, t) == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2), abs=1e-6)


def test_kl_at_the_edges():
    masked, flat = torch.tensor([[0.0, 0.0, -math.inf]]), torch.zeros(1, 3)
    assert teacher_kl(flat, masked) == pytest.approx(math.log(1.5), abs=1e-12)
    assert teacher_kl(masked, masked) == 0.0
    assert teacher_kl(masked, flat) == math.inf
    huge = torch.tensor([[1e4, -1e4]])
    assert teacher_kl_per_sample(-huge, huge).tolist() == [2e4]


def test_agreement_counts_equal_tops():
    s = torch.tensor([[1.0, 0], [1, 0], [0, 1], [2, 1]])
    assert top1_agreement(s, s) == 1.0
    assert top1_agreement(s, -s) == 0.0
    assert top1_agreement(s, torch.tensor([[9.0, 0], [0, 9], [0, 9], [9, 0]])) == 0.75


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ShapeError, match=r"student is \[2, 3\], teacher is \[2, 4\]"):
        teacher_kl(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(DataError, match="no sample"):
        top1_agreement(torch.zeros(0, 3), torch.zeros(0, 3))
    with pytest.raises(ModelError, match="teacher: the logits of 1 of 1"):
        top1_agreement(torch.zeros(1, 2), torch.full((1, 2), math.nan))


def test_disagreements_are_those_of_the_top_class_worst_first():
    teacher = torch.tensor([[9.0, 0.0], [1.0, 0.0], [0.0, 3.0], [2.0, 0.0]])
    student = torch.tensor([[0.0, 9.0], [2.0, 0.0], [0.5, 0.0], [0.0, 0.1]])
    assert disagreements(student, teacher).tolist() == [0, 2, 3]
    assert disagreements(teacher, teacher).tolist() == []


@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(2, 6), st.booleans())
def test_rank_correlation_is_scipys_of_each_sample(seed, n, c, tied):
    rng = np.random.default_rng(seed)
    s, t = rng.integers(0, 3, size=(2, n, c)).astype(float) if tied else rng.normal(size=(2, n, c))
    mine = teacher_rank_per_sample(torch.tensor(s), torch.tensor(t)).tolist()
    # scipy warns of constant rows and answers NaN; ours say so without a warning.
    varied = [len(set(a)) > 1 and len(set(b)) > 1 for a, b in zip(s, t, strict=True)]
    theirs = [spearmanr(a, b).statistic if ok else math.nan for a, b, ok in zip(s, t, varied, strict=True)]
    np.testing.assert_allclose(mine, theirs, atol=1e-12)
    known = [value for value in theirs if not math.isnan(value)]
    whole = teacher_rank(torch.tensor(s), torch.tensor(t))
    assert whole == (pytest.approx(np.mean(known), abs=1e-12) if known else None)


def test_rank_correlation_at_the_edges():
    order = torch.tensor([[3.0, 1.0, 2.0]])
    assert teacher_rank(order, 100 * order.exp()) == pytest.approx(1.0)
    assert teacher_rank(order, -order) == pytest.approx(-1.0)
    flat = torch.zeros(1, 3)
    assert teacher_rank(flat, order) is None
    assert teacher_rank(torch.cat([flat, order]), torch.cat([order, order])) == pytest.approx(1.0)
    assert teacher_rank(torch.zeros(2, 1), torch.zeros(2, 1)) is None
    masked = torch.tensor([[3.0, -math.inf, 2.0]])
    assert teacher_rank(masked, order) == pytest.approx(1.0)
    with pytest.raises(ModelError, match="NaN"):
        teacher_rank(order, order * math.nan)
    with pytest.raises(ShapeError):
        teacher_rank(order, order[:, :2])
    with pytest.raises(DataError, match="no sample"):
        teacher_rank(order[:0], order[:0])
