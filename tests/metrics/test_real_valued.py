"""Oracle: scikit-learn and scipy, and what has no value."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from limbeck.core.errors import DataError, NonFiniteError, ShapeError
from limbeck.metrics.regression import (
    average_ranks,
    mean_absolute_error,
    mean_squared_error,
    pearson,
    r2,
    spearman,
)

ALL = (mean_squared_error, mean_absolute_error, r2, pearson, spearman)


def drawn(seed, n, tied):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 4, size=(2, n)).astype(float) if tied else rng.normal(size=(2, n)) * 10 + 3


@given(st.integers(0, 2**31), st.integers(2, 60), st.booleans())
def test_equal_sklearn_and_scipy(seed, n, tied):
    p, y = drawn(seed, n, tied)
    mine = [f(torch.tensor(p), torch.tensor(y)) for f in ALL]
    assert mine[0] == pytest.approx(sk.mean_squared_error(y, p), rel=1e-12)
    assert mine[1] == pytest.approx(sk.mean_absolute_error(y, p), rel=1e-12)
    assert mine[2] == (pytest.approx(sk.r2_score(y, p), abs=1e-9) if len(set(y)) > 1 else None)
    if len(set(y)) > 1 and len(set(p)) > 1:
        assert mine[3] == pytest.approx(stats.pearsonr(p, y).statistic, abs=1e-12)
        assert mine[4] == pytest.approx(stats.spearmanr(p, y).statistic, abs=1e-12)
    else:
        assert mine[3] is None
        assert mine[4] is None


@given(st.integers(0, 2**31), st.integers(1, 30))
def test_a_column_is_a_row_of_numbers(seed, n):
    p, y = (torch.tensor(x) for x in drawn(seed, n, tied=False))
    for f in ALL:
        assert f(p[:, None], y) == f(p, y[:, None]) == f(p[:, None], y[:, None]) == f(p, y)


def test_several_numbers_are_averaged_over_those_that_have_a_value():
    rng = np.random.default_rng(1)
    p, y = rng.normal(size=(2, 20, 3))
    mine = [f(torch.tensor(p), torch.tensor(y)) for f in ALL]
    assert mine[0] == pytest.approx(sk.mean_squared_error(y, p))
    assert mine[2] == pytest.approx(sk.r2_score(y, p))
    assert mine[3] == pytest.approx(np.mean([stats.pearsonr(p[:, d], y[:, d]).statistic for d in range(3)]))
    y[:, 1] = 5.0
    still = [r2, pearson, spearman]
    for f in still:
        assert f(torch.tensor(p), torch.tensor(y)) == pytest.approx(
            f(torch.tensor(p[:, [0, 2]]), torch.tensor(y[:, [0, 2]]))
        )


def test_perfect_worst_and_no_better_than_the_mean():
    y = torch.tensor([1.0, 2.0, 4.0, 8.0])
    assert mean_squared_error(y, y) == mean_absolute_error(y, y) == 0.0
    assert r2(y, y) == 1.0
    assert pearson(y, y) == pytest.approx(1.0)
    assert pearson(-3 * y + 7, y) == pytest.approx(-1.0)
    assert spearman(y.exp(), y) == pytest.approx(1.0)
    assert spearman(-y.exp(), y) == pytest.approx(-1.0)
    assert r2(torch.full((4,), float(y.mean())), y) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e8 + 0.1, -3e-300])
def test_what_does_not_vary_has_no_correlation_and_nothing_to_explain(constant):
    y, flat = torch.arange(7).double(), torch.full((7,), constant, dtype=torch.float64)
    assert r2(y, flat) is None
    assert r2(flat, flat) is None
    for f in (pearson, spearman):
        assert f(y, flat) is f(flat, y) is f(flat, flat) is None
    assert math.isfinite(r2(flat, y))
    assert mean_squared_error(flat, flat) == 0.0


def test_one_sample_has_errors_and_nothing_else():
    p, y = torch.tensor([2.0]), torch.tensor([5.0])
    assert [f(p, y) for f in ALL] == [9.0, 3.0, None, None, None]


@pytest.mark.parametrize("scale", [1e-170, 1e170])
def test_squares_neither_vanish_nor_overflow(scale):
    p, y = drawn(3, 20, tied=False)
    for f in (r2, pearson, spearman):
        assert f(torch.tensor(p) * scale, torch.tensor(y) * scale) == pytest.approx(
            f(torch.tensor(p), torch.tensor(y)), rel=1e-9
        )


def test_a_small_spread_on_a_large_number_is_seen():
    p, y = drawn(4, 50, tied=False)
    far = 2.0**30
    assert pearson(torch.tensor(p + far), torch.tensor(y + far)) == pytest.approx(
        stats.pearsonr(p, y).statistic, abs=1e-6
    )


def test_sums_are_float64():
    p = torch.full((100_000,), 0.1)
    assert mean_squared_error(p, torch.zeros(100_000)) == pytest.approx(float(p[0].double()) ** 2, rel=1e-12)


@given(st.lists(st.lists(st.sampled_from([-math.inf, 0.0, 0.5, 2.0]), min_size=5, max_size=5), min_size=1, max_size=5))
def test_ranks_are_scipys_with_ties_shared(rows):
    np.testing.assert_array_equal(average_ranks(torch.tensor(rows)).numpy(), stats.rankdata(rows, axis=1))


@pytest.mark.parametrize("f", ALL)
def test_what_is_no_number_is_refused(f):
    good = torch.tensor([1.0, 2.0, 3.0])
    for bad in (math.nan, math.inf):
        broken = torch.tensor([1.0, bad, bad])
        with pytest.raises(NonFiniteError, match=r"prediction is NaN or infinite in 2 of 3 .* row 1"):
            f(broken, good)
        with pytest.raises(DataError, match="target is NaN"):
            f(good, broken)
    with pytest.raises(DataError, match="no sample"):
        f(good[:0], good[:0])
    for p, y in ((good, good[:2]), (good.view(1, 3), good), (good.view(1, 1, 3), good.view(1, 1, 3))):
        with pytest.raises(ShapeError, match="To mend"):
            f(p, y)
